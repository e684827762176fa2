"""Limits: the stated rate, and the pause that the endpoint asks all workers to make."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiolimiter import AsyncLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.workers.clock import Clock


class Turnstile:
    """Lets attempts through one by one: after a pause, and at the stated rate.

    A token is taken for every attempt, retries included. Capacity 1 with the time of one token
    is what keeps aiolimiter from letting a burst through after a start or a pause.
    """

    def __init__(self, rate: float | None, clock: Clock) -> None:
        self._limiter = AsyncLimiter(1, 1 / rate) if rate else None
        self._clock = clock
        self._paused_until = clock.now()
        self._queue = asyncio.Lock()

    def pause(self, seconds: float) -> None:
        """Make all attempts wait; a shorter pause never cuts a longer one."""
        self._paused_until = max(self._paused_until, self._clock.now() + seconds)

    async def pass_through(self, still_wanted: Callable[[], bool]) -> bool:
        """Wait for this attempt's turn; False, without a token, where it is wanted no more."""
        if self._limiter is None and self._clock.now() >= self._paused_until:
            return still_wanted()
        async with self._queue:
            while (left_s := self._paused_until - self._clock.now()) > 0:
                await self._clock.sleep(left_s)
            if not still_wanted():
                return False
            if self._limiter is not None:
                await self._limiter.acquire()
            return still_wanted()
