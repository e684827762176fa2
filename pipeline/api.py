"""What `library` and the command line call: `run`, `classify` and `aclassify`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

from pipeline.config import RunConfig, unknown
from pipeline.errors import ClassifyError, Interrupted, ResumeRefused, SettingsError
from pipeline.job.runner import Run
from pipeline.job.status import status_of
from pipeline.observers import NotebookProgress, in_kernel, progress_for, result_html
from pipeline.producer import TableSource
from pipeline.rows import check_columns, result_fields
from pipeline.store import LocalStore, output_at, place_of
from pipeline.system.threads import Stop, in_thread
from pipeline.tables import open_table, texts
from pipeline.wording import as_call, counted, setting, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from pipeline.events import Observer

P = ParamSpec("P")
R = TypeVar("R")
_CONTINUE = "Run the same command again to continue."


@dataclass(frozen=True, repr=False)
class RunResult:
    """What came of a run; `summary` has all of it, as `classify run --json` prints it.

    Offers the Arrow PyCapsule interface, as a table that is read from the output.
    """

    summary: dict[str, Any]
    error_column: str = "error"

    @property
    def exit_code(self) -> int:
        """0 where every row is labelled or errors are within `max_errors`, else 3."""
        return int(self.summary["exit_code"])

    @property
    def output(self) -> Path | str:
        """The labelled table: its path, or its address."""
        return place_of(self.summary["output"])

    def to_arrow(self) -> pa.Table:
        """Read the labelled table into memory, as a pyarrow Table."""
        return _read(self.output)

    def to_pandas(self) -> Any:
        """Read the labelled table into memory, as a pandas DataFrame."""
        return self.to_arrow().to_pandas()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def errors_by_cause(self) -> dict[str, int]:
        """Count the rows with an error by what their error says, the most frequent first."""
        causes: Counter[str] = Counter()
        for file in output_at(self.output).files():
            with file.open() as opened, pq.ParquetFile(opened) as table:
                for batch in table.iter_batches(columns=[self.error_column]):
                    for found in batch.column(0).drop_null().value_counts().to_pylist():
                        causes[found["values"]] += found["counts"]
        return dict(causes.most_common())

    def report(
        self,
        page: str | Path | None = None,
        *,
        columns: Sequence[str] = (),
        gold: str | None = None,
        label_map: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a page on this run, as `classify report` does, and return its path.

        `columns` are shown beside the text of rows. The labels are measured against the true ones
        of the column `gold`; `label_map` is that of `evaluate`. Raises UsageError if the page
        cannot be written, there is no such column, or the extra `report` is not installed.
        """
        from pipeline.report import write_report

        names = (columns,) if isinstance(columns, str) else columns
        path = None if page is None else Path(page)
        return write_report(self.output, path, columns=names, gold=gold, label_map=label_map)

    def __str__(self) -> str:
        found = self.summary
        return (
            f"{found['output']}: {counted(found['rows'], 'row')}, {found['labelled']:,} labelled, "
            f"{found['errors']:,} with errors; {counted(found['requests'], 'request')} in "
            f"{found['seconds']:,.1f} s"
        )

    def __repr__(self) -> str:
        return f"<RunResult {self}>"

    def _repr_html_(self) -> str:
        causes: dict[str, int] = {}
        if self.summary["errors"]:
            # The output may have been moved since: the rest is true all the same.
            with suppress(OSError, pa.ArrowException, KeyError):
                causes = self.errors_by_cause()
        return result_html(self.summary, causes)


def _read(output: Path | str, schema: pa.Schema | None = None) -> pa.Table:
    if isinstance(output, Path):
        # A relative path such as `exp:1/out.parquet` would be taken for a URI.
        return pq.read_table(output.absolute(), schema=schema, partitioning=None)
    tables = []
    for file in output_at(output).files():
        with file.open() as opened:
            tables.append(pq.read_table(opened, schema=schema, partitioning=None))
    return pa.concat_tables(tables)


def run(
    config: RunConfig,
    *,
    progress: bool | None = None,
    observers: Sequence[Observer] = (),
    restart: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    ask_again: bool = False,
    update: bool = False,
) -> RunResult:
    """Label a table of files; see `library`, and for the rest `EarlierRun`."""
    with _shown(progress) as shown:
        job = Run(config, observers=[*shown, *observers])
        execute = partial(
            job.execute,
            restart=restart,
            overwrite=overwrite,
            retry_failed=retry_failed,
            ask_again=ask_again,
            update=update,
        )
        return RunResult(_blocking(job, execute), config.error_column)


