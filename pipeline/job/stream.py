"""The stream: chunks are read, resolved several at a time, and committed as they are resolved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pipeline.events import LabelsNotGiven, LabelsShareNames, PartCommitted
from pipeline.rows import joined, labels_in, result_fields
from pipeline.store import open_ranges
from pipeline.system.threads import in_thread
from pipeline.writer import write_part

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from concurrent.futures import Executor

    import pyarrow as pa

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.pool.demand import Demand
    from pipeline.producer import Source
    from pipeline.producer.chunks import Chunk
    from pipeline.rows import Allowance, Resolved, Resolver
    from pipeline.store import RunStore
    from pipeline.system.threads import Stop

# Constants, not settings: a run that is continued must cut the same chunks.
CHUNK_ROWS = 4_096
CHUNK_BYTES = 16 << 20
# With all labels of each row an answer may take 100 kB, and a chunk holds those of its rows.
CHUNK_ROWS_WITH_PREDICTIONS = 512
# What a file of a directory holds: whole chunks, up to so many rows or bytes.
FILE_ROWS = 65_536
FILE_BYTES = 16 << 20
FILE_ROWS_WITH_PREDICTIONS = 4_096
# What is held between reading and commit, or so much for each request in flight if that is more:
# thousands of requests hold many rows. Until it is resolved, a row takes, beside its Arrow data and
# its answer, about so much for its text and key as Python objects.
HELD_BYTES, REQUEST_BYTES = 64 << 20, 64 << 10
ROW_BYTES = 416
# For so long after a commit, what is resolved waits for what follows on it, to become one part with
# it, of up to so many bytes. Answers are durable meanwhile: the journal has them.
REST_S = 0.25
PART_BYTES = 8 << 20


@dataclass(eq=False)
class _Held:
    """A chunk between reading and commit, the part that it is of, and the memory that it takes."""

    first_row: int
    rows: int
    size_bytes: int
    part: int
    resolving: asyncio.Task[Resolved] = field(init=False)

    @property
    def is_resolved(self) -> bool:
        task = self.resolving
        return task.done() and not task.cancelled() and task.exception() is None


@dataclass(eq=False)
class _Cut:
    """Where the reader is in the parts: `part` is the one that the last chunk is of.

    A part of a directory has whole chunks, up to `most_rows` or FILE_BYTES; any other, where
    `most_rows` is 0, is a chunk.
    """

    most_rows: int
    part: int = 0
    is_open: bool = False
    _rows: int = 0
    _size_bytes: int = 0

    def add(self, chunk: Chunk, *, is_last: bool) -> int:
        """Return the part of the next chunk; `is_last` if none that follows on it is open."""
        self._rows += chunk.table.num_rows
        self._size_bytes += chunk.size_bytes
        fits = self._rows <= self.most_rows and self._size_bytes <= FILE_BYTES
        if not (self.is_open and fits):
            self.part += 1
            self._rows, self._size_bytes = chunk.table.num_rows, chunk.size_bytes
        self.is_open = self.most_rows > 0 and not is_last
        return self.part


def chunk_rows(config: RunConfig) -> int:
    """Return how many rows a chunk has at most."""
    return min(CHUNK_ROWS, CHUNK_ROWS_WITH_PREDICTIONS if config.wants_predictions else CHUNK_ROWS)


def held_bytes(config: RunConfig) -> int:
    """Return how much is held between reading and commit at most, but for a part's last chunks."""
    return max(HELD_BYTES, REQUEST_BYTES * config.concurrency)


def open_chunks(
    source: Source, ranges: Sequence[range], config: RunConfig
) -> Generator[Chunk, None, None]:
    """Stream the chunks of the open rows; they are those of a run without an end in between.

    The columns of results that the rows of a retry have do not count, so it cuts them as before.
    """
    results = {field.name for field in result_fields(config)}
    counted = [name for name in source.input.schema.names if name not in results]
    return source.chunks_of(
        ranges, max_rows=chunk_rows(config), max_bytes=CHUNK_BYTES, counted=counted
    )


