"""The pool: workers that turn batches into outcomes through everything that an endpoint can do."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from pipeline.errors import StoppedEarly
from pipeline.pool.attempt import Quota, StoppedError
from pipeline.pool.batching import Batcher, Job, overtaking
from pipeline.pool.demand import Demand
from pipeline.pool.fleet import Fleet, Member
from pipeline.pool.server import Server
from pipeline.pool.tally import Tally
from pipeline.pool.turnstile import limiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.client import Client
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Arrived, Item, Provisional
    from pipeline.pool.batching import Batch
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop


class Pool:
    """Answers inputs; `async with` starts the workers and drains them.

    Each server has workers of its own, and one worker has one request in flight at most. Once
    `stop` is asked, whatever the reason, nothing more is sent: workers that wait are cancelled,
    requests in flight are awaited and their answers handed out, and every open `ask` raises the
    reason. What ends the pool itself asks it, too. `demand` says how much input is wanted.

    `requests_sent` were sent by earlier passes of this run; they count towards `max_requests`.
    """

    def __init__(
        self,
        config: RunConfig,
        clients: Sequence[Client],
        clock: Clock,
        emit: Observer,
        stop: Stop,
        *,
        requests_sent: int = 0,
    ) -> None:
        self._config = config
        self._stop = stop
        self.tally = tally = Tally(emit, self._limits, stop.ask)
        self._batcher = Batcher(overtaking(config.concurrency))
        self.demand = Demand(self._batcher, self._enough, stop)
        stated = limiter(config.rate) if config.rate else None
        quota = Quota(config.max_requests, requests_sent, stated)
        make: Callable[..., Server] = Server
        if config.is_list:
            make = partial(Member, Fleet(stop, allow_drift=config.allow_drift))
        self._servers = [
            make(
                mine,
                client,
                clock,
                tally=tally,
                batcher=self._batcher,
                quota=quota,
                stop=stop,
                settled=self._settled,
            )
            for client, mine in zip(clients, _shares(config, len(clients)), strict=True)
        ]
        # All that changes here; what else does is in the objects above, each its own.
        self._jobs: set[Job] = set()
        self._workers: dict[asyncio.Task[None], Server] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._hearing = ExitStack()

    def _enough(self) -> int:
        """How many inputs keep all requests full; beside a full window those in flight."""
        in_flight = sum([each.config.concurrency * each.size.now for each in self._servers])
        largest = max([each.size.now for each in self._servers])
        return in_flight + overtaking(self._config.concurrency) * largest

    def _limits(self) -> tuple[int, float | None]:
        rates = [server.attempts.turnstile.rate for server in self._servers]
        limits = [server.attempts.limit.limit for server in self._servers]
        known = [rate for rate in rates if rate is not None]
        return sum(limits), sum(known) if len(known) == len(rates) else self._config.rate

    def _settled(self, inputs: int, failed: int) -> None:
        self.demand.settled(inputs)
        self.tally.answered(inputs, failed)

    async def __aenter__(self) -> Self:
        for server in self._servers:
            if isinstance(server, Member):
                keeping = asyncio.create_task(self._keep(server), name=f"keeper-{server.address}")
                self._keepers.append(keeping)
            for i in range(server.config.concurrency):
                if isinstance(server, Member):
                    work = self._work_in_fleet(server)
                else:
                    work = self._work(server, first=i == 0)
                name = f"worker-{len(self._workers)}"
                self._workers[asyncio.create_task(work, name=name)] = server
        self._hearing.enter_context(self._stop.heard_by(self._end))
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _tb: object) -> None:
        """Let the requests in flight end, after a stop for no longer than the grace."""
        try:
            if error is not None:
                self._stop.ask(error)
            self._batcher.close()
            for keeper in self._keepers:
                keeper.cancel()
            for server in self._servers:
                server.over()
            if not isinstance(error, asyncio.CancelledError):
                grace_s = self._config.grace_s if self._stop.reason else None
                await asyncio.wait(self._workers, timeout=grace_s)
        finally:
            for worker in self._workers:
                worker.cancel()
            await asyncio.gather(*self._keepers, *self._workers, return_exceptions=True)
            self._hearing.close()
            for server in self._servers:
                server.attempts.alarm.close()
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
        for keeper in self._keepers:
            if keeper is not asyncio.current_task():
                keeper.cancel()
        for worker, server in self._workers.items():
            watched = server.attempts.alarm.watches(worker)
            if not watched and worker is not asyncio.current_task():
                worker.cancel()
        self.demand.stop()
        for job in self._jobs:
            job.failure = reason
            job.done.set()
        self.tally.flush()

    async def _work(self, server: Server, *, first: bool) -> None:
        with self._ending():
            if not first:
                await server.introduction.made()
            while self._stop.reason is None:
                batch = await self._take(server)
                if batch is None:
                    break
                if first:
                    await server.introduction.meet(batch, self.demand)
                    first = False
                else:
                    await server.splitting.answer(batch)
                await self._finished(server)

    async def _work_in_fleet(self, server: Member) -> None:
        with self._ending():
            while self._stop.reason is None:
                await server.works.wait()
                batch = await self._take(server)
                if batch is None:
                    break
                if server.works.is_set():
                    await server.splitting.answer(batch)
                else:
                    self._batcher.give_back(batch)
                await self._finished(server)

    async def _take(self, server: Server) -> Batch | None:
        """Wait until the server has room for a request, then for a batch."""
        limit = server.attempts.limit
        await limit.room()
        batch = await self._batcher.take(server.size)
        if batch is None:
            limit.leave()
        return batch

    async def _keep(self, server: Member) -> None:
        try:
            await server.keep()
        except Exception as reason:  # noqa: BLE001  (handed to every job, and raised there)
            self._stop.ask(reason)

    async def _finished(self, server: Server) -> None:
        if self._batcher.outstanding == 1 and not self._batcher.is_due(server.size):
            for each in self._servers:
                await each.splitting.conclude()
        self.demand.batch_finished()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """End the pool with what ends a worker."""
        try:
            yield
        except StoppedError:
            pass
        except asyncio.CancelledError:
            # Those that wait for its batch would wait without end.
            self._stop.ask(StoppedEarly("A worker was cancelled.", "Run the same command again."))
            raise
        except Exception as reason:  # noqa: BLE001  (handed to every job, and raised there)
            self._stop.ask(reason)


def _shares(config: RunConfig, servers: int) -> list[RunConfig]:
    """Return the settings of each server, which share the concurrency."""
    if servers == 1:
        return [config]
    each, more = divmod(config.concurrency, servers)
    shares = [each + (i < more) for i in range(servers)]
    return [config.model_copy(update={"concurrency": share}) for share in shares]
