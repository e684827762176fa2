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

from pipeline.errors import (
    Cause,
    EndpointRefused,
    Retryable,
    RowsRejected,
    StoppedEarly,
)
from pipeline.events import Waiting, Why
from pipeline.pool.attempt import GateClosedError, StoppedError
from pipeline.pool.budget import Budget
from pipeline.pool.failures import Failures, while_unmet
from pipeline.pool.gate import PassedOnError
from pipeline.pool.trust import Trust
from pipeline.wording import sentence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.client import Reply
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.pool.attempt import Attempts
    from pipeline.pool.batching import Batch
    from pipeline.pool.gate import Gate
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop

T = TypeVar("T")

FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 20.0
# One of several servers that pauses for longer leaves its work to the others.
LONG_PAUSE_S = 2.0


def backoff_s(failed_before: int, clock: Clock) -> float:
    """Return how long to wait after a failure: exponential in those before, half of it jitter."""
    longest_s: float = min(FIRST_BACKOFF_S * 2 ** min(failed_before, 10), LONGEST_BACKOFF_S)
    return longest_s * clock.jitter(0.5, 1.0)


@dataclass(eq=False)
class Patience:
    """Attempts something until it is answered, or until it is clear that it never will be.

    `answered` is set by the first answer that only a living model gives.
    """

    _config: RunConfig
    _attempts: Attempts
    _gate: Gate
    _clock: Clock
    _emit: Observer
    _stop: Stop

    def __post_init__(self) -> None:
        self._budget = Budget()
        # What the endpoint showed of late.
        self.answered = asyncio.Event()
        self.trust = Trust(allow_drift=self._config.allow_drift)
        self._deciding = asyncio.Lock()
        self._successes = self._throttles = 0
        self._began_at = self._last_success_at = self._clock.now()

    def answer(
        self,
        batch: Batch,
        *,
        among: Batch | None = None,
        patient: bool = True,
        doubted: bool = False,
        greeting: bool = False,
        together: bool = False,
    ) -> Awaitable[Reply]:
        """Send a batch until it is answered; see `until_answered`, and `Attempts.make`.

        An outage is probed with one of its inputs, or of those of `among`.
        """
        attempt = partial(self.attempt, batch, together=together)
        failures = Failures(batch, doubted=doubted, greeting=greeting)
        return self.until_answered(attempt, failures, among or batch, patient=patient)

    async def until_answered(
        self,
        attempt: Callable[[bool, bool], Awaitable[T]],
        failures: Failures,
        batch: Batch | None = None,
        *,
        patient: bool = True,
    ) -> T:
        """Attempt something as often as its failures allow.

        `attempt` gets whether it is the gate's probe, and whether it is a retry. An outage is
        probed with one input, which was answered before or is one of `batch`. Raises RowsRejected
        to have a batch split, EndpointRefused and StoppedEarly to end the run, StoppedError if
        the pool stops and, unless `patient`, Retryable for an answer that is unreadable twice. Of
        several servers, PassedOnError while the gate is closed, unless this is a `greeting`.
        """
        failures.successes_seen = self._successes
        failure: Retryable | EndpointRefused | None = None
        while True:
            if self._stop.reason is not None:
                raise StoppedError
            probing = await self._enter(failures, batch)
            try:
                if probing and await self._probed_with_one(batch, failures):
                    continue
                return await attempt(probing, failure is not None)
            except GateClosedError:
                continue
            except EndpointRefused as refusal:
                failure = refusal
            except Retryable as retryable:
                failure = retryable
                if not self.answered.is_set():
                    failure = while_unmet(retryable, self._clock.now() - self._began_at)
                if await self._still_down(failure, probing=probing):
                    continue
            finally:
                if probing:
                    self._gate.leave()
            if isinstance(failure, EndpointRefused):
                await self._blame(failure, failures, batch)
                continue
            failures.add(failure, self._clock.now())
            if not patient and failure.cause is Cause.UNREADABLE and failures.total > 1:
                raise failure
            await self._after(failure, failures)

    async def _enter(self, failures: Failures, batch: Batch | None) -> bool:
        """Come through the gate; see `Gate.enter`."""
        try:
            return await self._gate.enter(greeting=failures.greeting)
        except PassedOnError:
            if batch is not None and failures.total:
                batch.passed_on += 1
            raise

    async def _probed_with_one(self, batch: Batch | None, failures: Failures) -> bool:
        """Probe an outage with one input; False if the request itself is the probe."""
        outage = self._gate.why is Why.OUTAGE
        light = self.trust.light_probe(batch, self._gate.failures) if outage else None
        failures.probed_with_one = light is not None
        if light is None:
            return False
        with suppress(RowsRejected):  # that text is refused, so somebody is there
            self.trust.compare(light, await self.attempt(light.batch, True, True))
        return True

    async def confirm(self, like: Batch, batch_size: int) -> None:
        """Ask the text that decides if more was refused in a row than bad rows explain.

        Raises EndpointRefused or StoppedEarly if that is refused, too.
        """
        if self.trust.doubtful(self._attempts.limit.limit, batch_size):
            await self.decide(like, self.trust.refusals)

    async def decide(self, like: Batch, number: int, *, greeting: bool = False) -> None:
        """Ask the text that decides, unless the refusal of this number is vouched for.

        Raises EndpointRefused or StoppedEarly if that is refused, too.
        """
        async with self._deciding:  # the others need only hear what came of it
            if self.trust.vouched >= number:
                return
            known = self.trust.text_to_ask(like)
            try:
                attempt = partial(self.attempt, known.batch)
                failures = Failures(known.batch, greeting=greeting)
                reply = await self.until_answered(attempt, failures)
            except RowsRejected as refusal:
                if refusal.given_up:
                    return  # it kept failing for another reason, which tells nothing
                raise self.trust.distrust(refusal) from None
            self.trust.compare(known, reply)

    async def _blame(
        self, refusal: EndpointRefused, failures: Failures, batch: Batch | None
    ) -> None:
        """Find out whose fault it is that a request is refused as if the account were.

        Raises `refusal` if the endpoint refuses what it answered before as well. If it has answered
        nothing yet, only a refusal by a web page, as of a firewall, is doubted. Raises RowsRejected
        if the rows are at fault; a single one is asked again first, since it would be condemned.
        """
        doubtful = self.trust.known is not None or refusal.is_page
        if batch is None or refusal.status is None or not doubtful or failures.probed_with_one:
            raise refusal
        try:
            await self.decide(batch, self.trust.refusals, greeting=failures.greeting)
        except EndpointRefused:
            raise refusal from None
        if failures.inputs > 1 or failures.acquitted:
            raise RowsRejected(refusal.status, refusal.what.rstrip(".")) from refusal
        failures.acquitted = True

    async def attempt(
        self, batch: Batch, probing: bool, retry: bool, *, together: bool = False
    ) -> Reply:
        """Send a batch once; see `Attempts.make`."""
        refusals = self.trust.refusals
        try:
            reply = await self._attempts.make(
                batch, probing=probing, retry=retry, together=together
            )
        except (RowsRejected, EndpointRefused) as refusal:
            self.trust.refused()
            if isinstance(refusal, RowsRejected):
                self._alive()
            raise
        self.trust.answered(refusals)
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

    async def _after(self, failure: Retryable, failures: Failures) -> None:
        """Find out whose fault it is that a request fails; wait before the next attempt.

        Raises RowsRejected if it is the rows', EndpointRefused if this is no such endpoint;
        otherwise it is an outage.
        """
        others_answered = self._successes > failures.successes_seen
        if failures.suspicious and failures.of_content and not others_answered:
            others_answered = await self._answers_known()
        failures.successes_seen = self._successes
        if failures.hopeless and (others_answered or failures.passed_on > 1):
            raise RowsRejected(
                failure.status or 0,
                f"{failure.what} (given up after several attempts, while other rows were answered)",
                given_up=True,
            ) from failure
        self.trust.check_dialect(failure, failures)
        await self._hold_back(failure, failures, calm=others_answered and failures.of_content)

    async def _answers_known(self) -> bool:
        """Ask once for what was answered before, unless others ask; True if it is answered."""
        known = self.trust.known
        if known is None or self._deciding.locked() or self._attempts.in_flight:
            return False
        async with self._deciding:
            try:
                reply = await self.attempt(known.batch, False, True)
            except (Retryable, RowsRejected, GateClosedError):
                return False
            self.trust.compare(known, reply)
            return True

    async def _hold_back(self, failure: Retryable, failures: Failures, *, calm: bool) -> None:
        """Wait before the next attempt, alone or with all others, as the cause asks.

        All is `calm` where others are answered, so that nothing is gained by waiting longer.
        """
        now = self._clock.now()
        trouble_since = max(self._last_success_at, failures.first_at)
        left_s = trouble_since + self._config.max_outage_s - now
        unknown_host = failure.unreachable is not None and not self.answered.is_set()
        match failure.cause:
            case Cause.LOADING:
                self._gate.close(Why.LOADING, failure, now)
            case Cause.THROTTLED:
                pause_s = self._pause_all(failure, now - trouble_since)
                if self._config.is_list and pause_s > LONG_PAUSE_S and not failures.greeting:
                    raise PassedOnError
            case _ if unknown_host or failures.exhausted or left_s <= 0:
                self._gate.close(Why.OUTAGE, failure, trouble_since)
            case _ if not (calm and failures.inputs == 1) and not self._budget.spend():
                self._gate.close(Why.OUTAGE, failure, trouble_since)
            case _:
                before = 0 if calm else failures.total - 1
                await self._clock.sleep(min(backoff_s(before, self._clock), left_s))

    def _pause_all(self, failure: Retryable, silent_s: float) -> float:
        """Make everybody wait as long as the endpoint says, else longer each time; return it.

        `silent_s` is for how long it has answered nothing. Raises StoppedEarly for a pause that
        goes beyond `max_outage_s`.
        """
        # A hint of 0 tells nothing that a 429 does not contradict.
        wait_s = failure.wait_s or backoff_s(self._throttles, self._clock)
        if silent_s + wait_s > self._config.max_outage_s:
            raise StoppedEarly(
                f"The endpoint throttles and asks for a pause of {wait_s:.0f} s after "
                f"{silent_s:.0f} s without an answer; together more than max_outage_s allows. "
                f"It said: {sentence(failure.what)}",
                "Run the same command again later to continue.",
            )
        wait_s *= self._clock.jitter(1.0, 1.1)
        if self._attempts.turnstile.pause(wait_s):
            self._throttles += 1
        self._emit(Waiting(Why.THROTTLED, wait_s, failure.what))
        return wait_s
