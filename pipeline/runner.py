"""One run: producer, workers and writer tied together; lock, resume, signals, summary."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa

import pipeline
from pipeline import meanings, opening, planned, rundir, storage
from pipeline.engines import LocalEngine
from pipeline.errors import (
    EXIT_COMPLETE,
    EXIT_ROWS_FAILED,
    ClassifyError,
    Interrupted,
    RevisionMoved,
    StoppedEarly,
    TooManyErrors,
    UsageError,
)
from pipeline.events import Notice, PartCommitted, RunEnded, RunStarted, fan_out
from pipeline.failpoints import failpoint
from pipeline.observers import EventLog, Metrics
from pipeline.producer import Plan, nests_dictionary
from pipeline.responses import ResponseStores
from pipeline.threads import Stop, in_thread
from pipeline.workers import Revision, joined, output_schema
from pipeline.writer import Manifest, assemble, identify, write_part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.engines import Engine
    from pipeline.events import Observer
    from pipeline.observers.metrics_file import MetricsFile
    from pipeline.opening import Settled
    from pipeline.producer import Source
    from pipeline.workers import Resolved

# Constants, not settings: a run that is continued must cut the same chunks.
CHUNK_ROWS = 4_096
CHUNK_BYTES = 16 << 20
# What is held between reading and commit; a row takes, beside its Arrow data, about so much for
# its text, key and answer as Python objects.
HELD_BYTES = 96 << 20
ROW_BYTES = 512
# What is done with rows is Python code in good part, which only one thread at a time can run; each
# more thread is one more that the others wait for.
ROW_THREADS = 2
# So many resolved chunks that wait for their commit are committed together, up to so many bytes.
PILE = 3
PART_BYTES = 16 << 20


@dataclass
class _Opened:
    """A run that may begin: its input is settled, its output locked, its manifest on disk."""

    source: Source
    directory: rundir.RunDirectory
    manifest: Manifest
    damaged_parts: int = 0
    # A kill came between the output's rename and its record.
    stands: bool = False


class Run:
    """One attempt at a run. `execute` does it; `stop` ends it early, keeping what was done.

    `source` replaces the input files by a table in memory, `directory` the run directory beside
    the output.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        source: Source | None = None,
        directory: Path | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._config = config
        self._directory = (
            rundir.RunDirectory(directory) if directory else rundir.RunDirectory.of(config.output)
        )
        self._source = source
        self._metrics = Metrics()
        self._observers: list[Observer] = [self._metrics, *observers]
        self._metrics_file: MetricsFile | None = None
        if config.metrics_file is not None:
            # Loaded where it is asked for: it takes a tenth of a second.
            from pipeline.observers.metrics_file import MetricsFile

            self._metrics_file = MetricsFile(config, self._metrics, fan_out(self._observers))
            self._observers.append(self._metrics_file)
        self._plan: dict[str, Any] | None = None
        self._engine: Engine | None = None
        self._stopped_by: BaseException | None = None
        self._stop_reading = Stop()
        self._lock = storage.Lock(self._directory.lock)
        self._interrupts = 0
        self._task: asyncio.Task[Any] | None = None

    def stop(self, reason: BaseException) -> None:
        """Send nothing more, wait for what is in flight, commit, and raise `reason`."""
        self._stopped_by = self._stopped_by or reason
        self._stop_reading.ask(reason)
        if self._engine is not None:
            self._engine.stop(reason)
        if isinstance(reason, Interrupted) and (in_flight := self._metrics.in_flight):
            fan_out(self._observers)(
                Notice(f"stopping: waiting for {in_flight} answers; again to stop at once")
            )

    def interrupt(self, reason: Interrupted) -> None:
        """Stop, as a signal asks; a second one drops what is in flight too.

        Belongs to the event loop of the run, as `stop` does.
        """
        if self._task is not None and self._task.done():
            return  # the loop is only being closed
        self._interrupts += 1
        if self._interrupts == 1:
            self.stop(reason)
        # Once only: a third would cut off the tidying up after the second.
        elif self._interrupts == 2 and self._task is not None:  # noqa: PLR2004
            self._task.cancel()

    async def execute(
        self, *, restart: bool = False, overwrite: bool = False, retry_failed: bool = False
    ) -> dict[str, Any]:
        """Run to the end and give the summary.

        With `retry_failed` a complete run asks again for the rows of its output that carry an
        error, and for nothing else; an unfinished run is continued as without it.

        Raises UsageError before anything is sent or written, and any other ClassifyError after
        what was done has been committed; `summary` of such an error is the summary so far.
        """
        self._task = asyncio.current_task()
        # Its own handlers would swallow an interrupt during a long read.
        pa.enable_signal_handlers(False)
        started = time.monotonic()
        try:
            return await self._attempt(
                started, restart=restart, overwrite=overwrite, retry_failed=retry_failed
            )
        finally:
            if self._metrics_file is not None:
                await self._metrics_file.close()

    async def _attempt(
        self, started: float, *, restart: bool, overwrite: bool, retry_failed: bool
    ) -> dict[str, Any]:
        emit = fan_out(self._observers)
        try:
            opened = await in_thread(
                lambda: self._open(restart=restart, overwrite=overwrite, retry_failed=retry_failed),
                self._stop_reading,
            )
        except asyncio.CancelledError as cancelled:
            self._lock.release()
            reason = self._stopped_by or cancelled
            emit(_unbegun(reason))
            raise reason from None
        except BaseException as failure:
            emit(_unbegun(failure))
            raise
        if opened.manifest.complete is not None:
            self._lock.release()
            self._announce(opened, emit)
            summary = self._summary(opened, started, None)
            emit(RunEnded(summary["state"], summary["exit_code"], None))
            return summary
        made_for = planned.made_for(
            self._config,
            opened.directory,
            opened.manifest,
            opened.source.plan,
            resumed_rows=opened.manifest.rows,
        )
        self._plan = planned.find(opened.directory, made_for)
        log = EventLog(opened.directory.events)
        self._observers.append(log)
        emit = fan_out(self._observers)
        error: BaseException | None = None
        try:
            await self._execute(opened, emit)
        except asyncio.CancelledError as cancelled:
            # A second signal cancels; what ended the run is still the first one.
            error = self._stopped_by or cancelled
            raise error from None
        except BaseException as failure:
            error = failure
            raise
        finally:
            summary = self._summary(opened, started, error)
            emit(RunEnded(summary["state"], summary["exit_code"], str(error) if error else None))
            log.close()
            with suppress(StoppedEarly):
                opened.directory.write_summary(summary)
            self._lock.release()
            if isinstance(error, ClassifyError):
                error.summary = summary
        return summary

    def _open(self, *, restart: bool, overwrite: bool, retry_failed: bool) -> _Opened:
        """Check everything that can be checked; write only once all is well.

        Where the output is complete already, nothing is written and its manifest says so.
        """
        config, directory, lock = self._config, self._directory, self._lock
        opening.check(config)
        locked = directory.root.exists()
        if locked:
            lock.acquire()
        try:
            settled = opening.settle(
                config,
                directory,
                self._source,
                restart=restart,
                overwrite=overwrite,
                retry_failed=retry_failed,
            )
            if not settled.nothing_to_do:
                directory.create()
                lock.acquire()
            if not (locked or restart) and Manifest.load(directory.manifest) is not None:
                # Another process began this run since there was no directory to lock.
                lock.release()
                return self._open(restart=restart, overwrite=overwrite, retry_failed=retry_failed)
            return self._begin(settled)
        except BaseException:
            lock.release()
            raise

    def _begin(self, settled: Settled) -> _Opened:
        """Write down what is settled."""
        source, manifest, directory = settled.source, settled.manifest, self._directory
        if manifest is None:
            return _Opened(source, directory, rundir.begin(directory, self._config, source.plan))
        if settled.drops_retry:
            manifest.save()
        if settled.nothing_to_do:
            if settled.retries:
                fan_out(self._observers)(Notice("No row carries an error: nothing to retry."))
            with suppress(OSError):
                directory.clear()  # a kill may have come between completion and tidying up
            return _Opened(source, directory, manifest)
        if settled.begins_retry:
            rundir.begin_retry(directory, manifest)
        if settled.stands:
            return _Opened(source, directory, manifest, stands=True)
        damaged = rundir.proceed(directory, manifest)
        return _Opened(source, directory, manifest, damaged)

    async def _execute(self, opened: _Opened, emit: Observer) -> None:
        config, manifest, plan = self._config, opened.manifest, opened.source.plan
        self._announce(opened, emit)
        if opened.damaged_parts:
            emit(
                Notice(
                    f"{opened.damaged_parts} committed parts were damaged and are done again from "
                    "the stored answers."
                )
            )
        deadline = config.deadline and asyncio.get_running_loop().call_later(
            config.deadline, self.stop, _deadline_passed(config.deadline)
        )
        try:
            revision = opening.revision(config, manifest, emit)
            while manifest.rows < plan.rows:
                self._stop_reading.check()
                try:
                    await self._label(opened, revision, emit)
                except RevisionMoved as moved:
                    emit(Notice(str(moved)))
                    await in_thread(partial(manifest.begin_again, moved.revision))
                    self._announce(opened, emit)
                    revision = Revision(moved.revision, emit, allow_drift=False)
        finally:
            if deadline:
                deadline.cancel()
        if self._stopped_by is not None:
            raise self._stopped_by
        await in_thread(lambda: self._finish(opened), self._stop_reading)

    def _announce(self, opened: _Opened, emit: Observer) -> None:
        plan, manifest = opened.source.plan, opened.manifest
        complete = manifest.complete
        failed = sum(part.errors for part in manifest.parts)
        emit(
            RunStarted(
                rows=plan.rows,
                resumed_rows=plan.rows if complete else manifest.rows,
                output=str(self._config.output),
                endpoint=self._config.endpoint,
                model=self._config.model_id,
                resumed_errors=complete["errors"] if complete else failed,
            )
        )

    async def _label(self, opened: _Opened, revision: Revision, emit: Observer) -> None:
        """Label and commit all rows that are not committed yet."""
        config, manifest = self._config, opened.manifest
        if config.cache is not None:
            await in_thread(partial(manifest.add_cache, str(config.cache.absolute())))
        store, earlier = opening.stores(config, opened.directory, manifest)
        with ThreadPoolExecutor(ROW_THREADS, "rows") as threads:
            async with LocalEngine(
                config,
                partial(ResponseStores, store, earlier),
                revision,
                emit,
                allowed_errors=config.allowed_errors(opened.source.plan.rows),
                threads=threads,
                requests_sent=self._metrics.requests,
            ) as engine:
                self._engine = engine
                if self._stopped_by is not None:
                    engine.stop(self._stopped_by)
                stream = _Stream(config, opened, engine, threads, emit, self._stop_reading)
                try:
                    await stream.flow()
                finally:
                    self._engine = None
                    if revision.confirmed and manifest.revision is None:
                        await in_thread(partial(manifest.set_revision, str(revision.current)))

    def _finish(self, opened: _Opened) -> None:
        """Assemble the output, record that it stands, and tidy up."""
        config, manifest, directory = self._config, opened.manifest, opened.directory

        def before_rename() -> None:
            manifest.set_assembled(identify(directory.scratch))
            failpoint("finish.identified")
            replaces = rundir.is_in_place(config) or manifest.retry_of is not None
            if replaces and config.output.exists():
                rundir.check_only_input_is_lost(config, opened.source.plan)

        if not opened.stands:
            # What the stream used is free but not given back, and assembling would come on top.
            pa.default_memory_pool().release_unused()
            # Of the input, also where it is gone and the output is what was gone through.
            schema = output_schema(Plan.from_json(manifest.run.plan).schema, config)
            assemble(
                [directory.parts / part.file for part in manifest.parts],
                schema.with_metadata({**(schema.metadata or {}), **_metadata(config, manifest)}),
                config.output,
                rows=manifest.rows,
                as_file=config.output_is_file,
                scratch=directory.scratch,
                before_rename=before_rename,
            )
        failpoint("finish.assembled")
        manifest.set_complete(self._facts(opened, "complete"))
        failpoint("finish.complete")
        with suppress(OSError):
            directory.clear()
        failpoint("finish.cleared")
        planned.forget(directory)

    def _facts(self, opened: _Opened, state: str) -> dict[str, Any]:
        """What can be said of the rows that are committed."""
        parts = opened.manifest.parts
        labels: dict[str, int] = {}
        for part in parts:
            for label, count in part.labels.items():
                labels[label] = labels.get(label, 0) + count
        errors = sum(part.errors for part in parts)
        failed = errors > (self._config.allowed_errors(opened.source.plan.rows) or 0)
        return {
            "state": state,
            "exit_code": EXIT_ROWS_FAILED if failed else EXIT_COMPLETE,
            "rows": opened.source.plan.rows,
            "labelled": opened.manifest.rows - errors,
            "errors": errors,
            "labels": dict(sorted(labels.items())),
            "output": str(self._config.output),
            "endpoint": self._config.endpoint,
            "model": self._config.model_id,
            "model_revision": opened.manifest.latest_revision,
        }

    def _summary(
        self, opened: _Opened, started: float, error: BaseException | None
    ) -> dict[str, Any]:
        metrics = self._metrics
        seconds = time.monotonic() - started
        facts = opened.manifest.complete or self._facts(opened, "stopped")
        if error is not None:
            facts = {**facts, "exit_code": getattr(error, "exit_code", 1), "message": str(error)}
        found = {
            **facts,
            "resumed_rows": metrics.resumed_rows,
            "distinct_inputs": metrics.distinct_inputs,
            "cache_hits": metrics.cache_hits,
            "requests": metrics.requests,
            "retries": metrics.retries,
            "responses": dict(sorted(metrics.responses.items())),
            "seconds": round(seconds, 3),
            "rows_per_second": round(metrics.committed_rows / seconds, 1),
            "peak_in_flight": metrics.peak_in_flight,
            "plan": self._plan,
        }
        return meanings.in_order(found)


