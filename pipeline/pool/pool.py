"""The pool: workers that turn batches into outcomes through everything an endpoint can do.

One worker has one request in flight at most. `stop` is the one way to end early, whatever the
reason (a refusal, an outage, a signal, a limit): workers that wait are cancelled, requests in
flight are awaited and their answers kept.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar, cast

from pipeline.errors import (
    Cause,
    EndpointRefused,
    Retryable,
    RowsRejected,
    StoppedEarly,
    TooManyErrors,
)
from pipeline.events import SmallerBatches, Waiting, Why
from pipeline.outcomes import RowError
from pipeline.pool.batching import PLAIN, Batcher, Job, plain_batch
from pipeline.pool.concurrency import AdaptiveLimit
from pipeline.pool.gate import Gate
from pipeline.pool.introduction import Introduction
from pipeline.pool.patience import Budget, Failures, backoff_s
from pipeline.pool.tally import Tally
from pipeline.pool.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipeline.client.client import Client, Reply
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Item, Outcome
    from pipeline.pool.batching import Batch
    from pipeline.rows.drift import Revision
    from pipeline.system.clock import Clock

    Save = Callable[[Sequence[bytes], Sequence[Outcome], str | None], None]

T = TypeVar("T")

# So many inputs rejected and none answered: is it each row that is wrong, or the request?
HOPELESS = 100
# So many chunks may be on their way to the pool: read, and their inputs being looked up.
MOST_EXPECTED = 3
# How often a server is asked what it is, where that page fails.
MOST_INFO = 3
# How soon an overdue attempt that goes on is cancelled again.
CANCEL_AGAIN_S = 1.0


class _StoppedError(Exception):
    """The pool is stopping: this worker gives up its batch."""


class _GateClosedError(Exception):
    """The gate closed while an attempt waited its turn: it has to come through the gate again."""


class Pool:
    """Answers inputs; `async with` starts the workers and drains them."""

    def __init__(
        self,
        config: RunConfig,
        client: Client,
        revision: Revision,
        clock: Clock,
        emit: Observer,
        *,
        allowed_errors: int | None = None,
        requests_sent: int = 0,
    ) -> None:
        self._config = config
        self._client = client
        self._revision = revision
        self._clock = clock
        self._tally = Tally(emit, lambda: (self._limit.limit, self._turnstile.rate), self.stop)
        self._emit = self._tally.emit
        self._allowed_errors = allowed_errors
        self._batcher = Batcher(config.texts_per_request)
        self._gate = Gate(config, clock, self._emit)
        self._limit = AdaptiveLimit(config.concurrency, clock)
        self._turnstile = Turnstile(config.rate, clock)
        self._budget = Budget()
        self._introduction = Introduction(client, self._ask_first, self._emit)
        self._dialect_settled = client.knows_dialect
        self._jobs: set[Job] = set()
        self._workers: list[asyncio.Task[None]] = []
        # When each attempt in flight began, oldest first; `_watch` is the oldest one's alarm, which
        # has cancelled those that are overdue so many times.
        self._sending: dict[asyncio.Task[None], float] = {}
        self._overdue: dict[asyncio.Task[None], int] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._requests = requests_sent
        self._successes = self._failed_items = self._throttles = 0
        self._last_success_at = clock.now()
        self._known_good: Batch | None = None
        self._first_batch: Batch | None = None
        self._request_checked = False
        self._expected = self._open_items = self._undiscovered = 0
        self._enough_items = 2 * config.concurrency * config.texts_per_request
        self._hungry = asyncio.Event()
        self._hungry.set()
        self._input_blocked = self._input_ended = False
        self.save: Save = lambda _keys, _outcomes, _revision: None
        self.stopped_by: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._workers = [
            asyncio.create_task(self._work(first=i == 0), name=f"worker-{i}")
            for i in range(self._config.concurrency)
        ]
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        """Let the requests in flight end, after `stop` for no longer than the grace."""
        try:
            if error is not None:
                self.stop(error)
            self._batcher.close()
            self._introduction.met.set()
            if not isinstance(error, asyncio.CancelledError):
                grace_s = self._config.grace_s if self.stopped_by else None
                await asyncio.wait(self._workers, timeout=grace_s)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            if self._watch is not None:
                self._watch.cancel()
            self._tally.flush()

    async def ask(self, items: Sequence[Item], keys: Sequence[bytes]) -> list[Outcome]:
        """Ask the endpoint; gives one outcome per input, in order.

        Each call was announced by `expect`. Raises what stopped the pool.
        """
        if self.stopped_by is not None:
            raise self.stopped_by
        job = Job(items, keys)
        self._batcher.put(job)
        self._expected -= 1
        self._open_items += len(items)
        self._weigh_hunger()
        self._flush_if_due()
        if not items:
            return []
        self._jobs.add(job)
        try:
            await job.done.wait()
        finally:
            self._jobs.discard(job)
        if job.failure is not None:
            raise job.failure
        assert None not in job.outcomes
        return cast("list[Outcome]", job.outcomes)

    def expect(self) -> None:
        """Say that one more `ask` will come, so that it is worth waiting for to fill a batch."""
        self._expected += 1
        self._weigh_hunger()

    async def hungry(self) -> None:
        """Wait until more input is worth having: enough to keep `concurrency` requests full."""
        await self._hungry.wait()

    def _weigh_hunger(self) -> None:
        if self._expected < MOST_EXPECTED and self._open_items < self._enough_items:
            self._hungry.set()
        else:
            self._hungry.clear()

    def no_more_input(self) -> None:
        """Say that nothing more will be announced."""
        self._input_ended = True
        self._flush_if_due()

    def input_blocked(self, blocked: bool) -> None:
        """Say whether new input must wait until the oldest is answered."""
        self._input_blocked = blocked
        self._flush_if_due()

    def stop(self, reason: BaseException) -> None:
        """End early: nothing more is sent, requests in flight are awaited, jobs get `reason`."""
        if self.stopped_by is not None:
            return
        self.stopped_by = reason
        for worker in self._workers:
            if worker not in self._sending and worker is not asyncio.current_task():
                worker.cancel()
        self._hungry.set()
        for job in self._jobs:
            job.failure = reason
            job.done.set()
        self._tally.flush()

    def _flush_if_due(self) -> None:
        """Send a smaller batch where no input can come to fill it.

        That is so at the end, and where the reader waits for what waits here.
        """
        stalled = self._input_blocked and not self._batcher.outstanding
        if not self._expected and (self._input_ended or stalled):
            self._batcher.flush()

    async def _work(self, *, first: bool) -> None:
        try:
            if not first:
                await self._introduction.met.wait()
            while self.stopped_by is None and (batch := await self._batcher.take()) is not None:
                if first:
                    await self._meet(batch)
                    first = False
                else:
                    await self._answer(batch)
                self._batcher.finished()
                self._flush_if_due()
        except _StoppedError:
            pass
        except asyncio.CancelledError:
            # Those that wait for its batch would wait for ever.
            self.stop(StoppedEarly("A worker was cancelled. Run the same command again."))
            raise
        except Exception as reason:  # noqa: BLE001  (handed to every job, and raised there)
            self.stop(reason)

    async def _meet(self, batch: Batch) -> None:
        """Meet the endpoint with the first batch; see `introduction`."""
        client, introduction = self._client, self._introduction
        self._first_batch = batch
        permits = reply = refusal = None
        if not client.knows_dialect:
            permits = await self._until_answered(self._discover)
        if not client.knows_dialect and client.dialect.name == "hf":
            more = not self._input_ended or self._expected > 0 or self._batcher.waiting
            verdict = await introduction.check_batching(batch, more_to_come=more)
            self._dialect_settled = True
            for alone, rejection in verdict.rejected:
                await self._reject(alone, rejection)
            batch, reply, refusal = verdict.rest, verdict.reply, verdict.refusal
        self._dialect_settled = True
        if client.dialect.most_texts is not None:
            self._batcher.size.cap(client.dialect.most_texts)
        if permits is not None:
            self._limit.cap(permits // self._batcher.size.now)
        if reply is not None:
            self._settle(batch, reply)
        elif refusal is not None and len(batch) > 1 and client.dialect.most_texts != 1:
            await self._split(batch, refusal)
        elif batch.spans:
            await self._answer(batch)
        introduction.met.set()

    async def _discover(self, probing: bool, retry: bool) -> int | None:  # noqa: ARG002
        await self._turnstile.pass_through(lambda: True)
        try:
            permits = await self._client.discover()
        except Retryable as failure:
            # A page that fails for good says nothing about the endpoint itself.
            self._undiscovered += 1
            if failure.status in (None, 429, 503) or self._undiscovered < MOST_INFO:
                raise
            permits = None
        if probing:
            self._gate.open()
        return permits

    async def _ask_first(self, batch: Batch) -> Reply:
        """Ask for the introduction: an answer that stays unreadable goes through as Retryable."""
        attempt = partial(self._attempt, batch)
        return await self._until_answered(attempt, self._first_batch, patient=False)

    async def _answer(self, batch: Batch) -> int:
        """Give every input of the batch its outcome, splitting off the ones that are at fault.

        Gives how many of them failed.
        """
        most = self._client.dialect.most_texts
        if most is not None and len(batch) > most:
            return sum([await self._answer(half) for half in batch.halves()])
        try:
            reply = await self._until_answered(partial(self._attempt, batch), batch)
        except RowsRejected as rejection:
            return await self._split(batch, rejection)
        return self._settle(batch, reply)

    async def _split(self, batch: Batch, rejection: RowsRejected) -> int:
        """Answer the halves of a batch that was refused; gives how many inputs failed."""
        if len(batch) == 1:
            return await self._reject(batch, rejection)
        failed = sum([await self._answer(half) for half in batch.halves()])
        if not failed and self._batcher.size.refused(len(batch)):
            self._emit(SmallerBatches(self._batcher.size.now, len(batch), str(rejection)))
        return failed

    def _settle(self, batch: Batch, reply: Reply) -> int:
        # Stored in any case: it is paid for, and another run may be of this revision.
        self.save(batch.keys, reply.outcomes, reply.revision)
        self._batcher.size.answered(len(batch))
        self._revision.observe(reply.revision)
        if self._known_good is None and type(reply.outcomes[0]) is not RowError:
            self._known_good = batch.part(0)
        return self._count(batch, reply.outcomes)

    async def _reject(self, batch: Batch, rejection: RowsRejected) -> int:
        outcomes: list[Outcome] = [RowError(str(rejection))]
        self.save(batch.keys, outcomes, None)
        hopeless = self._known_good is None and self._failed_items + 1 >= HOPELESS
        if hopeless and not self._request_checked:
            self._request_checked = True
            await self._check_request(batch, rejection)
        return self._count(batch, outcomes)

    async def _check_request(self, rejected: Batch, rejection: RowsRejected) -> None:
        """Ask for a text that no model refuses, to tell rows at fault from a request at fault.

        Raises EndpointRefused where that is rejected too.
        """
        batch = plain_batch(like=rejected)
        try:
            await self._until_answered(partial(self._attempt, batch), batch)
        except RowsRejected as refusal:
            if refusal.status not in (400, 413, 422):
                return  # it kept failing for another reason, which tells nothing
            raise EndpointRefused(
                f"The endpoint rejected the first {HOPELESS} inputs, each on its own, and the text "
                f"{PLAIN!r} as well. Of the last input it said: {rejection}. Check the settings of "
                "the request (model, function_to_apply, truncate, dialect); the run resumes then.",
                status=rejection.status,
            ) from None
        self._known_good = batch

    def _count(self, batch: Batch, outcomes: list[Outcome]) -> int:
        failed = batch.settle(outcomes)
        self._open_items -= len(batch)
        self._weigh_hunger()
        self._failed_items += failed
        self._tally.answered(len(batch), failed)
        if self._allowed_errors is not None and self._failed_items > self._allowed_errors:
            last = next(o.message for o in reversed(outcomes) if isinstance(o, RowError))
            raise TooManyErrors(
                f"{self._failed_items} inputs failed, more than max_errors allows "
                f"({self._config.max_errors}). The last one: {last}. What was answered is kept; "
                "mend the cause or raise max_errors, then run again."
            )
        return failed

    async def _until_answered(
        self,
        attempt: Callable[[bool, bool], Awaitable[T]],
        batch: Batch | None = None,
        *,
        patient: bool = True,
    ) -> T:
        """Attempt something as often as its failures allow.

        `attempt` gets whether it is the gate's probe, and whether it is a retry. An outage is
        probed with one input, which was answered before or is one of `batch`. Raises RowsRejected
        to have a batch split, and, where not `patient`, Retryable for an answer that is
        unreadable twice.
        """
        failures: Failures | None = None
        successes_before = self._successes
        retry = False
        while True:
            if self.stopped_by is not None:
                raise _StoppedError
            probing = await self._gate.enter()
            try:
                if probing and (light := self._light_probe(batch)) is not None:
                    with suppress(RowsRejected):  # that text is refused, so somebody is there
                        await self._attempt(light, probing, retry)
                        self._known_good = light
                    continue
                return await attempt(probing, retry)
            except _GateClosedError:
                continue
            except Retryable as failure:
                retry = True
                # A readable server that answers otherwise than asked is not loading any more.
                if self._gate.wait_for_model and failure.cause is Cause.UNREADABLE:
                    self._gate.open()
                elif probing:
                    await self._gate.probe_failed(failure)
                    continue
                failures = failures or Failures()
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

    def _light_probe(self, batch: Batch | None) -> Batch | None:
        """One input to probe an outage with, to tell it from a batch the endpoint fails on."""
        if self._gate.why is not Why.OUTAGE:
            return None
        if self._known_good is not None or batch is None or len(batch) == 1:
            return self._known_good
        return batch.part(self._gate.failures % len(batch))

    def _judge(self, failure: Retryable, *, others_answered: bool) -> None:
        """Find out whose fault it is that one request keeps failing.

        Raises RowsRejected where it is the rows', EndpointRefused where this is no such endpoint;
        otherwise it is an outage.
        """
        if others_answered:
            raise RowsRejected(failure.status or 0, _given_up(failure)) from failure
        if failure.cause is Cause.UNREADABLE and self._known_good is None:
            raise EndpointRefused(
                f"This does not speak the Hugging Face Inference API: {failure}. Check the "
                "address and the dialect.",
                status=failure.status,
            ) from failure

    async def _hold_back(self, failure: Retryable, failures: Failures, *, exhausted: bool) -> None:
        """Wait before the next attempt, alone or with all others, as the cause asks."""
        now = self._clock.now()
        trouble_since = max(self._last_success_at, failures.first_at)
        left_s = trouble_since + self._config.max_outage_s - now
        match failure.cause:
            case Cause.LOADING:
                self._gate.close(Why.LOADING, failure, now)
            case Cause.THROTTLED:
                self._pause_all(failure, failures)
            case _ if exhausted or left_s <= 0 or not self._budget.spend():
                self._gate.close(Why.OUTAGE, failure, trouble_since)
            case _:
                await self._clock.sleep(min(backoff_s(failures.total - 1, self._clock), left_s))

    def _pause_all(self, failure: Retryable, failures: Failures) -> None:
        """Make everybody wait as long as the endpoint says, else longer each time."""
        now = self._clock.now()
        silent_s = now - max(self._last_success_at, failures.first_at)
        # A hint of 0 tells nothing that a 429 does not contradict.
        wait_s = failure.wait_s or backoff_s(self._throttles, self._clock)
        if silent_s + wait_s > self._config.max_outage_s:
            raise StoppedEarly(
                f"The endpoint throttles and asks for a pause of {wait_s:.0f} s after "
                f"{silent_s:.0f} s without an answer; together more than max_outage_s allows. "
                f"It said: {failure}. Run the same command again later to continue."
            )
        wait_s *= self._clock.jitter(1.0, 1.1)
        if self._turnstile.pause(wait_s):
            self._throttles += 1
        self._emit(Waiting(Why.THROTTLED, wait_s, str(failure)))

    def _alive(self) -> None:
        """Note an answer that only a living model gives."""
        self._successes += 1
        self._throttles = 0
        self._last_success_at = self._clock.now()
        self._budget.earn()
        if self._dialect_settled:
            self._introduction.met.set()
        if not self._gate.is_open:
            self._budget.renew()
            self._gate.open()

    async def _attempt(self, batch: Batch, probing: bool, retry: bool) -> Reply:
        """Send one request, once there is a permit and a token for it.

        Raises _GateClosedError where the gate closed while this attempt waited its turn, and
        _StoppedError where the pool stopped meanwhile.
        """
        await self._limit.acquire()
        try:
            if not await self._turnstile.pass_through(lambda: probing or self._gate.is_open):
                raise _GateClosedError
            if self.stopped_by is not None:
                raise _StoppedError
            return await self._send(batch, probing=probing, retry=retry)
        finally:
            self._limit.release()

    async def _send(self, batch: Batch, *, probing: bool, retry: bool) -> Reply:
        """Send one request now, and learn from what comes of it."""
        most = self._config.max_requests
        if most is not None and self._requests >= most:
            raise StoppedEarly(
                f"Sent {most} requests, all that max_requests allows. Run the same command again "
                "to continue."
            )
        self._requests += 1
        task = cast("asyncio.Task[None]", asyncio.current_task(self._loop))
        self._tally.sent(retry=retry)
        self._sending[task] = started = self._clock.now()
        if self._watch is None:
            self._watch_over(self._config.timeout_s)
        status: int | None = None
        cause: str | None = "cancelled"
        try:
            reply = await self._client.ask(batch.items, wait_for_model=self._gate.wait_for_model)
            status, cause = 200, None
            self._alive()
        except (Retryable, RowsRejected, EndpointRefused, asyncio.CancelledError) as failure:
            if isinstance(failure, asyncio.CancelledError) or task in self._overdue:
                failure = self._timed_out(task)
            status = failure.status
            cause = type(failure).__name__
            if isinstance(failure, Retryable):
                cause = failure.cause.value
            self._learn(failure)
            if self.stopped_by is not None:
                raise _StoppedError from failure
            raise failure from None
        finally:
            del self._sending[task]
            if self._overdue:
                self._forgive(task)
            seconds = self._clock.now() - started
            self._tally.ended(status, cause, seconds)
        if not probing:  # a probe may have been held until the model was loaded
            self._limit.succeeded(seconds)
        if reply.pause_s:
            self._turnstile.pause(min(reply.pause_s, self._config.max_outage_s))
        return reply

    def _watch_over(self, seconds: float) -> None:
        self._watch = self._loop.call_later(seconds, self._end_overdue)

    def _end_overdue(self) -> None:
        """Cancel the attempts that have taken `timeout_s`.

        One alarm for all, since all may take equally long: aiohttp sets one for each request,
        which is a good part of what a request costs.
        """
        self._watch = None
        now, left_s = self._clock.now(), 0.0
        for task, started in self._sending.items():
            left_s = started + self._config.timeout_s - now
            if left_s > 0:
                break
            self._overdue[task] = self._overdue.get(task, 0) + 1
            task.cancel()
        if self._sending:
            # A cancellation may get lost on its way: what does not end is cancelled again.
            self._watch_over(CANCEL_AGAIN_S if self._overdue else left_s)

    def _forgive(self, task: asyncio.Task[None]) -> bool:
        """Take back what the alarm asked of a task; gives whether it had asked."""
        times = self._overdue.pop(task, 0)
        for _ in range(times):
            task.uncancel()
        return times > 0

    def _timed_out(self, task: asyncio.Task[None]) -> Retryable:
        """Give the failure of an attempt that was cancelled for being overdue.

        Raises CancelledError where it was cancelled for another reason, too.
        """
        if not self._forgive(task) or task.cancelling():
            raise asyncio.CancelledError
        seconds = self._config.timeout_s
        return Retryable(Cause.TIMEOUT, f"no answer within {seconds:g} s (timeout_s)")

    def _learn(self, failure: Exception) -> None:
        """Let the limits hear of an attempt that failed."""
        if isinstance(failure, RowsRejected):
            self._alive()
        if not isinstance(failure, Retryable):
            return
        if failure.cause in (Cause.THROTTLED, Cause.OVERLOADED, Cause.TIMEOUT):
            self._limit.overloaded()
        if failure.cause is Cause.THROTTLED:
            self._turnstile.throttled()


def _given_up(failure: Retryable) -> str:
    return f"{failure} (given up after several attempts, while other rows were answered)"
