"""Patience: what a failure allows next, by its cause.

cause                       next
loading                     the gate closes; one probe goes on until the model is there
throttled                   everybody pauses as long as the endpoint says, else longer each time
any other                   again after a backoff, as often as its cause and the budget allow;
then the rows are to blame if others were answered meanwhile, and
otherwise it is an outage: the gate closes
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import Cause, EndpointRefused, Retryable, RowsRejected, StoppedEarly
from pipeline.events import Waiting, Why
from pipeline.pool.attempt import GateClosedError, StoppedError
from pipeline.pool.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.client import Reply
    from pipeline.events import Observer
    from pipeline.pool.attempt import Attempts
    from pipeline.pool.batching import Batch
    from pipeline.pool.gate import Gate
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop

T = TypeVar("T")

# How many failures of each cause one request may have before its rows are suspected. Throttling
# and loading are no fault of a request: they are bounded by time instead. A timeout is retried
# least, since a server that queues makes each retry wait behind the one before.
MOST_FAILURES = {
    Cause.OVERLOADED: 10,
    Cause.SERVER_ERROR: 6,
    Cause.CONNECTION: 6,
    Cause.UNREADABLE: 4,
    Cause.TIMEOUT: 3,
}
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 20.0


class Failures:
    """The failures of one request so far."""

    def __init__(self) -> None:
        self._counts: dict[Cause, int] = {}
        self.first_at = float("inf")

    def add(self, failure: Retryable, now: float) -> bool:
        """Count a failure that came now; True if its cause is exhausted."""
        self.first_at = min(self.first_at, now)
        count = self._counts[failure.cause] = self._counts.get(failure.cause, 0) + 1
        return count >= MOST_FAILURES.get(failure.cause, 1 << 30)

    @property
    def total(self) -> int:
        """How many there were, of any cause."""
        return sum(self._counts.values())


def backoff_s(failed_before: int, clock: Clock) -> float:
    """Return how long to wait after a failure: exponential in those before, half of it jitter."""
    longest_s: float = min(FIRST_BACKOFF_S * 2 ** min(failed_before, 10), LONGEST_BACKOFF_S)
    return longest_s * clock.jitter(0.5, 1.0)


@dataclass(eq=False)
class Patience:
    """Attempts something until it is answered, or until it is clear that it never will be.

    `answered` is set by the first answer that only a living model gives. `known_good` is an input
    that the endpoint has answered, None as long as there is none.
    """

    _max_outage_s: float
    _attempts: Attempts
    _gate: Gate
    _clock: Clock
    _emit: Observer
    _stop: Stop

    def __post_init__(self) -> None:
        self._budget = Budget()
        # What the endpoint showed of late.
        self.answered = asyncio.Event()
        self.known_good: Batch | None = None
        self._successes = self._throttles = 0
        self._last_success_at = self._clock.now()

    def answer(
        self, batch: Batch, *, among: Batch | None = None, patient: bool = True
    ) -> Awaitable[Reply]:
        """Send a batch until it is answered; see `until_answered`.

        An outage is probed with one of its inputs, or of those of `among`.
        """
        attempt = partial(self._attempt, batch)
        return self.until_answered(attempt, among or batch, patient=patient)

    async def until_answered(
        self,
        attempt: Callable[[bool, bool], Awaitable[T]],
        batch: Batch | None = None,
        *,
        patient: bool = True,
    ) -> T:
        """Attempt something as often as its failures allow.

        `attempt` gets whether it is the gate's probe, and whether it is a retry. An outage is
        probed with one input, which was answered before or is one of `batch`. Raises RowsRejected
        to have a batch split, EndpointRefused and StoppedEarly to end the run, StoppedError if
        the pool stops and, unless `patient`, Retryable for an answer that is unreadable twice.
        """
        failures, retry = Failures(), False
        successes_before = self._successes
        while True:
            if self._stop.reason is not None:
                raise StoppedError
            probing = await self._gate.enter()
            try:
                if probing and (light := self._light_probe(batch)) is not None:
                    with suppress(RowsRejected):  # that text is refused, so somebody is there
                        await self._attempt(light, True, retry)
                        self.known_good = light
                    continue
                return await attempt(probing, retry)
            except GateClosedError:
                continue
            except Retryable as failure:
                retry = True
                if await self._still_down(failure, probing=probing):
                    continue
                exhausted = failures.add(failure, self._clock.now())
                others_answered = self._successes > successes_before
                successes_before = self._successes
                if not patient and failure.cause is Cause.UNREADABLE and failures.total > 1:
                    raise
                if exhausted:
                    self._judge(failure, others_answered=others_answered)
                await self._hold_back(failure, failures, exhausted=exhausted)
            finally:
                if probing:
                    self._gate.leave()

    async def _attempt(self, batch: Batch, probing: bool, retry: bool) -> Reply:
        try:
            reply = await self._attempts.make(batch.items, probing=probing, retry=retry)
        except RowsRejected:
            self._alive()
            raise
        self._alive()
        return reply

    def _alive(self) -> None:
        """Note an answer that only a living model gives."""
        self._successes += 1
        self._throttles = 0
        self._last_success_at = self._clock.now()
        self._budget.earn()
        self.answered.set()
        if not self._gate.is_open:
            self._budget.renew()
            self._gate.open()

    def somebody_answers(self) -> None:
        """Note that a server is there, whatever it answers."""
        self._gate.open()

    async def _still_down(self, failure: Retryable, *, probing: bool) -> bool:
        """Wait before the next probe; False if the failure is not one of a closed gate."""
        # A readable server that answers otherwise than asked is not loading any more.
        if self._gate.wait_for_model and failure.cause is Cause.UNREADABLE:
            self._gate.open()
            return False
        if probing:
            await self._gate.probe_failed(failure)
        return probing

    def _light_probe(self, batch: Batch | None) -> Batch | None:
        """Return one input to probe an outage with, to tell it from a batch that always fails."""
        if self._gate.why is not Why.OUTAGE:
            return None
        if self.known_good is not None or batch is None or len(batch) == 1:
            return self.known_good
        return batch.part(self._gate.failures % len(batch))

    def _judge(self, failure: Retryable, *, others_answered: bool) -> None:
        """Find out whose fault it is that one request keeps failing.

        Raises RowsRejected if it is the rows', EndpointRefused if this is no such endpoint;
        otherwise it is an outage.
        """
        if others_answered:
            raise RowsRejected(
                failure.status or 0,
                f"{failure.what} (given up after several attempts, while other rows were answered)",
            ) from failure
        if failure.cause is Cause.UNREADABLE and self.known_good is None:
            raise EndpointRefused(
                f"This does not speak the Hugging Face Inference API: {failure.what}.",
                "Check the address and the dialect.",
                status=failure.status,
                at_fault="dialect",
            ) from failure

    async def _hold_back(self, failure: Retryable, failures: Failures, *, exhausted: bool) -> None:
        """Wait before the next attempt, alone or with all others, as the cause asks."""
        now = self._clock.now()
        trouble_since = max(self._last_success_at, failures.first_at)
        left_s = trouble_since + self._max_outage_s - now
        match failure.cause:
            case Cause.LOADING:
                self._gate.close(Why.LOADING, failure, now)
            case Cause.THROTTLED:
                self._pause_all(failure, now - trouble_since)
            case _ if exhausted or left_s <= 0 or not self._budget.spend():
                self._gate.close(Why.OUTAGE, failure, trouble_since)
            case _:
                await self._clock.sleep(min(backoff_s(failures.total - 1, self._clock), left_s))

    def _pause_all(self, failure: Retryable, silent_s: float) -> None:
        """Make everybody wait as long as the endpoint says, else longer each time.

        `silent_s` is for how long it has answered nothing. Raises StoppedEarly for a pause that
        goes beyond `max_outage_s`.
        """
        # A hint of 0 tells nothing that a 429 does not contradict.
        wait_s = failure.wait_s or backoff_s(self._throttles, self._clock)
        if silent_s + wait_s > self._max_outage_s:
            raise StoppedEarly(
                f"The endpoint throttles and asks for a pause of {wait_s:.0f} s after "
                f"{silent_s:.0f} s without an answer; together more than max_outage_s allows. "
                f"It said: {failure.what}.",
                "Run the same command again later to continue.",
            )
        wait_s *= self._clock.jitter(1.0, 1.1)
        if self._attempts.turnstile.pause(wait_s):
            self._throttles += 1
        self._emit(Waiting(Why.THROTTLED, wait_s, failure.what))
