"""The stream: chunks are read, resolved several at a time, and committed in order."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from itertools import accumulate, islice, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.events import PartCommitted
from pipeline.producer import nests_dictionary
from pipeline.rows import joined
from pipeline.system.threads import in_thread
from pipeline.writer import write_part

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.pool.demand import Demand
    from pipeline.producer import Source
    from pipeline.rows import Allowance, Resolved, Resolver
    from pipeline.store import RunStore
    from pipeline.system.threads import Stop

# Constants, not settings: a run that is continued must cut the same chunks.
CHUNK_ROWS = 4_096
CHUNK_BYTES = 16 << 20
# With all labels of each row an answer may take 100 kB, and a chunk holds those of its rows.
CHUNK_ROWS_WITH_PREDICTIONS = 512
# What is held between reading and commit; a row takes, beside its Arrow data and its answer, about
# so much for its text and key as Python objects.
HELD_BYTES = 64 << 20
ROW_BYTES = 416
# So many resolved chunks that wait for their commit are committed together, up to so many bytes.
PILE = 3
PART_BYTES = 8 << 20


class _Held(NamedTuple):
    """A chunk between reading and commit, and about how much memory it takes without answers."""

    resolving: asyncio.Task[Resolved]
    rows: int
    size_bytes: int


def chunk_rows(config: RunConfig) -> int:
    """Return how many rows a chunk has at most."""
    return min(CHUNK_ROWS, CHUNK_ROWS_WITH_PREDICTIONS if config.wants_predictions else CHUNK_ROWS)


def _is_resolved(held: _Held) -> bool:
    task = held.resolving
    return task.done() and not task.cancelled() and task.exception() is None


@dataclass(eq=False)
class Stream:
    """The flow of chunks through the engine into parts.

    Chunks are resolved several at a time and committed in order, so that the parts never have a
    gap. Reading goes on while the engine is hungry and what is held between reading and commit
    stays below HELD_BYTES, which bounds the memory. `store` takes the parts, `threads` does the
    work on rows, and `stop` ends reading early.
    """

    config: RunConfig
    source: Source
    store: RunStore
    demand: Demand
    resolver: Resolver
    allowance: Allowance
    threads: Executor
    emit: Observer
    stop: Stop

    def __post_init__(self) -> None:
        self._released = asyncio.Event()
        self._full = self._unresolved = False
        # Parquet gives the dictionaries of joined chunks back as one, whose order inside of lists
        # and structs would tell in the output how they were joined.
        self._joins = not nests_dictionary(self.source.input.schema)
        self._held: deque[_Held] = deque()
        self._read_to_end = False
        self._arrived = asyncio.Event()

    async def flow(self) -> None:
        """Stream all rows that are not committed yet. Raises what stopped the run."""
        self.allowance.check()
        reader = asyncio.create_task(self._read(), name="reader")
        try:
            while await self._any_held():
                self._tell(unresolved=not self._held[0].resolving.done())
                await asyncio.wait([self._held[0].resolving])
                self._tell(unresolved=False)
                group = self._due()
                await self._commit(joined([held.resolving.result() for held in group]))
                for _ in group:
                    self._held.popleft()
                self._released.set()
            await reader
        finally:
            reader.cancel()
            tasks: list[asyncio.Task[Any]] = [reader]
            for held in self._held:
                held.resolving.cancel()
                tasks.append(held.resolving)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        chunks = self.source.chunks(
            self.store.log.run.rows, max_rows=chunk_rows(self.config), max_bytes=CHUNK_BYTES
        )
        try:
            while True:
                await self.demand.hungry()
                await self._room()
                chunk = await in_thread(lambda: next(chunks, None), self.stop, self.threads)
                if chunk is None:
                    break
                size_bytes = chunk.table.nbytes + ROW_BYTES * chunk.table.num_rows
                rows = chunk.table.num_rows
                resolve = self.resolver.resolve(chunk.first_row, chunk.table)
                resolving = asyncio.create_task(resolve)
                self._held.append(_Held(resolving, rows, size_bytes))
                del chunk, resolve, resolving  # or they are held while the next one is waited for
                self._arrived.set()
        finally:
            chunks.close()
            # Also after a failure to read: the chunks before it are resolved and committed.
            self.demand.end()
            self._read_to_end = True
            self._arrived.set()

    async def _any_held(self) -> bool:
        """Wait for a chunk to commit. Return False after the last one."""
        while not (self._held or self._read_to_end):
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._held)

    def _due(self) -> list[_Held]:
        """Return the oldest chunk and, if commits lag behind, as many more as a part has room for.

        They become one part, so that a commit's cost (three fsyncs, and as many waits for the
        interpreter's lock) is shared by the more rows the faster rows come.
        """
        resolved = list(takewhile(_is_resolved, self._held))
        count = 1
        if self._joins and len(resolved) >= PILE:
            sizes = accumulate(held.size_bytes for held in resolved)
            count = max(1, bisect_right(list(sizes), PART_BYTES))
        return list(islice(self._held, count))

    @property
    def _held_bytes(self) -> int:
        """About how much is held between reading and commit."""
        answer_bytes = self.resolver.answer_bytes
        return sum(each.size_bytes + each.rows * answer_bytes for each in self._held)

    async def _room(self) -> None:
        """Wait until there is room for another chunk."""
        while self._held_bytes >= HELD_BYTES:
            self._tell(full=True)
            self._released.clear()
            await self._released.wait()
        self._tell(full=False)

    def _tell(self, *, full: bool | None = None, unresolved: bool | None = None) -> None:
        """Tell the engine whether reading waits for the oldest chunk to be resolved.

        If it waits for a commit, there is no need to send a batch that is not full.
        """
        self._full = self._full if full is None else full
        self._unresolved = self._unresolved if unresolved is None else unresolved
        self.demand.block(self._full and self._unresolved)

    async def _commit(self, resolved: Resolved) -> None:
        revision = resolved.revision

        def write() -> None:
            part = write_part(
                self.store,
                resolved.table,
                first_row=resolved.first_row,
                errors=resolved.errors,
                labels=resolved.labels,
                revision=revision.name,
            )
            told = revision.name if revision.told else None
            self.store.log.add_part(part, told)

        await in_thread(write, executor=self.threads)
        self.emit(
            PartCommitted(
                resolved.first_row, resolved.table.num_rows, resolved.errors, resolved.labels
            )
        )
        self.allowance.rows_failed(resolved.errors)
