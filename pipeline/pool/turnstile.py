"""Limits on the rate: the one that was stated, the one that was learned, and pauses for all."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiolimiter import AsyncLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.system.clock import Clock

# A limiter that wakes late would fall behind more and more if it let nothing catch up; what it may
# catch up is a hundredth of a second, so that no second holds more than 1.01 times the rate + 1.
CATCH_UP_S = 0.01
# Pace a little below the stated rate: the server measures at its own end, with its own jitter.
PACE = 0.995

# After a 429 the rate is held just below what the server let through in the second before, then
# it rises, slowly at first, since each try to go faster costs 429s and their pause. A limit that
# is passed by a tenth without a 429 was none, and is left behind quickly.
LEARNED_SHARE = 0.98
SAME_MOMENT_S = 1.0
SLOWEST = 1.0
HOLD_S = 30.0
RISE_PER_S = 1.01
SLOW_RISE_S = 10.0
DOUBLING_S = 2.0
FORGET_S = 20.0
# With so many let through in a whole second, or about as many as before the last 429, the number
# is the server's limit; otherwise it may be chance, or a bucket that was empty for a moment, and is
# doubted soon.
CERTAIN = 20
ALIKE = 0.25
DOUBT_S = 1.0


def limiter(rate: float) -> AsyncLimiter:
    """Return what lets so many through a second, evenly."""
    capacity = 1 + CATCH_UP_S * rate
    return AsyncLimiter(capacity, capacity / (rate * PACE))


class Turnstile:
    """Lets attempts through one by one: after a pause, and at the rate in force.

    A token is taken for every attempt, retries included. `stated` lets `rate` a second through, for
    all turnstiles that share it.
    """

    def __init__(
        self, rate: float | None, clock: Clock, stated: AsyncLimiter | None = None
    ) -> None:
        self._clock = clock
        self._queue = asyncio.Lock()
        self._paused_until = clock.now()
        # Never replaced: a new limiter would forget what the old one let through.
        self._stated = stated or (limiter(rate) if rate else None)
        self._learned: _Learned | None = None
        self._learned_limiter: AsyncLimiter | None = None
        self._limited_to = 0.0
        self._fresh = False
        self._rate = rate
        self._sent: deque[float] = deque()
        self._busy_since = clock.now()

    @property
    def rate(self) -> float | None:
        """Requests a second that are let through now; None for no limit."""
        learned = self._learned and self._learned.rate(self._clock.now())
        return min((rate for rate in (self._rate, learned) if rate), default=None)

    def pause(self, seconds: float) -> bool:
        """Make all attempts wait; a shorter pause never cuts a longer one.

        Return True if this is a new pause, False if it is part of one that goes on.
        """
        now = self._clock.now()
        new = now >= self._paused_until
        self._paused_until = max(self._paused_until, now + seconds)
        return new

    def throttled(self) -> None:
        """Learn from a 429: the server lets through what it let through in the last second."""
        now, was = self._clock.now(), self._learned
        if was is not None and (now < self._paused_until or now - was.at < SAME_MOMENT_S):
            # The 429s of one moment come together: each takes one off what was let through.
            self._learned = replace(was, admitted=was.admitted - 1)
        else:
            self._forget_sent(now)
            admitted = len(self._sent) - 1
            whole_second = now - self._busy_since >= 1.0
            certain = whole_second and admitted >= CERTAIN
            if was is not None:
                certain |= abs(admitted - was.admitted) <= max(1, ALIKE * was.admitted)
                if was.certain and not whole_second:
                    admitted, certain = was.admitted, True  # it was measured better before
            self._learned = _Learned(now, admitted, certain)
        self._adjust(now)

    async def pass_through(self, still_wanted: Callable[[], bool]) -> bool:
        """Wait for this attempt's turn; False, without a token, if it is no longer wanted."""
        free = self._stated is None and self._learned is None
        if free and (now := self._clock.now()) >= self._paused_until:
            self._note_sent(now)
            return still_wanted()
        async with self._queue:
            await self._outwait_pause()
            if not still_wanted():
                return False
            self._adjust(self._clock.now())
            if self._fresh and self._learned_limiter is not None:
                # A new limiter would let a burst through, and they are new often while it rises.
                await self._learned_limiter.acquire(self._learned_limiter.max_rate)
                self._fresh = False
            for limiter in (self._learned_limiter, self._stated):
                if limiter is not None:
                    await limiter.acquire()
            await self._outwait_pause()  # it may have begun meanwhile
            self._note_sent(self._clock.now())
            return still_wanted()

    async def _outwait_pause(self) -> None:
        while (left_s := self._paused_until - self._clock.now()) > 0:
            await self._clock.sleep(left_s)
            self._busy_since = self._clock.now()

    def _note_sent(self, now: float) -> None:
        self._forget_sent(now)
        if not self._sent:
            self._busy_since = now
        self._sent.append(now)

    def _forget_sent(self, now: float) -> None:
        while self._sent and self._sent[0] <= now - 1.0:
            self._sent.popleft()

    def _adjust(self, now: float) -> None:
        """Follow the learned rate as it rises, and drop it once it is far behind."""
        if self._learned is None:
            return
        rate = self._learned.rate(now)
        if rate is None:
            self._learned = self._learned_limiter = None
            self._limited_to = 0.0
        elif abs(rate - self._limited_to) > 0.01 * self._limited_to:
            self._limited_to = rate
            self._learned_limiter = limiter(rate)
            self._fresh = True


@dataclass(frozen=True)
class _Learned:
    """What a 429 taught: so many a second were let through at that moment."""

    at: float
    admitted: int
    certain: bool

    def rate(self, now: float) -> float | None:
        """Requests a second to send now; None once it is clear that there is no such limit."""
        slow_s = SLOW_RISE_S if self.certain else 0.0
        risen_s = max(0.0, now - self.at - (HOLD_S if self.certain else DOUBT_S))
        quick_s = max(0.0, risen_s - slow_s)
        if quick_s > FORGET_S:
            return None
        base = max(LEARNED_SHARE * self.admitted, SLOWEST)
        rise: float = RISE_PER_S ** min(risen_s, slow_s) * 2 ** (quick_s / DOUBLING_S)
        return base * rise
