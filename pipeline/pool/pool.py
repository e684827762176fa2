"""The pool: workers that turn batches into outcomes through everything that an endpoint can do."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pipeline.errors import StoppedEarly
from pipeline.pool.attempt import Attempts, StoppedError
from pipeline.pool.batching import OVERTAKING, Batcher, Job
from pipeline.pool.demand import Demand
from pipeline.pool.gate import Gate
from pipeline.pool.introduction import Introduction
from pipeline.pool.patience import Patience
from pipeline.pool.search import Search, Setting
from pipeline.pool.splitting import Splitting
from pipeline.pool.tally import Tally
from pipeline.pool.together import Together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.client import Client
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Arrived, Item, Provisional
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop


class Pool:
    """Answers inputs; `async with` starts the workers and drains them.

    One worker has one request in flight at most. Once `stop` is asked, whatever the reason, nothing
    more is sent: workers that wait are cancelled, requests in flight are awaited and their answers
    handed out, and every open `ask` raises the reason. What ends the pool itself asks it, too.
    `demand` says how much input is wanted.

    `requests_sent` were sent by earlier passes of this run; they count towards `max_requests`.
    """

    def __init__(
        self,
        config: RunConfig,
        client: Client,
        clock: Clock,
        emit: Observer,
        stop: Stop,
        *,
        requests_sent: int = 0,
    ) -> None:
        self._config = config
        self._stop = stop
        self.tally = tally = Tally(emit, self._limits, stop.ask)
        self._batcher = Batcher(config.texts_per_request, OVERTAKING * config.concurrency)
        # Beside a full window, so that the next batches are of similar length too, those in flight.
        self.demand = Demand(self._batcher, (OVERTAKING + 1) * config.concurrency, stop)
        gate = Gate(config, clock, tally.emit)
        self._attempts = Attempts(config, client, gate, clock, tally, stop, requests_sent)
        patience = Patience(config, self._attempts, gate, clock, tally.emit, stop)
        self._together = Together(patience, self._attempts, self._more, tally.emit)
        tells = config.most_texts > 1 and config.endpoint != "local" and not config.exact_scores
        if tells or config.batch_size == "auto":
            most = Setting(config.most_texts, config.concurrency, tells)
            fixed = config.batch_size != "auto"
            search = Search(most, config.timeout_s, clock, self._apply, fixed=fixed)
            self._attempts.search, self._batcher.size.on_refusal = search, search.refused
            self._together.on_refusal = search.never_together
        self._splitting = Splitting(
            client, patience, self._batcher.size, self._together, tally.emit, self._settled
        )
        self._introduction = Introduction(
            client, patience, self._splitting, self._attempts, self._batcher.size, tally.emit
        )
        # All that changes here; what else does is in the objects above, each its own.
        self._jobs: set[Job] = set()
        self._workers: list[asyncio.Task[None]] = []
        self._hearing = ExitStack()

    def _more(self) -> bool:
        return self._batcher.waiting

    def _apply(self, setting: Setting, steady: Setting) -> None:
        if self._config.batch_size == "auto":
            self._batcher.size.aim(setting.texts, steady.texts)
            self._attempts.limit.aim(setting.requests)
        self._together.aim(setting, steady)

    def _limits(self) -> tuple[int, float | None]:
        return self._attempts.limit.limit, self._attempts.turnstile.rate

    def _settled(self, inputs: int, failed: int) -> None:
        self.demand.settled(inputs)
        self.tally.answered(inputs, failed)

    async def __aenter__(self) -> Self:
        self._workers = [
            asyncio.create_task(self._work(first=i == 0), name=f"worker-{i}")
            for i in range(self._config.concurrency)
        ]
        self._hearing.enter_context(self._stop.heard_by(self._end))
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        """Let the requests in flight end, after a stop for no longer than the grace."""
        try:
            if error is not None:
                self._stop.ask(error)
            self._batcher.close()
            self._introduction.over()
            if not isinstance(error, asyncio.CancelledError):
                grace_s = self._config.grace_s if self._stop.reason else None
                await asyncio.wait(self._workers, timeout=grace_s)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
            self._hearing.close()
            self._attempts.alarm.close()
            self.tally.flush()

    async def ask(
        self, items: Sequence[Item], arrived: Arrived, provisional: Provisional | None = None
    ) -> None:
        """Have inputs answered, which `demand.expect` announced; returns once all are.

        `arrived` gets the outcomes as they come, request by request; `provisional` keeps those
        that cannot be believed yet. Raises what stopped the pool.
        """
        self._stop.check()
        job = Job(items, arrived, provisional)
        self._batcher.put(job)
        self.demand.came(len(items))
        if not items:
            return
        self._jobs.add(job)
        try:
            await job.done.wait()
        finally:
            self._jobs.discard(job)
        if job.failure is not None:
            raise job.failure

    def _end(self, reason: BaseException) -> None:
        """Send nothing more; requests in flight go on."""
        for worker in self._workers:
            if not self._attempts.alarm.watches(worker) and worker is not asyncio.current_task():
                worker.cancel()
        self.demand.stop()
        for job in self._jobs:
            job.failure = reason
            job.done.set()
        self.tally.flush()

    async def _work(self, *, first: bool) -> None:
        try:
            if not first:
                await self._introduction.made()
            while self._stop.reason is None and (batch := await self._batcher.take()) is not None:
                if first:
                    await self._introduction.meet(batch, self.demand)
                    first = False
                else:
                    await self._splitting.answer(batch)
                if self._batcher.outstanding == 1 and not self._batcher.due:
                    await self._splitting.conclude()
                self.demand.batch_finished()
        except StoppedError:
            pass
        except asyncio.CancelledError:
            # Those that wait for its batch would wait without end.
            self._stop.ask(StoppedEarly("A worker was cancelled.", "Run the same command again."))
            raise
        except Exception as reason:  # noqa: BLE001  (handed to every job, and raised there)
            self._stop.ask(reason)