class _Held(NamedTuple):
    """A chunk between reading and commit, and about how much memory it takes."""

    resolving: asyncio.Task[Resolved]
    size_bytes: int


def _is_resolved(held: _Held) -> bool:
    task = held.resolving
    return task.done() and not task.cancelled() and task.exception() is None


class _Stream:
    """The flow of chunks through the engine into parts.

    Chunks are resolved several at a time and committed in order, so that the parts never have a
    gap. Reading goes on while the engine is hungry and what is held between reading and commit
    stays below HELD_BYTES, which bounds the memory.
    """

    def __init__(
        self,
        config: RunConfig,
        opened: _Opened,
        engine: Engine,
        threads: Executor,
        emit: Observer,
        stop: Stop,
    ) -> None:
        self._config = config
        self._opened = opened
        self._engine = engine
        self._threads = threads
        self._emit = emit
        self._stop_reading = stop
        self._errors = sum(part.errors for part in opened.manifest.parts)
        self._held_bytes = 0
        self._released = asyncio.Event()
        self._full = self._unresolved = False
        # Parquet gives the dictionaries of joined chunks back as one, whose order inside of lists
        # and structs would tell in the output how they were joined.
        self._joins = not nests_dictionary(opened.source.plan.schema)
        self._held: deque[_Held] = deque()
        self._read_to_end = False
        self._arrived = asyncio.Event()

    async def flow(self) -> None:
        """Stream all rows that are not committed yet. Raises what stopped the run."""
        self._check_errors()
        reader = asyncio.create_task(self._read(), name="reader")
        try:
            while await self._any_held():
                self._tell(unresolved=not self._held[0].resolving.done())
                await asyncio.wait([self._held[0].resolving])
                self._tell(unresolved=False)
                await self._commit_group()
            await reader
        finally:
            reader.cancel()
            tasks: list[asyncio.Task[Any]] = [reader]
            for held in self._held:
                held.resolving.cancel()
                tasks.append(held.resolving)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        chunks = self._opened.source.chunks(
            self._opened.manifest.rows, max_rows=CHUNK_ROWS, max_bytes=CHUNK_BYTES
        )
        try:
            while True:
                await self._engine.hungry()
                await self._room()
                chunk = await in_thread(
                    lambda: next(chunks, None), self._stop_reading, self._threads
                )
                if chunk is None:
                    break
                size_bytes = chunk.table.nbytes + ROW_BYTES * chunk.table.num_rows
                self._held_bytes += size_bytes
                resolving = asyncio.create_task(self._engine.resolve(chunk.first_row, chunk.table))
                self._held.append(_Held(resolving, size_bytes))
                del chunk, resolving  # or they are held while the next one is waited for
                self._arrived.set()
        finally:
            chunks.close()
            # Also after a failure to read: the chunks before it are resolved and committed.
            self._engine.no_more_input()
            self._read_to_end = True
            self._arrived.set()

    async def _any_held(self) -> bool:
        """Wait for a chunk to commit; gives False after the last one."""
        while not (self._held or self._read_to_end):
            self._arrived.clear()
            await self._arrived.wait()
        return bool(self._held)

    def _due(self) -> list[_Held]:
        """Take the oldest chunk, and where commits lag behind all that are resolved after it.

        They become one part, so that a commit's cost (three fsyncs, and as many waits for the
        interpreter's lock) is shared by the more rows the faster rows come.
        """
        resolved = list(takewhile(_is_resolved, self._held))
        count = 1
        if self._joins and len(resolved) >= PILE:
            sizes = accumulate(held.size_bytes for held in resolved)
            count = max(1, bisect_right(list(sizes), PART_BYTES))
        return [self._held.popleft() for _ in range(count)]

    async def _commit_group(self) -> None:
        """Commit the chunks that are due as one part."""
        group = self._due()
        await self._commit(joined([held.resolving.result() for held in group]))
        self._held_bytes -= sum(held.size_bytes for held in group)
        self._released.set()

    async def _room(self) -> None:
        """Wait until there is room for another chunk."""
        while self._held_bytes >= HELD_BYTES:
            self._tell(full=True)
            self._released.clear()
            await self._released.wait()
        self._tell(full=False)

    def _tell(self, *, full: bool | None = None, unresolved: bool | None = None) -> None:
        """Tell the engine whether reading waits for the oldest chunk to be resolved.

        Where it waits for a commit, there is no need to send a batch that is not full.
        """
        self._full = self._full if full is None else full
        self._unresolved = self._unresolved if unresolved is None else unresolved
        self._engine.input_blocked(self._full and self._unresolved)

    async def _commit(self, resolved: Resolved) -> None:
        opened = self._opened
        revision = self._engine.revision

        def write() -> None:
            part = write_part(
                opened.directory.parts,
                resolved.table,
                first_row=resolved.first_row,
                errors=resolved.errors,
                labels=resolved.labels,
                revision=revision.current,
            )
            if revision.confirmed and opened.manifest.revision is None:
                opened.manifest.set_revision(str(revision.current))
            opened.manifest.add_part(part)

        await in_thread(write, executor=self._threads)
        self._errors += resolved.errors
        self._emit(
            PartCommitted(
                resolved.first_row, resolved.table.num_rows, resolved.errors, resolved.labels
            )
        )
        self._check_errors()

    def _check_errors(self) -> None:
        allowed = self._config.allowed_errors(self._opened.source.plan.rows)
        if allowed is not None and self._errors > allowed:
            raise TooManyErrors(
                f"{self._errors} rows failed, more than max_errors allows "
                f"({self._config.max_errors}). "
                "What was answered is kept; mend the cause or raise max_errors, then run again."
            )


def _deadline_passed(seconds: float) -> StoppedEarly:
    return StoppedEarly(
        f"The deadline of {seconds:g} s passed. Run the same command again to continue."
    )


def _unbegun(reason: BaseException) -> RunEnded:
    state = "refused" if isinstance(reason, UsageError) else "stopped"
    return RunEnded(state, getattr(reason, "exit_code", 1), str(reason))


def _metadata(config: RunConfig, manifest: Manifest) -> dict[bytes, bytes]:
    """What the output tells of its origin; no time, so that equal runs give equal bytes."""
    facts = {
        "software": f"classify-pipeline {pipeline.__version__}",
        "endpoint": urlsplit(config.endpoint).netloc or config.endpoint,
        "model": config.model_id or "",
        "model_revision": manifest.latest_revision or "",
        "top_k": str(config.top_k),
        "function_to_apply": config.function_to_apply or "",
        "truncate": str(config.truncate).lower(),
    }
    return {f"classify.{key}".encode(): value.encode() for key, value in facts.items()}
