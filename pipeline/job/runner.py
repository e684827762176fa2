"""One run: producer, workers and writer tied together; lock, resume, signals, summary."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa

from pipeline.engines import LocalEngine
from pipeline.errors import (
    EXIT_COMPLETE,
    EXIT_ROWS_FAILED,
    ClassifyError,
    Interrupted,
    RevisionMoved,
    StoppedEarly,
    UsageError,
)
from pipeline.events import (
    BeginsAgain,
    NothingToRetry,
    PartsDamaged,
    RunEnded,
    RunStarted,
    Stopping,
    fan_out,
)
from pipeline.job import opening, rundir
from pipeline.job.stream import Stream
from pipeline.job.summary import Origin, Summary
from pipeline.observers import EventLog, Metrics
from pipeline.plan import kept as planned
from pipeline.producer import Plan
from pipeline.responses import ResponseStores
from pipeline.rows import Revision, output_schema
from pipeline.store import disk as storage
from pipeline.system.failpoints import failpoint
from pipeline.system.threads import Stop, in_thread
from pipeline.version import __version__
from pipeline.writer import Manifest, assemble, identify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.engines import Engine
    from pipeline.events import Observer
    from pipeline.job.opening import Settled
    from pipeline.observers.metrics_file import MetricsFile
    from pipeline.producer import Source

# What is done with rows is Python code in good part, which only one thread at a time can run; each
# more thread is one more that the others wait for.
ROW_THREADS = 2


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
            fan_out(self._observers)(Stopping(in_flight))

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
                fan_out(self._observers)(NothingToRetry())
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
            emit(PartsDamaged(opened.damaged_parts))
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
                    emit(BeginsAgain(moved.revision, moved.stored))
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
                stream = Stream(
                    config,
                    opened.source,
                    opened.directory.parts,
                    manifest,
                    engine,
                    threads,
                    emit,
                    self._stop_reading,
                )
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
        return Summary(
            **facts,
            resumed_rows=metrics.resumed_rows,
            distinct_inputs=metrics.distinct_inputs,
            cache_hits=metrics.cache_hits,
            requests=metrics.requests,
            retries=metrics.retries,
            responses=dict(sorted(metrics.responses.items())),
            seconds=round(seconds, 3),
            rows_per_second=round(metrics.committed_rows / seconds, 1),
            peak_in_flight=metrics.peak_in_flight,
            plan=self._plan,
        ).to_json()


def _deadline_passed(seconds: float) -> StoppedEarly:
    return StoppedEarly(
        f"The deadline of {seconds:g} s passed. Run the same command again to continue."
    )


def _unbegun(reason: BaseException) -> RunEnded:
    state = "refused" if isinstance(reason, UsageError) else "stopped"
    return RunEnded(state, getattr(reason, "exit_code", 1), str(reason))


def _metadata(config: RunConfig, manifest: Manifest) -> dict[bytes, bytes]:
    return Origin(
        software=f"classify-pipeline {__version__}",
        endpoint=urlsplit(config.endpoint).netloc or config.endpoint,
        model=config.model_id or "",
        model_revision=manifest.latest_revision or "",
        top_k=str(config.top_k),
        function_to_apply=config.function_to_apply or "",
        truncate=str(config.truncate).lower(),
    ).to_metadata()
