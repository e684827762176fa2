"""One simulated run: the package's own stream, pool and log of parts, in a simulated world.

Real: `pipeline.job.stream.Stream` (reading, memory between reading and commit, the choice of what
is committed), `pipeline.pool.Pool` with all that it holds. Modelled: time of the driver's core,
wire, workers, endpoint, and storage; see world.py.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import virtual
from virtual import Core, LoopClock, Stage
from world import Replicas, SimulatedClient, World

from pipeline.config import RunConfig
from pipeline.errors import StoppedEarly
from pipeline.job import stream
from pipeline.job.stream import CHUNK_ROWS, Stream
from pipeline.pool import Pool, concurrency
from pipeline.pool import pool as pool_module
from pipeline.producer.chunks import Chunk
from pipeline.rows import Allowance
from pipeline.rows.results import Resolved
from pipeline.system.threads import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from world import Endpoint


# What a row takes beside its Arrow data once its answer is there: a tuple, a float, its label.
ANSWER_BYTES = 105
ROW_TEXT_BYTES = 220


@dataclass(frozen=True)
class Driver:
    """What the driver's core does, in seconds: for a request, and for a row.

    The parts of a row are those of docs/performance.md: reading, keys and look-up; answers and
    journal; results and part.
    """

    # From 116,721 rows/s at 32 texts and 184,852 at 128: RESULTS.md.
    request_s: float = 135e-6
    row_s: float = 4.36e-6
    read, answer, commit = 0.28, 0.41, 0.31

    def rows_per_s(self, texts: int) -> float:
        """Return the driver's limit with so many texts a request."""
        return 1 / (self.row_s + self.request_s / texts)


@dataclass(frozen=True)
class Setup:
    """What a run is simulated with; `None` of a constant is the package's own value."""

    workers: int = 1_000
    per_worker: int = 8
    texts: int = 32
    latency_s: float = 1.0
    endpoint: Callable[[], Endpoint] | None = None
    slow: float = 0.0
    driver: Driver = field(default_factory=Driver)
    held_bytes: int | None = None
    part_bytes: int | None = None
    window_batches: int | None = None
    in_order: bool = False
    storage_s: Callable[[float], float] = lambda _now: 0.005
    fails_s: float | None = None
    frozen_s: float | None = None
    full_at_once: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    chunk_rows: int = CHUNK_ROWS
    rows: int = 10**9
    seed: int = 1

    @property
    def in_flight(self) -> int:
        """How many requests are in flight at most."""
        return self.workers * self.per_worker


@dataclass
class Seen:
    """What came of a run: times and rows of answers and commits, and what was counted."""

    setup: Setup
    until: float
    world: World = field(init=False)
    answers: list[tuple[float, int]] = field(default_factory=list)
    commits: list[tuple[float, int, int]] = field(default_factory=list)
    held: list[tuple[float, float, int]] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)
    core_s: float = 0.0

    def answered_per_s(self, since: float, until: float | None = None) -> float:
        """Rows answered a second in a stretch."""
        until = self.until if until is None else until
        return sum(n for at, n in self.answers if since <= at < until) / (until - since)

    def committed_per_s(self, since: float, until: float | None = None) -> float:
        """Rows committed a second in a stretch."""
        until = self.until if until is None else until
        return sum(n for at, n, _ in self.commits if since <= at < until) / (until - since)

    @property
    def answered(self) -> int:
        return sum(n for _, n in self.answers)

    def most_held(self) -> tuple[float, int]:
        """Return the most that was held, in MiB and rows."""
        return max(b for _, b, _ in self.held) / 2**20, max(n for _, _, n in self.held)

    def per_second(self, what: str = "answers") -> list[float]:
        """Rows by the second."""
        counts = [0.0] * int(self.until)
        for at, n, *_ in getattr(self, what):
            if at < len(counts):
                counts[int(at)] += n
        return counts


@cache
def _tables(rows: int) -> tuple[pa.Table, pa.Table, list[str]]:
    """A chunk of rows without and with results, which all chunks share, and its texts."""
    chance = random.Random(1)
    lengths = [ROW_TEXT_BYTES * chance.lognormvariate(-0.32, 0.8) for _ in range(rows)]
    texts = ["x" * max(2, round(each)) for each in lengths]
    columns = {"id": pa.array(range(rows), pa.int64()), "text": texts}
    results = {"label": ["POSITIVE"] * rows, "score": [0.98765] * rows}
    results |= {"error": pa.nulls(rows, pa.string())}
    return pa.table(columns), pa.table(columns | results), texts


class _Source:
    """An input of so many rows, of which no byte exists."""

    def __init__(self, rows: int, chunk_rows: int) -> None:
        self._table = _tables(chunk_rows)[0]
        self.input = SimpleNamespace(rows=rows, schema=self._table.schema, packs_well=True)

    def chunks_of(self, ranges: Sequence[range], **_: object) -> Iterator[Chunk]:
        most = self._table.num_rows
        for each in ranges:
            for first in range(each.start, each.stop, most):
                piece = self._table.slice(0, min(most, each.stop - first))
                yield Chunk(first, piece, piece.nbytes)


