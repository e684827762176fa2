"""One run: producer, workers and writer tied together; lock, resume, signals, summary."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa

from pipeline.engines import open_engine
from pipeline.errors import (
    ClassifyError,
    Interrupted,
    OutputBusy,
    RevisionMoved,
    StoppedEarly,
    UsageError,
)
from pipeline.events import (
    BeginsAgain,
    CellsOfJson,
    LabelsNotRenamed,
    NothingToRetry,
    PartsDamaged,
    RunEnded,
    RunStarted,
    Stopping,
    fan_out,
)
from pipeline.job import kept, opening, room, summary
from pipeline.job.decisions import Complete, Standing
from pipeline.job.renewing import holds_answers
from pipeline.job.replacing import check_before_publishing
from pipeline.job.stream import Stream
from pipeline.observers import EventLog, Metrics
from pipeline.producer import InputTable
from pipeline.responses import ResponseStores
from pipeline.rows import Allowance, Dedup, DriftGuard, Resolver, Revision, output_schema
from pipeline.rows.shown import not_renamed
from pipeline.store import open_ranges, open_store
from pipeline.system import means
from pipeline.system.failpoints import failpoint
from pipeline.system.threads import Stop, in_thread
from pipeline.wording import listed
from pipeline.writer import assemble, nested, write_empty_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.config import RunConfig
    from pipeline.evaluation import Evaluation
    from pipeline.events import Observer
    from pipeline.job.decisions import EarlierRun, Opening
    from pipeline.observers.metrics_file import MetricsFile
    from pipeline.producer import Source
    from pipeline.store import RunStore
    from pipeline.store.objects import OnLost

# What is done with rows is Python code in good part, which only one thread at a time can run; each
# more thread is one more that the others wait for.
ROW_THREADS = 2


@contextmanager
def _told(metrics: Metrics) -> Iterator[None]:
    """Raise what tells whether the same command can continue, not only what failed."""
    try:
        with means.told():
            yield
    except UsageError as error:
        if not metrics.requests:
            raise
        raise error.after_sending() from error


class Run:
    """One attempt at a run. `execute` does it; `stop` ends it early, keeping what was done.

    `evaluation` is how good its labels are, once it is complete, if `gold` says what is true.

    `source` replaces the input files by a table in memory, `store` the run directory beside the
    output.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        source: Source | None = None,
        store: RunStore | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._config = config
        self._store = store or open_store(config.output, config.run_dir)
        self._source = source
        self._metrics = Metrics()
        self._observers: list[Observer] = [self._metrics, *observers]
        self._metrics_file: MetricsFile | None = None
        if config.metrics_file is not None:
            # Imported only if asked for: it takes a tenth of a second.
            from pipeline.observers.metrics_file import MetricsFile

            self._metrics_file = MetricsFile(config, self._metrics, fan_out(self._observers))
            self._observers.append(self._metrics_file)
        self._plan: dict[str, Any] | None = None
        self.evaluation: Evaluation | None = None
        self._evaluated: dict[str, Any] | None = None
        self._stop = Stop()
        self._damaged_parts = 0
        self._interrupts = 0
        self._task: asyncio.Task[Any] | None = None

    def stop(self, reason: BaseException) -> None:
        """Send nothing more, wait for what is in flight, commit, and raise `reason`."""
        self._stop.ask(reason)
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

    async def execute(self, **earlier: Unpack[EarlierRun]) -> dict[str, Any]:
        """Run to the end. Return the summary.

        Raises UsageError before this attempt has sent anything, and any other ClassifyError after
        what was done has been committed; `summary` of such an error is the summary so far.
        """
        self._task = asyncio.current_task()
        # Its own handlers would swallow an interrupt during a long read.
        pa.enable_signal_handlers(False)
        started = time.monotonic()
        async with AsyncExitStack() as leaving:
            if self._metrics_file is not None:
                leaving.push_async_callback(self._metrics_file.close)
            retries = earlier.get("retry_failed", False)
            loop = asyncio.get_running_loop()

            def on_lost(busy: OutputBusy) -> None:
                loop.call_soon_threadsafe(self._stop.ask, busy)

            open_ = partial(self._open, leaving, on_lost, **earlier)
            return await self._attempt(started, open_, retry_failed=retries)

    async def _attempt(
        self, started: float, open_: Callable[[], Opening], *, retry_failed: bool
    ) -> dict[str, Any]:
        emit = fan_out(self._observers)
        try:
            with means.told():
                opened = await in_thread(open_, self._stop)
        except asyncio.CancelledError as cancelled:
            reason = self._stop.reason or cancelled
            emit(RunEnded.unbegun(reason))
            raise reason from None
        except BaseException as failure:
            emit(RunEnded.unbegun(failure))
            raise
        if isinstance(opened, Complete):
            if retry_failed:
                emit(NothingToRetry())
            return await self._stand(opened, started, emit)
        self._plan = kept.find(self._config, self._store, opened)
        log = EventLog(self._store.events)
        self._observers.append(log)
        emit = fan_out(self._observers)
        error: BaseException | None = None
        try:
            with _told(self._metrics):
                await self._execute(opened, emit)
            self._tell_of_names(emit)
            await self._measure()
        except asyncio.CancelledError as cancelled:
            # A second signal cancels; what ended the run is still the first one.
            error = self._stop.reason or cancelled
            raise error from None
        except BaseException as failure:
            error = failure
            raise
        finally:
            found = self._summary(started, error)
            is_lost = isinstance(error, OutputBusy)  # what is told last is of the other run
            if is_lost:
                self._observers.remove(log)
            emit(RunEnded(found["state"], found["exit_code"], str(error) if error else None))
            log.close()
            if not is_lost:
                with suppress(StoppedEarly):
                    self._store.put_summary(found)
            if isinstance(error, ClassifyError):
                error.summary = found
        return found

    async def _stand(self, opened: Complete, started: float, emit: Observer) -> dict[str, Any]:
        """Tell of a run that was complete already, and measure its labels if that is asked for."""
        self._announce(opened, emit)
        self._tell_of_names(emit)
        await self._measure()
        found = self._summary(started, None)
        if found["evaluation"] is not None:
            await in_thread(partial(self._store.put_evaluation, found))
        emit(RunEnded(found["state"], found["exit_code"], None))
        return found

    def _summary(self, started: float, error: BaseException | None) -> dict[str, Any]:
        state = self._store.log.run
        done = state.complete or summary.facts(self._config, state, "stopped")
        return summary.of_attempt(done, self._metrics, started, error, self._plan, self._evaluated)

    def _tell_of_names(self, emit: Observer) -> None:
        """Tell of labels to rename that the complete output lacks, if others kept their name."""
        done = self._store.log.run.complete or {}
        if (found := not_renamed(done.get("labels", {}), self._config)) is not None:
            emit(LabelsNotRenamed(*found))

    async def _measure(self) -> None:
        """Measure the labels of the complete output against the true ones.

        If that is impossible, the summary says why: the labels stand all the same.
        """
        gold = self._config.gold
        if gold is None:
            return
        from pipeline.evaluation import Facts, measured

        settings = self._store.log.run.run.settings
        try:
            measure = partial(measured, self._store.output, gold, settings)
            self.evaluation = await in_thread(measure, self._stop)
            self._evaluated = Facts.of(self.evaluation)
        except ClassifyError as error:
            self._stop.check()
            self._evaluated = Facts.without(gold, str(error))

    def _open(
        self, leaving: AsyncExitStack, on_lost: OnLost, **earlier: Unpack[EarlierRun]
    ) -> Opening:
        """Check everything that can be checked; write only once all is well.

        If the output is complete already, nothing is begun. `leaving` gives the lease back, and
        `on_lost` is called if another run takes it.
        """
        store = self._store
        decide = partial(opening.decide, self._config, store, self._source, **earlier)
        opening.check(self._config, store)
        store.check()
        acquire = partial(store.lease.acquire, on_lost=on_lost)
        leaving.callback(store.lease.release)
        leased = acquire(create=False)
        found = decide()
        left = found.source.input.rows - (found.state.rows if found.state else 0)
        room.check(self._config, store, found, left)
        if not leased:
            acquire(create=True)
            if store.log.entries.exists():
                # Another process began this run while there was nothing to lease.
                found = decide()
        try:
            self._damaged_parts = opening.begin(self._config, store, found)
        except OutputBusy:
            if store.lease.is_lock or not store.lease.is_held():
                raise
            # An owner that had been frozen woke, and wrote once more before its beat stopped it.
            found = decide()
            self._damaged_parts = opening.begin(self._config, store, found)
        return found

    async def _execute(self, opened: Opening, emit: Observer) -> None:
        config, log = self._config, self._store.log
        self._announce(opened, emit)
        if columns := nested(str(config.output), output_schema(opened.source.input.schema, config)):
            emit(CellsOfJson(listed(columns)))
        if self._damaged_parts:
            emit(PartsDamaged(self._damaged_parts))
        deadline = config.deadline and asyncio.get_running_loop().call_later(
            config.deadline,
            self.stop,
            StoppedEarly(
                f"The deadline of {config.deadline:g} s passed.",
                "Run the same command again to continue.",
            ),
        )
        try:
            revision = opening.revision(log.run)
            while log.run.rows < opened.source.input.rows:
                self._stop.check()
                try:
                    await self._label(opened, revision, emit)
                except RevisionMoved as moved:
                    emit(BeginsAgain(moved.revision, moved.stored))
                    await in_thread(partial(log.begin_again, moved.revision))
                    self._announce(opened, emit)
                    revision = Revision(moved.revision, told=True)
        finally:
            if deadline:
                deadline.cancel()
        self._stop.check()
        await in_thread(lambda: self._finish(opened), self._stop)

    def _announce(self, opened: Opening, emit: Observer) -> None:
        state = self._store.log.run
        emit(
            RunStarted(
                rows=opened.source.input.rows,
                resumed_rows=state.rows,
                output=str(self._config.output),
                endpoint=self._config.public_endpoint,
                model=self._config.model_id,
                resumed_errors=state.errors,
            )
        )

    async def _label(self, opened: Opening, revision: Revision, emit: Observer) -> None:
        """Label and commit all rows that are not committed yet."""
        config, log = self._config, self._store.log
        answers, earlier = opening.stores(config, self._store, log.run)
        # What ends this pass alone does not end the run.
        stop = Stop(self._stop)
        allowance = Allowance(config, opened.source.input.rows, log.run.errors)
        drift = DriftGuard(revision, emit, allow_drift=config.allow_drift)
        open_answers = partial(ResponseStores, answers, earlier)
        with ThreadPoolExecutor(ROW_THREADS, "rows") as threads:
            # The engine is left first, so that its last answers still reach the store.
            async with (
                Dedup(open_answers, emit, drift, allowance, stop) as dedup,
                open_engine(config, emit, stop, requests_sent=self._metrics.requests) as engine,
            ):
                if config.cache is not None:  # which could be opened
                    await in_thread(partial(log.add_cache, str(config.cache.absolute())))
                stream = Stream(
                    config,
                    opened.source,
                    self._store,
                    engine.demand,
                    Resolver(config, engine, dedup, drift, threads, stop),
                    allowance=allowance,
                    threads=threads,
                    emit=emit,
                    stop=stop,
                    final_schema=None if self._store.output.is_file else self._output_schema,
                )
                try:
                    await stream.flow()
                finally:
                    if drift.mixed:
                        await in_thread(log.set_mixed)
                    if drift.revision.told:
                        await in_thread(partial(log.set_revision, drift.revision.name))

    def _finish(self, opened: Opening) -> None:
        """Assemble the output, record that it stands, and tidy up."""
        store, state = self._store, self._store.log.run
        if not isinstance(opened, Standing):
            rows = opened.source.input.rows
            assert not open_ranges(state.parts, rows), "each row has a part"
            # What the stream used is free but not given back, and assembling would come on top.
            pa.default_memory_pool().release_unused()
            if store.output.is_file:
                schema = self._output_schema(state.latest_revision)
                parts = [store.part(part) for part in state.parts]
                assemble(parts, schema, store.output, rows=state.rows)
                store.log.set_assembled(store.output.draft_identity())
            else:
                if not state.parts:  # an input without rows
                    store.log.add_part(write_empty_part(store, self._output_schema(None)))
                store.log.set_assembled(store.draft_parts())
            failpoint("finish.identified")
            check_before_publishing(self._config, store, opened.source.input)
            store.output.publish()
        failpoint("finish.assembled")
        done = summary.facts(self._config, store.log.run, "complete")
        store.finish(done, keep_answers=not holds_answers(store.log.run))

    def _output_schema(self, revision: str | None) -> pa.Schema:
        """Return the schema of the output, with what it tells of its origin."""
        # Of the input, even if it is gone and the output is what was gone through.
        read = InputTable.from_json(self._store.log.run.run.input).schema
        schema = output_schema(read, self._config)
        metadata = {**(schema.metadata or {}), **summary.metadata(self._config, revision)}
        return schema.with_metadata(metadata)
