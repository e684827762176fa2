"""Time and chance, passed in so that tests neither sleep nor guess."""

from __future__ import annotations

import asyncio
import random
import time


class Clock:
    """The real clock; tests pass a subclass whose sleep only moves its hands."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    def jitter(self, low: float, high: float) -> float:
        """Return a random number between the two, to keep workers from acting in step."""
        return random.uniform(low, high)  # noqa: S311  (spreads load, guards nothing)
