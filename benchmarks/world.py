"""What a simulated run meets: workers that die, freeze or are slow, and endpoints, as models.

A request goes from the driver to a worker, from there to the endpoint, and back the same way. The
crew follows pipeline/engines: a request goes to the living worker that has the fewest; one that is
silent gets none, and is dismissed later, when what it had in flight is asked again.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pipeline.client import Reply, dialect_of
from pipeline.errors import Cause, Retryable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtual import Core

    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

# As in pipeline/engines: a worker that was not heard of for so long gets no requests, and is given
# up after so long. Another one takes its place, which a cluster starts in about so long.
SILENT_S = 1.5
DISMISSED_S = 10.0
REPLACED_S = 30.0
# One way between driver and worker, and between worker and endpoint: from, to, and a stall that one
# in a hundred has on top, on average.
WIRE_S = (0.0005, 0.002)
STALL_S = 0.05
STALLED = 0.01

ANSWER: Outcome = (("POSITIVE", 0.98765),)


class Said(NamedTuple):
    """What an endpoint says to a request, and how long after it came."""

    seconds: float
    refusal: tuple[Cause, int, float | None] | None = None


class Endpoint(Protocol):
    """What answers requests; `take` is called in the order in which they arrive."""

    def take(self, now: float, texts: int) -> Said: ...


class Replicas:
    """So many requests are worked on at once, first come, first served; the others wait."""

    def __init__(
        self, slots: int, fixed_s: float, text_s: float = 0.0, *, spread: float = 0.2, seed: int = 1
    ) -> None:
        self._free = [0.0] * slots
        self._fixed_s, self._text_s, self._spread = fixed_s, text_s, spread
        self._random = random.Random(seed)

    def take(self, now: float, texts: int) -> Said:
        service_s = self._fixed_s + self._text_s * texts
        if self._spread:
            service_s *= self._random.lognormvariate(-(self._spread**2) / 2, self._spread)
        ends = max(now, self._free[0]) + service_s
        heapq.heapreplace(self._free, ends)
        return Said(ends - now)


@dataclass
class Limited:
    """Lets so many requests a second through, after a pause `burst` of them at once; else 429."""

    inner: Endpoint
    per_s: float
    burst: float
    retry_after_s: float | None = None
    _allowance: float = field(init=False)
    _seen_at: float = 0.0

    def __post_init__(self) -> None:
        self._allowance = self.burst

    def take(self, now: float, texts: int) -> Said:
        earned = self.per_s * (now - self._seen_at)
        self._allowance, self._seen_at = min(self.burst, self._allowance + earned), now
        if self._allowance < 1:
            return Said(0.001, (Cause.THROTTLED, 429, self.retry_after_s))
        self._allowance -= 1
        return self.inner.take(now, texts)


@dataclass
class Cold:
    """Answers 503, with an estimate, until the model is loaded."""

    inner: Endpoint
    loaded_at: float
    estimate_s: float | None = 20.0
    refused: int = 0

    def take(self, now: float, texts: int) -> Said:
        if now < self.loaded_at:
            self.refused += 1
            return Said(0.001, (Cause.LOADING, 503, self.estimate_s))
        return self.inner.take(now, texts)


@dataclass(eq=False)
class Exchange:
    """A request on its way, and whether the endpoint has seen it."""

    worker: Worker
    texts: int
    answered: asyncio.Future[Said]
    arrived: bool = False


@dataclass(eq=False)
class Worker:
    """A worker; `slow` is by how much longer its requests take, `silent_at` since when it is."""

    number: int
    slow: float = 1.0
    in_flight: dict[Exchange, None] = field(default_factory=dict)
    late: list[tuple[Exchange, Said]] = field(default_factory=list)
    silent_at: float | None = None
    employed: bool = True


class World:
    """The workers of a run and their endpoint, with what was counted there."""

    def __init__(
        self, workers: int, endpoint: Endpoint, *, slow: float = 0.0, slowness: float = 10.0,
        seed: int = 1,
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(seed)
        self.endpoint = endpoint
        self.workers = [Worker(i) for i in range(workers)]
        for each in self._random.sample(self.workers, round(slow * workers)):
            each.slow = slowness
        # By requests in flight; an entry that is not true any more is passed over.
        self._numbers = count()
        self._order = [(0, each.number, next(self._numbers), each) for each in self.workers]
        self.arrivals: list[float] = []
        self.refusals: list[float] = []
        self.repeated = self.lost = 0

    def one_way_s(self) -> float:
        stall = self._random.expovariate(1 / STALL_S) if self._random.random() < STALLED else 0.0
        return self._random.uniform(*WIRE_S) + stall

    def _rank(self, worker: Worker) -> None:
        heapq.heappush(
            self._order, (len(worker.in_flight), worker.number, next(self._numbers), worker)
        )

    def _choose(self) -> Worker | None:
        now = self._loop.time()
        while self._order:
            in_flight, _, _, worker = self._order[0]
            heard = worker.silent_at is None or now - worker.silent_at < SILENT_S
            if worker.employed and heard and in_flight == len(worker.in_flight):
                return worker
            heapq.heappop(self._order)
        return None

    async def exchange(self, texts: int) -> Said:
        """Have a request sent by a worker; again by another one if that is lost."""
        while True:
            while (worker := self._choose()) is None:  # noqa: ASYNC110  (in virtual time)
                await asyncio.sleep(0.1)
            exchange = Exchange(worker, texts, self._loop.create_future())
            worker.in_flight[exchange] = None
            self._rank(worker)
            delay_s = self.one_way_s() + self.one_way_s()
            self._loop.call_later(delay_s, self._arrive, exchange)
            try:
                return await exchange.answered
            except LostError:
                self.repeated += texts if exchange.arrived else 0
            finally:
                if worker.in_flight.pop(exchange, 0) is None:
                    self._rank(worker)

    def _arrive(self, exchange: Exchange) -> None:
        worker = exchange.worker
        if worker.silent_at is not None or exchange.answered.done():
            return  # it never left the worker
        exchange.arrived = True
        now = self._loop.time()
        self.arrivals.append(now)
        said = self.endpoint.take(now, exchange.texts)
        if said.refusal is not None:
            self.refusals.append(now)
        back_s = said.seconds * worker.slow + self.one_way_s() + self.one_way_s()
        self._loop.call_later(back_s, self._deliver, exchange, said)

    def _deliver(self, exchange: Exchange, said: Said) -> None:
        if exchange.answered.done():
            return
        if exchange.worker.silent_at is not None:
            exchange.worker.late.append((exchange, said))
        else:
            exchange.answered.set_result(said)

    def silence(self, worker: Worker) -> None:
        """A node dies, or freezes: nothing is heard of it any more."""
        if worker.silent_at is None and worker.employed:
            worker.silent_at = now = self._loop.time()
            self._loop.call_later(DISMISSED_S, self._dismiss, worker, now)

    def wake(self, worker: Worker) -> None:
        """A node that was frozen goes on; if it was dismissed, nobody hears it."""
        worker.silent_at = None
        if worker.employed:
            for exchange, said in worker.late:
                self._deliver(exchange, said)
            self._rank(worker)
        worker.late.clear()

    def _dismiss(self, worker: Worker, silent_at: float) -> None:
        if worker.silent_at != silent_at:
            return
        self.lost += 1
        worker.employed = False
        for exchange in list(worker.in_flight):
            if not exchange.answered.done():
                exchange.answered.set_exception(LostError())
        self._loop.call_later(REPLACED_S, self._replace, worker)

    def _replace(self, worker: Worker) -> None:
        fresh = Worker(worker.number, worker.slow)
        self.workers[worker.number] = fresh
        self._rank(fresh)

    async def fail(self, mean_s: float, frozen_s: float | None = None) -> None:
        """Let each node fail once in `mean_s` on average; for `frozen_s`, or for good."""
        while True:
            await asyncio.sleep(self._random.expovariate(len(self.workers) / mean_s))
            worker = self._random.choice(self.workers)
            self.silence(worker)
            if frozen_s is not None:
                self._loop.call_later(frozen_s, self.wake, worker)

    def worst_second(self, since: float = 0.0) -> int:
        """Return how many requests arrived in the worst second."""
        return worst_second([at for at in self.arrivals if at >= since])


class LostError(Exception):
    """The worker that had the request is dismissed."""


def worst_second(times: list[float]) -> int:
    """Return the most of some ascending times in any second."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


class SimulatedClient:
    """Stands for the client: what a request costs the driver, and what comes of it."""

    knows_dialect = ready = True
    address = "http://127.0.0.1:1"

    def __init__(
        self, config: RunConfig, world: World, core: Core, request_s: float, answer_s: float
    ) -> None:
        self.dialect = dialect_of("hf", config)
        self._world, self._core = world, core
        self._request_s, self._answer_s = request_s, answer_s

    async def ask(
        self,
        items: Sequence[Item],
        *,
        wait_for_model: bool = False,  # noqa: ARG002
        together: bool = False,  # noqa: ARG002
    ) -> Reply:
        await self._core.work(self._request_s / 2)
        said = await self._world.exchange(len(items))
        good = said.refusal is None
        await self._core.work(self._request_s / 2 + (self._answer_s * len(items) if good else 0.0))
        if said.refusal is not None:
            cause, status, wait_s = said.refusal
            raise Retryable(cause, cause.value, status=status, wait_s=wait_s)
        return Reply([ANSWER] * len(items), None, None)
