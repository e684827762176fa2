"""The pool: workers that turn batches into outcomes through everything an endpoint can do.

One worker has one request in flight at most, so the number of workers is the bound. `stop` is the
one way to end early, whatever the reason (a refusal, an outage, a signal, a limit): workers that
wait are cancelled, requests in flight are awaited and their answers kept.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from pipeline.errors import (
    Cause,
    EndpointRefused,
    Retryable,
    RowsRejected,
    StoppedEarly,
    TooManyErrors,
)
from pipeline.events import Answered, RequestEnded, RequestSent, Waiting
from pipeline.responses import RowError
from pipeline.workers.batching import Batch, Batcher, Job
from pipeline.workers.limits import Turnstile
from pipeline.workers.readiness import Gate, Why
from pipeline.workers.retry import Budget, Failures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.responses import Item, Outcome
    from pipeline.workers.client import Client, Reply
    from pipeline.workers.clock import Clock

    Save = Callable[[Sequence[bytes], Sequence[Outcome]], None]


class _StoppedError(Exception):
    """The pool is stopping: this worker gives up its batch."""


class Pool:
    """Answers inputs; `async with` starts the workers and drains them.

    Raises from `ask` whatever stopped the pool.
    """

    def __init__(
        self,
        config: RunConfig,
        client: Client,
        clock: Clock,
        emit: Observer,
        *,
        allowed_errors: int | None = None,
    ) -> None:
        self._config = config
        self._client = client
        self._clock = clock
        self._emit = emit
        self._allowed_errors = allowed_errors
        self._batcher = Batcher(config.texts_per_request)
        self._gate = Gate(config, clock, emit)
        self._turnstile = Turnstile(config.rate, clock)
        self._budget = Budget()
        self._jobs: set[Job] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[None] | None] = set()
        self._requests = self._failed_items = self._successes = 0
        self._last_success_at = clock.now()
        self._expected = 0
        self._input_blocked = self._input_ended = False
        self.save: Save = lambda _keys, _outcomes: None
        self.stopped_by: BaseException | None = None
        # What the endpoint last said of the model's revision (`x-sha`).
        self.revision: str | None = None

    async def __aenter__(self) -> Self:
        self._workers = [
            asyncio.create_task(self._work(), name=f"worker-{i}")
            for i in range(self._config.concurrency)
        ]
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        """Let the requests in flight end, after `stop` for no longer than the grace."""
        try:
            if error is not None:
                self.stop(error)
            self._batcher.close()
            if not isinstance(error, asyncio.CancelledError):
                grace_s = self._config.grace_s if self.stopped_by else None
                await asyncio.wait(self._workers, timeout=grace_s)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)

    async def ask(self, items: Sequence[Item], keys: Sequence[bytes]) -> list[Outcome]:
        """Ask the endpoint; gives one outcome per input, in order.

        Each call was announced by `expect`. Raises what stopped the pool.
        """
        if self.stopped_by is not None:
            raise self.stopped_by
        job = Job(items, keys)
        self._batcher.put(job)
        self._expected -= 1
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
        return [outcome for outcome in job.outcomes if outcome is not None]

    def expect(self) -> None:
        """Say that one more `ask` will come, so that it is worth waiting for to fill a batch."""
        self._expected += 1

    def no_more_input(self) -> None:
        """Say that nothing more will be announced."""
        self._input_ended = True
        self._flush_if_due()

    def input_blocked(self, blocked: bool) -> None:
        """Say whether new input must wait for old input to be answered."""
        self._input_blocked = blocked
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        """Send a smaller batch where no input can come to fill it.

        That is so at the end, and where the reader waits for what waits here.
        """
        stalled = self._input_blocked and not self._batcher.outstanding
        if not self._expected and (self._input_ended or stalled):
            self._batcher.flush()

    def stop(self, reason: BaseException) -> None:
        """End early: nothing more is sent, requests in flight are awaited, jobs get `reason`."""
        if self.stopped_by is not None:
            return
        self.stopped_by = reason
        for worker in self._workers:
            if worker not in self._sending and worker is not asyncio.current_task():
                worker.cancel()
        for job in self._jobs:
            job.failure = reason
            job.done.set()

    async def _work(self) -> None:
        try:
            while self.stopped_by is None and (batch := await self._batcher.take()) is not None:
                await self._answer(batch)
                self._batcher.finished()
                self._flush_if_due()
        except _StoppedError:
            pass
        except Exception as reason:  # noqa: BLE001  (handed to every job, and raised there)
            self.stop(reason)

    async def _answer(self, batch: Batch) -> None:
        """Give every input of the batch its outcome, splitting off the ones that are at fault."""
        try:
            reply = await self._ask_until_answered(batch)
        except RowsRejected as rejection:
            if len(batch) == 1:
                self._settle(batch, [RowError(str(rejection))])
            else:
                for half in batch.halves():
                    await self._answer(half)
        else:
            self.revision = reply.revision or self.revision
            self._settle(batch, reply.outcomes)

    def _settle(self, batch: Batch, outcomes: list[Outcome]) -> None:
        failed = batch.settle(outcomes)
        self.save(batch.keys, outcomes)
        self._failed_items += failed
        self._emit(Answered(len(batch), failed))
        if self._allowed_errors is not None and self._failed_items > self._allowed_errors:
            raise TooManyErrors(
                f"{self._failed_items} inputs failed, more than max_errors allows "
                f"({self._config.max_errors}). The last one: {_last_error(outcomes)}. "
                "What was answered is kept; mend the cause or raise max_errors, then run again."
            )

    async def _ask_until_answered(self, batch: Batch) -> Reply:
        """Send a batch as often as its failures allow. Raises RowsRejected to have it split."""
        failures = Failures()
        successes_before = self._successes
        retry = False
        while True:
            probing = await self._gate.enter()
            try:
                reply = await self._attempt(batch, probing=probing, retry=retry)
            except RowsRejected:
                self._alive()
                raise
            except Retryable as failure:
                retry = True
                if probing:
                    await self._gate.probe_failed(failure)
                elif (exhausted := failures.add(failure)) and self._successes > successes_before:
                    # Others were answered meanwhile, so these rows are what the endpoint fails on.
                    raise RowsRejected(failure.status or 0, _given_up(failure)) from failure
                else:
                    await self._hold_back(failure, failures, exhausted=exhausted)
            else:
                if reply is not None:
                    self._alive()
                    return reply
            finally:
                if probing:
                    self._gate.leave()

    async def _hold_back(self, failure: Retryable, failures: Failures, *, exhausted: bool) -> None:
        """Wait before the next attempt, alone or with all others, as the cause asks."""
        match failure.cause:
            case Cause.LOADING:
                self._gate.close(Why.LOADING)
            case Cause.THROTTLED:
                self._pause_all(failure, failures)
            case _ if exhausted or not self._budget.spend():
                self._gate.close(Why.OUTAGE)
            case _:
                await self._clock.sleep(failures.backoff_s(self._clock))

    def _pause_all(self, failure: Retryable, failures: Failures) -> None:
        """Make everybody wait as long as the endpoint says, or as long as the backoff gives."""
        silent_s = self._clock.now() - self._last_success_at
        wait_s = failures.backoff_s(self._clock) if failure.wait_s is None else failure.wait_s
        if silent_s + wait_s > self._config.max_outage_s and wait_s > 0:
            raise StoppedEarly(
                f"The endpoint throttles and asks for a pause of {wait_s:.0f} s after "
                f"{silent_s:.0f} s without an answer; together more than max_outage_s allows. "
                f"It said: {failure}. Run the same command again later to continue."
            )
        wait_s *= self._clock.jitter(1.0, 1.1)
        self._turnstile.pause(wait_s)
        self._emit(Waiting(f"throttled: {failure}", wait_s))

    def _alive(self) -> None:
        """Note an answer that only a living model gives."""
        self._successes += 1
        self._last_success_at = self._clock.now()
        self._budget.earn()
        if not self._gate.is_open:
            self._budget.renew()
            self._gate.open()

    async def _attempt(self, batch: Batch, *, probing: bool, retry: bool) -> Reply | None:
        """Send one request; None where the gate closed while this attempt waited its turn."""
        if not await self._turnstile.pass_through(lambda: probing or self._gate.is_open):
            return None
        if self.stopped_by is not None:
            raise _StoppedError
        if self._config.max_requests is not None and self._requests >= self._config.max_requests:
            raise StoppedEarly(
                f"Sent {self._requests} requests, all that max_requests allows. Run the same "
                "command again to continue."
            )
        self._requests += 1
        task = asyncio.current_task()
        self._sending.add(task)
        self._emit(RequestSent(len(self._sending), retry))
        started = self._clock.now()
        status: int | None = None
        cause: str | None = "cancelled"
        try:
            reply = await self._client.ask(batch.items, wait_for_model=self._gate.wait_for_model)
            status, cause = reply.status, None
        except (Retryable, RowsRejected, EndpointRefused) as failure:
            status = getattr(failure, "status", None)
            cause = str(getattr(failure, "cause", "")) or type(failure).__name__
            if self.stopped_by is not None:
                raise _StoppedError from failure
            raise
        else:
            return reply
        finally:
            self._sending.discard(task)
            seconds = self._clock.now() - started
            self._emit(RequestEnded(len(batch), status, cause, seconds))


def _given_up(failure: Retryable) -> str:
    return f"{failure} (given up after several attempts, while other rows were answered)"


def _last_error(outcomes: Sequence[Outcome]) -> str:
    return next(o.message for o in reversed(outcomes) if type(o) is RowError)
