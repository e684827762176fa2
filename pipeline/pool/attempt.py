"""One attempt: a permit, a token of the rate, one request, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Cause, EndpointRefused, Retryable, RowsRejected, StoppedEarly
from pipeline.pool.alarm import Alarm
from pipeline.pool.concurrency import AdaptiveLimit
from pipeline.pool.turnstile import Turnstile
from pipeline.wording import counted

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

    from pipeline.client import Client, Reply
    from pipeline.config import RunConfig
    from pipeline.errors import RequestError
    from pipeline.pool.batching import Batch
    from pipeline.pool.gate import Gate
    from pipeline.pool.search import Search
    from pipeline.pool.tally import Tally
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop

# So many times the worker of a request may be lost before it counts as a failure of the request.
MOST_LOST = 10


class StoppedError(Exception):
    """The pool is stopping: this worker gives up its batch."""


class GateClosedError(Exception):
    """The gate closed while an attempt waited its turn: it has to come through the gate again."""


@dataclass
class Quota:
    """What all servers share: the most requests, `sent` by all passes so far, and a stated rate."""

    most: int | None
    sent: int
    stated: AsyncLimiter | None


@dataclass(eq=False)
class Attempts:
    """Makes attempts within the limits, and lets the limits learn from each."""

    _config: RunConfig
    _client: Client
    _gate: Gate
    _clock: Clock
    _tally: Tally
    _stop: Stop
    _quota: Quota

    def __post_init__(self) -> None:
        self.limit = AdaptiveLimit(self._config.concurrency, self._clock)
        self.turnstile = Turnstile(self._config.rate, self._clock, self._quota.stated)
        # Of the batch size and the concurrency, unless the size is given.
        self.search: Search | None = None
        # True if servers are told to work on the texts of a request as one batch.
        self.together = False
        self.alarm = Alarm(self._config.timeout_s, self._clock)

    @property
    def in_flight(self) -> int:
        """How many requests to this server are in flight, or about to be."""
        return self.limit.in_flight

    async def make(
        self, batch: Batch, *, probing: bool, retry: bool, together: bool = False
    ) -> Reply:
        """Send one request as soon as there is a permit and a token for it.

        `probing` attempts may pass a closed gate. `together` tells the server to work on the texts
        as one batch, which others do if it is in force. Raises Retryable, RowsRejected or
        EndpointRefused for what the request came to, GateClosedError if the gate closed while it
        waited its turn, and StoppedError if the pool stopped meanwhile, also for `max_requests`.
        """
        for lost in range(MOST_LOST):
            try:
                return await self._once(batch, probing, retry or lost > 0, together)
            except Retryable as failure:
                # The endpoint has nothing to do with it, so no limit, budget or gate hears of it.
                if failure.cause is not Cause.WORKER_LOST or lost == MOST_LOST - 1:
                    raise
        raise AssertionError

    async def _once(self, batch: Batch, probing: bool, retry: bool, together: bool) -> Reply:
        await self.limit.acquire()
        try:
            await self._turn(probing)
            if self._stop.reason is not None:
                raise StoppedError
            self._count(retry=retry)
            together = len(batch) > 1 and (together or self.together)
            if (search := self.search) is not None:
                search.sent()
            started = self._clock.now()
            status: int | None = None
            cause: str | None = "cancelled"
            try:
                with self.alarm:
                    reply = await self._client.ask(
                        batch.items, wait_for_model=self._gate.wait_for_model, together=together
                    )
                status, cause = 200, None
            except (Retryable, RowsRejected, EndpointRefused) as failure:
                status, cause = failure.status, self._learn(failure, started)
                if self._stop.reason is not None:
                    raise StoppedError from failure
                raise
            finally:
                seconds = self._clock.now() - started
                self._tally.ended(status, cause, seconds)
                if search is not None:
                    search.ended()
            if not probing:  # a probe may have been held until the model was loaded
                self.limit.succeeded(seconds)
                if search is not None and together == search.now.together:
                    search.answered(batch.load, seconds)
            if reply.pause_s:
                self.turnstile.pause(min(reply.pause_s, self._config.max_outage_s))
            return reply
        finally:
            self.limit.release()

    async def _turn(self, probing: bool) -> None:
        """Wait until somebody can send a request and the rate allows it, in that order.

        Else requests that came through while nobody could would all go out together.
        """
        client = self._client
        while True:
            if not client.ready:
                await client.until_ready()
            if not await self.turnstile.pass_through(lambda: probing or self._gate.is_open):
                raise GateClosedError
            if client.ready or self._stop.reason is not None:
                return

    def _count(self, *, retry: bool) -> None:
        most = self._quota.most
        if most is not None and self._quota.sent >= most:
            self._stop.ask(
                StoppedEarly(
                    f"Sent {counted(most, 'request')}, all that max_requests allows.",
                    "Run the same command again to continue.",
                )
            )
            raise StoppedError
        self._quota.sent += 1
        self._tally.sent(retry=retry)

    def _learn(self, failure: RequestError | EndpointRefused, sent_at: float) -> str:
        """Let the limits hear of an attempt that failed; return its cause for the tally."""
        if not isinstance(failure, Retryable):
            return type(failure).__name__
        if failure.cause in (Cause.THROTTLED, Cause.OVERLOADED, Cause.TIMEOUT):
            self.limit.overloaded()
        if self.search is not None and failure.cause is not Cause.WORKER_LOST:
            self.search.disturbed(failure.cause, sent_at)
        if failure.cause is Cause.THROTTLED:
            self.turnstile.throttled()
        return failure.cause.value
