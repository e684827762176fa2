"""Concurrency that follows the endpoint: as many requests in flight as help, and no more.

Additive increase, multiplicative decrease (as TCP's congestion control), on three signals:

- a good answer while the limit was used to the full raises it: by three tenths a round trip until
  the first decrease ("slow start", gentle since a burst into an unknown rate limit is answered
  with 429s), by one a round trip after it;
- a 429, an overload or a timeout lowers it to 70%, at most once a round trip, since the answers
  of one round trip all tell of the same moment;
- latency that rises while throughput does not: requests only queue at the server, where they eat
  their own timeout. By Little's law `throughput x unloaded latency` requests keep the server
  busy; the limit sinks towards twice that, and never below `QUEUE_FLOOR`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.workers.clock import Clock

START = 4.0
SLOW_START_GAIN = 0.3
DECREASE = 0.7
# Latency may rise to this many times the unloaded one before the limit sinks.
LATENCY_RATIO = 3.0
LATENCY_DECREASE = 0.95
# A busy client inflates the latencies it measures; below this many they are no evidence.
QUEUE_FLOOR = 16.0
# Answers that are averaged before latency is judged.
WINDOW = 64


class AdaptiveLimit:
    """A semaphore whose size follows the endpoint, between 1 and `most`."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = float(most)
        self._clock = clock
        self._limit = min(START, self._most)
        self._in_flight = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._slow_start = True
        self._round_trip_s = 0.0
        self._decreased_at = float("-inf")
        self._unloaded_s = float("inf")
        self._window_began = clock.now()
        self._window_s: list[float] = []

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """How many are."""
        return self._in_flight

    def cap(self, most: int) -> None:
        """Lower the maximum for good: the server told how much it takes."""
        self._most = max(1.0, min(self._most, float(most)))
        self._limit = min(self._limit, self._most)

    async def acquire(self) -> None:
        """Wait for a permit; first come, first served."""
        if self._in_flight < int(self._limit) and not self._waiters:
            self._in_flight += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()  # the permit was handed over just before the cancellation
            raise

    def release(self) -> None:
        """Give the permit back."""
        self._in_flight -= 1
        self._hand_over()

    def succeeded(self, seconds: float) -> None:
        """Learn from a good answer that took so long."""
        used_up = self._in_flight >= int(self._limit)
        self._round_trip_s = (
            seconds if not self._round_trip_s else (0.9 * self._round_trip_s + 0.1 * seconds)
        )
        self._judge_latency(seconds)
        if used_up and self._limit < self._most:
            self._limit += SLOW_START_GAIN if self._slow_start else 1 / self._limit
            self._limit = min(self._limit, self._most)
            self._hand_over()

    def overloaded(self) -> None:
        """Learn from a 429, an overload or a timeout."""
        now = self._clock.now()
        self._slow_start = False
        if now - self._decreased_at >= self._round_trip_s:
            self._decreased_at = now
            self._limit = max(1.0, min(self._limit, self._in_flight) * DECREASE)

    def _judge_latency(self, seconds: float) -> None:
        self._window_s.append(seconds)
        if len(self._window_s) < WINDOW:
            return
        now = self._clock.now()
        mean_s = sum(self._window_s) / WINDOW
        throughput = WINDOW / max(now - self._window_began, 1e-9)
        # The unloaded latency may change with the texts, so that an old minimum fades.
        self._unloaded_s = min(self._unloaded_s * 1.02, *self._window_s)
        enough = max(2 * throughput * self._unloaded_s, QUEUE_FLOOR)
        if mean_s > LATENCY_RATIO * self._unloaded_s and self._limit > enough:
            self._slow_start = False
            self._limit = max(enough, self._limit * LATENCY_DECREASE)
        self._window_s.clear()
        self._window_began = now

    def _hand_over(self) -> None:
        while self._waiters and self._in_flight < int(self._limit):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)