def classify(
    table: Any,
    settings: dict[str, Any],
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Any:
    """Label a table in memory; see `library`."""
    __tracebackhide__ = True
    with _output_in(checkpoint) as output, _shown(progress) as shown:
        work = _InMemory(table, output, settings, shown)
        _blocking(work.job, work.job.execute)
        return work.result()


async def aclassify(
    table: Any,
    settings: dict[str, Any],
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Any:
    """Label a table in memory beside other work of the event loop; see `library`."""
    __tracebackhide__ = True
    with _output_in(checkpoint) as output, _shown(progress) as shown:
        work = await in_thread(lambda: _InMemory(table, output, settings, shown), Stop())
        try:
            await work.job.execute()
        except ClassifyError as error:
            raise error.with_traceback(None) from error.__cause__
        except asyncio.CancelledError:
            raise asyncio.CancelledError from None  # as short; it gets its words outside
        return await in_thread(work.result)


def settings_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a function's arguments that are settings."""
    return {name: arguments[name] for name in RunConfig.model_fields if name in arguments}


def config_of(arguments: Mapping[str, Any]) -> RunConfig:
    """Return the RunConfig that `run` was given, or that of its settings. Raises SettingsError."""
    settings = settings_of(arguments)
    config = settings["input"]
    if not isinstance(config, RunConfig):
        return RunConfig(**settings)
    fields = RunConfig.model_fields
    beside = [
        name
        for name, value in settings.items()
        if name != "input" and value != (None if name == "output" else fields[name].default)
    ]
    if beside:
        raise SettingsError(
            f"{setting(beside[0])}: given beside a RunConfig, which has all settings.",
            "Give it to RunConfig.",
        )
    return config


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function refuse a keyword that it does not have, in the words for settings.

    Raises SettingsError, which names the nearest setting.
    """
    keywords = frozenset(signature(function).parameters)

    @wraps(function)
    def call(*arguments: P.args, **settings: P.kwargs) -> R:
        __tracebackhide__ = True
        for name in settings:
            if name in ("input", "output") and name not in keywords:
                raise SettingsError(
                    f"{setting(name)}: classify takes a table and gives one back.",
                    "For files, use run.",
                )
            if name not in keywords:
                raise unknown(name)
        return function(*arguments, **settings)

    return call


@contextmanager
def _output_in(checkpoint: str | Path | None) -> Iterator[Path]:
    """Yield the path of an output, in the checkpoint or in a temporary one.

    A temporary one outlives a call that fails after something was answered.
    """
    directory = Path(checkpoint or tempfile.mkdtemp(prefix="classify-"))
    try:
        yield directory / "labelled.parquet"
    except BaseException as error:
        kept = _is_kept(directory)
        if not (checkpoint or kept):
            shutil.rmtree(directory, ignore_errors=True)
        word = partial(as_call, checkpoint="" if checkpoint else str(directory), kept=kept)
        if isinstance(error, ResumeRefused):
            error.fix = f"Give another {setting('checkpoint')}, or delete {directory}."
        elif isinstance(error, ClassifyError):
            error.fix = word(error.fix)
            if error.summary is not None:
                error.summary["message"] = str(error)
        elif isinstance(error, asyncio.CancelledError):
            when = "after storing what" if kept else "before anything"
            error.args = (shown(f"Cancelled {when} was answered. {word(_CONTINUE)}"),)
        elif kept:
            error.add_note(shown(word("")))
        raise
    if not checkpoint:
        shutil.rmtree(directory, ignore_errors=True)


def _is_kept(checkpoint: Path) -> bool:
    """Return True if a checkpoint holds anything that was answered."""
    try:
        found = status_of(checkpoint)
    except ClassifyError:
        return True  # nobody knows
    return found is not None and bool(found.committed_rows or found.answers)


class _InMemory:
    """A run over a table in memory, which is read through Arrow: a large one takes a while."""

    def __init__(
        self, table: Any, output: Path, settings: dict[str, Any], observers: Sequence[Observer]
    ) -> None:
        self._output = output
        places = {"input": "(a table in memory)", "output": output}
        self._config = config = RunConfig(**settings, **places)
        if isinstance(table, pa.RecordBatchReader):
            # It can be read only once: a wrong column should not cost its rows.
            check_columns(table.schema, config)
        self._table = open_table(table, config.text)
        if config.limit is not None:
            self._table = self._table.first(config.limit)
        arrow = texts(self._table, [name for name in (config.text, config.text_pair) if name])
        # The other columns are only named, so that they may hold anything.
        others = [pa.field(name, pa.null()) for name in self._table.names]
        own = set(arrow.column_names)
        check_columns(pa.schema([*arrow.schema, *(f for f in others if f.name not in own)]), config)
        store = LocalStore(output, output.parent)
        self.job = Run(config, source=TableSource(arrow), store=store, observers=observers)

    def result(self) -> Any:
        """The labelled table, of the kind that was given."""
        schema = pa.schema(result_fields(self._config))
        return self._table.with_results(_read(self._output, schema))


@contextmanager
def _shown(progress: bool | None) -> Iterator[list[Observer]]:
    """Yield the observer that shows progress here, or none if that is not wanted."""
    if not (in_kernel() if progress is None else progress):
        yield []
        return
    with closing(NotebookProgress() if in_kernel() else progress_for(sys.stderr)) as display:
        yield [display]


def _blocking(
    job: Run, execute: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
) -> dict[str, Any]:
    """Run to the end from synchronous code, wherever that code runs."""
    __tracebackhide__ = True
    # The default loop takes a quarter more CPU a request.
    loop = uvloop.new_event_loop()

    def work() -> dict[str, Any]:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(execute())

    try:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            with _signals_to(job, loop, (signal.SIGINT, signal.SIGTERM)):
                return work()
        # Beside a loop that is running here already, such as Jupyter's.
        with (
            ThreadPoolExecutor(1, "classify") as thread,
            _signals_to(job, loop, (signal.SIGINT,)),
        ):
            return thread.submit(work).result()
    except ClassifyError as error:
        # Its words are what helps, not the way that it came.
        raise error.with_traceback(None) from error.__cause__


@contextmanager
def _signals_to(
    job: Run, loop: asyncio.AbstractEventLoop, numbers: Sequence[signal.Signals]
) -> Iterator[None]:
    """Pass signals on to a run, for as long as its loop is not closed for good.

    Not by KeyboardInterrupt, which could strike anywhere and leave the run alone, and not by the
    loop's own handlers, which it takes off before it has ended.
    """

    def interrupt(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        reason = Interrupted(
            f"Stopped by {name} after storing what was answered.", _CONTINUE, signal_number=number
        )
        with suppress(RuntimeError):  # the loop is closed: the run has ended
            loop.call_soon_threadsafe(job.interrupt, reason)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