@dataclass(eq=False)
class Stream:
    """The flow of chunks through the engine into parts.

    Chunks are resolved several at a time, and a part is committed as soon as its chunks are,
    whichever rows before them are open. Reading goes on while the engine is hungry and what is held
    between reading and commit stays below `held_bytes`, which bounds the memory.

    A part of a file is a chunk, or a few that follow on one another. A part of a directory is one
    of its files, cut by the rows alone: `final_schema` returns its schema, given the revision of
    the model; it is None for a file.

    `store` takes the parts, `threads` does the work on rows, and `stop` ends reading early.
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
    final_schema: Callable[[str | None], pa.Schema] | None = None

    def __post_init__(self) -> None:
        self._released, self._changed = asyncio.Event(), asyncio.Event()
        # In the order of their rows.
        self._held: list[_Held] = []
        most = FILE_ROWS_WITH_PREDICTIONS if self.config.wants_predictions else FILE_ROWS
        self._cut = _Cut(0 if self.final_schema is None else most)
        self._waiting = self._read_to_end = self._resting = False
        self._share_names: frozenset[str] = frozenset()
        # Of a top_k that leaves labels out, the first rows may have others than the rest.
        self._told_of_labels = not self.config.score_labels or self.config.top_k != "all"

    async def flow(self) -> None:
        """Stream all rows that are not committed yet. Raises what stopped the run."""
        self.allowance.check()
        reader = asyncio.create_task(self._read(), name="reader")
        try:
            while part := await self._next():
                await self._commit(joined([held.resolving.result() for held in part]))
                self._held = [held for held in self._held if held not in part]
                del part  # or it is held while the next one is waited for
                self._released.set()
                self._rest()
            for held in self._held:
                held.resolving.result()  # what kept it
            await reader
        finally:
            reader.cancel()
            tasks: list[asyncio.Task[Any]] = [reader]
            for held in self._held:
                held.resolving.cancel()
                tasks.append(held.resolving)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        open_rows = open_ranges(self.store.log.run.parts, self.source.input.rows)
        chunks = open_chunks(self.source, open_rows, self.config)
        ends = {each.stop for each in open_rows}
        try:
            while True:
                await self.demand.hungry()
                await self._room()
                self.stop.check()
                chunk = await in_thread(lambda: next(chunks, None), self.stop, self.threads)
                if chunk is None:
                    break
                self._hold(chunk, is_last=chunk.first_row + chunk.table.num_rows in ends)
                del chunk  # or it is held while the next one is waited for
        finally:
            chunks.close()
            # Also after a failure to read: the chunks before it are resolved and committed.
            self.demand.end()
            self._read_to_end = True
            self._changed.set()

    def _hold(self, chunk: Chunk, *, is_last: bool) -> None:
        """Begin to resolve a chunk; `is_last` if none that follows on it is open."""
        part = self._cut.add(chunk, is_last=is_last)
        held = _Held(chunk.first_row, chunk.table.num_rows, chunk.table.nbytes, part)
        held.resolving = asyncio.create_task(self.resolver.resolve(chunk.first_row, chunk.table))
        held.resolving.add_done_callback(lambda _: self._resolved(held))
        self._held.append(held)
        self._changed.set()

    def _resolved(self, held: _Held) -> None:
        if held.is_resolved:
            held.size_bytes = held.resolving.result().table.nbytes
        self._released.set()
        self._changed.set()

    async def _next(self) -> list[_Held]:
        """Wait for a part to commit. Return nothing if none is left, or what is left failed."""
        while not (due := self._due()):
            if self._read_to_end and all(held.resolving.done() for held in self._held):
                break
            self._waiting = True
            self._tell()
            self._changed.clear()
            await self._changed.wait()
        self._waiting = False
        self._tell()
        return due

    def _rest(self) -> None:
        """Let what is resolved pile up for a while."""

        def end() -> None:
            self._resting = False
            self._changed.set()

        self._resting = True
        asyncio.get_running_loop().call_later(REST_S, end)

    def _due(self) -> list[_Held]:
        """Return the chunks of the first part that is to be committed now.

        To a part of a file those are joined that follow on it: a commit's cost (three fsyncs, and
        as many waits for the interpreter's lock) is shared by the more rows the faster rows come.
        """
        parts = [list(chunks) for _, chunks in groupby(self._held, attrgetter("part"))]
        ready = [part for part in parts if all(held.is_resolved for held in part)]
        if self._cut.is_open and ready and ready[-1][0].part == self._cut.part:
            ready.pop()
        due = ready[0] if ready else []
        if self.final_schema is None and due:
            size_bytes = due[0].size_bytes
            for (held,) in ready[1:]:
                size_bytes += held.size_bytes
                if held.first_row != due[-1].first_row + due[-1].rows or size_bytes > PART_BYTES:
                    break
                due.append(held)
            pending = any(not held.resolving.done() for held in self._held)
            if self._resting and pending and len(due) == len(ready) and not self._is_full:
                return []
        return due

    @property
    def _is_full(self) -> bool:
        """True if so much is held between reading and commit that reading has to wait."""
        row_bytes = ROW_BYTES + self.resolver.answer_bytes
        held = sum(
            each.size_bytes + (0 if each.is_resolved else each.rows * row_bytes)
            for each in self._held
        )
        return held >= held_bytes(self.config)

    async def _room(self) -> None:
        """Wait until there is room for another chunk, or a part needs it to become whole.

        After a stop what is held fails, and is held to the end: there never would be room.
        """
        while self._is_full and not self._lacks_a_chunk and self.stop.reason is None:
            self._tell()
            self._released.clear()
            await self._released.wait()
        self._tell()

    @property
    def _lacks_a_chunk(self) -> bool:
        """True if nothing is left to wait for but the rest of the part that is being read."""
        return self._cut.is_open and all(
            held.part == self._cut.part and held.is_resolved for held in self._held
        )

    def _tell(self) -> None:
        """Tell the engine whether reading waits for chunks to be resolved.

        If it waits for a commit, there is no need to send a batch that is not full.
        """
        self.demand.block(self._waiting and self._is_full)

    def _tell_of_labels(self, resolved: Resolved) -> None:
        """Tell once of labels that share a name, and of those without a score, maybe misspelt."""
        if new := resolved.share_names - self._share_names:
            self._share_names |= new
            self.emit(LabelsShareNames(sorted(new)))
        if self._told_of_labels or resolved.errors == resolved.table.num_rows:
            return
        self._told_of_labels = True
        given, missing = labels_in(resolved.table, self.config)
        if missing:
            self.emit(LabelsNotGiven(missing, given))

    async def _commit(self, resolved: Resolved) -> None:
        self._tell_of_labels(resolved)
        revision, schema = resolved.revision, None
        if self.final_schema is not None:
            # Where no row has a label, it depends on chance whether the revision is known by now.
            labelled = resolved.errors < resolved.table.num_rows
            schema = self.final_schema(revision.name if labelled else None)

        def write() -> None:
            part = write_part(
                self.store,
                resolved.table,
                first_row=resolved.first_row,
                errors=resolved.errors,
                labels=resolved.labels,
                revision=revision.name,
                final_schema=schema,
                packed=self.source.input.packs_well,
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
