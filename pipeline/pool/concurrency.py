"""Concurrency that follows the endpoint: as many requests in flight as help, and no more.

Additive increase, multiplicative decrease (as TCP's congestion control), on three signals:

- a good answer while the limit was used to the full raises it: by a quarter a round trip until
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.system.clock import Clock

START = 4.0
SLOW_START_GAIN = 0.25
DECREASE = 0.7
# Latency may rise to this many times the unloaded one before the limit sinks.
LATENCY_RATIO = 3.0
LATENCY_DECREASE = 0.8
# Near the level of the last refusal the limit rises by a tenth a round trip.
NEAR_CEILING = 0.1
# A busy client inflates the latencies it measures; below this many they are no evidence.
QUEUE_FLOOR = 16.0
# The unloaded latency may change with the texts, so an old minimum fades a little each window.
FADE = 1.001
# Answers that are averaged before latency is judged.
WINDOW = 64


class AdaptiveLimit:
    """A semaphore whose size follows the endpoint, between 1 and `most`; `in_flight` hold it."""

    def __init__(self, most: int, clock: Clock) -> None:
        self._most = float(most)
        self._clock = clock
        self._limit = min(START, self._most)
        self.in_flight = 0
        # How many of these were in flight when the limit was used to the full.
        self._full = 0
        # The most that were in flight within the last round trip, and when.
        self._peak = (0, float("-inf"))
        self._waiters: deque[asyncio.Future[None]] = deque()
        # Workers that may take a batch, and those that wait until they may.
        self._let_in: set[asyncio.Task[Any] | None] = set()
        self._outside: deque[tuple[asyncio.Future[None], asyncio.Task[Any] | None]] = deque()
        self._slow_start = True
        # What a search found; it judges by throughput, so latency is no evidence then.
        self._aim: int | None = None
        self._latency = Latency(clock)
        self._ceiling = float("inf")
        self._round_trip_s = 0.0
        self._decreased_at = float("-inf")

    @property
    def limit(self) -> int:
        """How many may be in flight now."""
        return int(self._limit)

    def cap(self, most: int) -> None:
        """Lower the maximum for good: the server told how much it takes."""
        self._most = max(1.0, min(self._most, float(most)))
        self._limit = min(self._limit, self._most)

    def aim(self, requests: int) -> None:
        """Have so many in flight from now on, as a search found; only refusals lower it a while."""
        if requests != self._aim:
            self._limit = float(requests)
        self._aim, self._most = requests, float(requests)
        self._hand_over()

    async def room(self) -> None:
        """Wait until this worker's next request would find a permit.

        A batch that is taken before that only waits in a queue, and keeps its size even if a search
        changes the batch size meanwhile. No permit is reserved: a retry may take it. The worker's
        place ends with `acquire` or `leave`.
        """
        task = asyncio.current_task()
        self._let_in.discard(task)  # what it took before may have needed no request
        waiter = asyncio.get_running_loop().create_future()
        self._outside.append((waiter, task))
        self._hand_over()
        await waiter

    def leave(self) -> None:
        """Say that this worker sends nothing now."""
        self._let_in.discard(asyncio.current_task())
        self._hand_over()

    def _has_room(self) -> bool:
        return self.in_flight + len(self._let_in) < int(self._limit)

    async def acquire(self) -> None:
        """Wait for a permit; first come, first served."""
        self._let_in.discard(asyncio.current_task())
        if self.in_flight < int(self._limit) and not self._waiters:
            self._admit()
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
        """Return the permit."""
        self.in_flight -= 1
        self._full = max(0, self._full - 1)
        self._hand_over()

    def _admit(self) -> None:
        self.in_flight += 1
        if self.in_flight >= int(self._limit):
            self._full = self.in_flight
        now = self._clock.now()
        peak, at = self._peak
        if self.in_flight >= peak or now - at > self._round_trip_s:
            self._peak = self.in_flight, now

    def succeeded(self, seconds: float) -> None:
        """Learn from a good answer that took so long."""
        # Answers that come together all count, though the first leaves the limit not full.
        used_up = self._full > 0 and not self._latency.tells_of_a_queue
        self._round_trip_s = 0.9 * (self._round_trip_s or seconds) + 0.1 * seconds
        if self._aim is None and self._latency.finds_a_queue(seconds, self._limit):
            self._slow_start = False
            self._limit = max(self._latency.enough, self._limit * LATENCY_DECREASE)
        if used_up and self._limit < self._most:
            self._limit = min(self._limit + self._gain(), self._most)
            self._hand_over()

    def overloaded(self) -> None:
        """Learn from a 429, an overload or a timeout."""
        now = self._clock.now()
        self._slow_start = False
        if now - self._decreased_at >= self._round_trip_s:
            self._decreased_at = now
            # Of the answers that come together this may be the last, with nothing in flight.
            self._ceiling = min(self._limit, self._peak[0])
            self._limit = max(1.0, self._ceiling * DECREASE)

    def _gain(self) -> float:
        """How much one good answer raises the limit.

        It is little where the limit would reach the level at which the endpoint refused last:
        finding out again costs refusals.
        """
        if self._slow_start:
            return SLOW_START_GAIN
        if self._limit > self._ceiling:
            self._ceiling = float("inf")  # it takes more by now
        near = int(self._limit) + 1 >= self._ceiling
        return (NEAR_CEILING if near else 1.0) / self._limit

    def _hand_over(self) -> None:
        while self._waiters and self.in_flight < int(self._limit):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._admit()
                waiter.set_result(None)
        while self._outside and self._has_room():
            waiter, task = self._outside.popleft()
            if not waiter.done():
                self._let_in.add(task)
                waiter.set_result(None)


class Latency:
    """Judges if answers take so long that requests must be queueing at the server.

    By the last whole window of answers: `tells_of_a_queue`, and then `enough` requests in flight
    would keep the server busy.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.tells_of_a_queue = False
        self.enough = QUEUE_FLOOR
        self._unloaded_s = float("inf")
        self._window_began = clock.now()
        self._window_s: list[float] = []

    def finds_a_queue(self, seconds: float, limit: float) -> bool:
        """Add an answer that took so long. Return True if it completes a window that tells so."""
        self._window_s.append(seconds)
        if len(self._window_s) < WINDOW:
            return False
        now = self._clock.now()
        # Quartile and median: a few fast answers (a server's cache) or slow ones are no queue.
        ordered_s = sorted(self._window_s)
        quartile_s, median_s = ordered_s[WINDOW // 4], ordered_s[WINDOW // 2]
        throughput = WINDOW / max(now - self._window_began, 1e-9)
        self._unloaded_s = min(self._unloaded_s * FADE, quartile_s)
        self.enough = max(2 * throughput * self._unloaded_s, QUEUE_FLOOR)
        slow = median_s > LATENCY_RATIO * self._unloaded_s
        self.tells_of_a_queue = slow and limit > self.enough
        self._window_s.clear()
        self._window_began = now
        return self.tells_of_a_queue