class _Resolver:
    """Stands for the resolver: every row is a text of its own that nobody knows."""

    answer_bytes = ANSWER_BYTES

    def __init__(self, pool: Pool, core: Core, seen: Seen) -> None:
        self._pool, self._core, self._seen = pool, core, seen
        self._in_order = asyncio.Lock()

    async def resolve(self, first_row: int, table: pa.Table) -> Resolved:
        _, done, texts = _tables(self._seen.setup.chunk_rows)
        driver, rows = self._seen.setup.driver, table.num_rows
        loop = asyncio.get_running_loop()
        self._pool.demand.expect()
        async with self._in_order:
            await self._core.work(driver.row_s * driver.read * rows / 2)

        def arrived(places: Sequence[int], _outcomes: object, _revision: object) -> bool:
            self._seen.answers.append((loop.time(), len(places)))
            return True

        await self._pool.ask(texts[:rows], arrived)
        await self._core.work(driver.row_s * driver.commit * rows / 2)
        return Resolved(first_row, done.slice(0, rows), 0, {})


class _SimulatedStream(Stream):
    """The stream, with parts that are counted and not written."""

    def watch(self, seen: Seen, core: Core) -> None:
        self._seen, self._core = seen, core

    async def _commit(self, resolved: Resolved) -> None:
        setup, rows = self._seen.setup, resolved.table.num_rows
        loop = asyncio.get_running_loop()
        await self._core.work(setup.driver.row_s * setup.driver.commit * rows / 2)
        await asyncio.sleep(setup.storage_s(loop.time()))
        self._seen.commits.append((loop.time(), rows, resolved.first_row))
        row_bytes = stream.ROW_BYTES + ANSWER_BYTES
        held = sum(h.size_bytes + (0 if h.is_resolved else h.rows * row_bytes) for h in self._held)
        self._seen.held.append((loop.time(), held, sum(h.rows for h in self._held)))

    def _due(self) -> list[Any]:
        due = super()._due()
        if self._seen.setup.in_order and due and due[0] is not self._held[0]:
            return []
        return due


def simulate(setup: Setup, seconds: float) -> Seen:
    """Simulate a run until all rows are committed, or so many seconds."""
    changed: list[tuple[Any, str, Any]] = []
    if setup.held_bytes is not None:
        changed.append((stream, "held_bytes", lambda _config: setup.held_bytes))
    if setup.part_bytes is not None:
        changed.append((stream, "PART_BYTES", setup.part_bytes))
    if setup.window_batches is not None:
        changed.append((pool_module, "overtaking", lambda _concurrency: setup.window_batches))
    if setup.full_at_once:
        changed.append((concurrency, "START", float(setup.in_flight)))
    with virtual.constants(*changed):
        seen: Seen = virtual.run(lambda: _simulate(setup, seconds))
    return seen


async def _simulate(setup: Setup, seconds: float) -> Seen:
    seen = Seen(setup, seconds)
    known = {"dialect": "hf", "batch_size": setup.texts, "exact_scores": True, "timeout_s": 120.0}
    known |= {"concurrency": setup.in_flight} | setup.settings
    config = RunConfig(
        input="in.parquet", output="out.parquet", endpoint="http://127.0.0.1:1", **known
    )
    core, stop, driver = Core(), Stop(), setup.driver
    make = setup.endpoint or (lambda: Replicas(2 * setup.in_flight, setup.latency_s))
    seen.world = world = World(setup.workers, make(), slow=setup.slow, seed=setup.seed)
    client: Any = SimulatedClient(
        config, world, core, driver.request_s, driver.row_s * driver.answer
    )
    pool = Pool(config, [client], LoopClock(setup.seed), seen.events.append, stop)
    source: Any = _Source(setup.rows, setup.chunk_rows)
    store: Any = SimpleNamespace(log=SimpleNamespace(run=SimpleNamespace(parts=())))
    reading: Any = Stage(core, driver.row_s * driver.read * setup.chunk_rows / 2)
    failing = []
    async with pool:
        with ExitStack() as stack:
            flow = _SimulatedStream(
                config, source, store, pool.demand, _Resolver(pool, core, seen),  # type: ignore[arg-type]
                Allowance(config, setup.rows, 0), reading, seen.events.append, stop,
            )  # fmt: skip
            flow.watch(seen, core)
            if setup.fails_s is not None:
                failing.append(asyncio.create_task(world.fail(setup.fails_s, setup.frozen_s)))
                stack.callback(failing[0].cancel)
            flowing = asyncio.create_task(flow.flow())
            await asyncio.wait([flowing], timeout=seconds)
            seen.until = asyncio.get_running_loop().time()
            if flowing.done():
                flowing.result()
            else:
                stop.ask(StoppedEarly("The stretch is over."))
                flowing.cancel()
                for worker in world.workers:  # what is in flight is of no interest
                    for exchange in list(worker.in_flight):
                        exchange.answered.cancel()
                await asyncio.gather(flowing, return_exceptions=True)
    seen.core_s = core.busy_s
    return seen
