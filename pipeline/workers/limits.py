"""Limits on the rate: the one that was stated, the one that was learned, and pauses for all."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from aiolimiter import AsyncLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.workers.clock import Clock

# A limiter that wakes late would fall behind for ever if it let nothing catch up; what it may
# catch up is a hundredth of a second, so that no second holds more than 1.01 times the rate + 1.
CATCH_UP_S = 0.01
# Pace a little below the stated rate: the server measures at its own end, with its own jitter.
PACE = 0.995

# After a 429 the rate is held just below what the server let through in the second before, for a
# while; then it rises slowly, since each try to go faster costs 429s and their pause.
LEARNED_SHARE = 0.98
HOLD_S = 30.0
RISE_PER_S = 1.005
SLOWEST = 0.2
SAME_MOMENT_S = 1.0


class Turnstile:
    """Lets attempts through one by one: after a pause, and at the rate in force.

    A token is taken for every attempt, retries included.
    """

    def __init__(self, rate: float | None, clock: Clock) -> None:
        self._stated = rate
        self._clock = clock
        self._learned: float | None = None
        self._learned_at = float("-inf")
        self._admitted = 0
        self._sent: deque[float] = deque()
        self._queue = asyncio.Lock()
        self._paused_until = clock.now()
        self._limiter: AsyncLimiter | None = None
        self._limited_to = 0.0
        self._set_limiter()

    @property
    def rate(self) -> float | None:
        """Requests a second that are let through now; None for no limit."""
        learned = self._learned_now()
        rates = [rate for rate in (self._stated, learned) if rate is not None]
        return min(rates, default=None)

    def pause(self, seconds: float) -> None:
        """Make all attempts wait; a shorter pause never cuts a longer one."""
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)

    def throttled(self) -> None:
        """Learn from a 429: the server lets through what it let through in the last second."""
        now = self._clock.now()
        # The 429s of one moment come together: each takes one off what was let through.
        same_moment = now < self._paused_until or now - self._learned_at < SAME_MOMENT_S
        if not same_moment:
            self._forget_sent(now)
            self._admitted = len(self._sent)
            self._learned_at = now
        self._admitted -= 1
        admitted = max(LEARNED_SHARE * self._admitted, SLOWEST)
        self._learned = min(admitted, self._learned or admitted) if same_moment else admitted
        self._set_limiter()

    async def pass_through(self, still_wanted: Callable[[], bool]) -> bool:
        """Wait for this attempt's turn; False, without a token, where it is wanted no more."""
        if self._limiter is None and self._clock.now() >= self._paused_until:
            self._note_sent()
            return still_wanted()
        async with self._queue:
            while (left_s := self._paused_until - self._clock.now()) > 0:
                await self._clock.sleep(left_s)
            if not still_wanted():
                return False
            if self._learned is not None:
                self._set_limiter()
            if self._limiter is not None:
                await self._limiter.acquire()
            self._note_sent()
            return still_wanted()

    def _note_sent(self) -> None:
        now = self._clock.now()
        self._sent.append(now)
        self._forget_sent(now)

    def _forget_sent(self, now: float) -> None:
        while self._sent and self._sent[0] <= now - 1.0:
            self._sent.popleft()

    def _learned_now(self) -> float | None:
        if self._learned is None:
            return None
        rising_s = self._clock.now() - self._learned_at - HOLD_S
        risen: float = self._learned * RISE_PER_S ** max(0.0, rising_s)
        return risen

    def _set_limiter(self) -> None:
        rate = self.rate
        if rate is None:
            return
        # A new limiter forgets what the old one let through, so it is replaced only for a change.
        if abs(rate - self._limited_to) > 0.01 * self._limited_to:
            self._limited_to = rate
            capacity = 1 + CATCH_UP_S * rate
            self._limiter = AsyncLimiter(capacity, capacity / (rate * PACE))
