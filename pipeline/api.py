"""What `library` and the command line call: `run`, `classify` and `aclassify`."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import pyarrow as pa
import uvloop

from pipeline.config import RunConfig, unknown
from pipeline.errors import ClassifyError, Interrupted, ResumeRefused, SettingsError
from pipeline.events import Measured
from pipeline.job.runner import Run
from pipeline.job.status import status_of
from pipeline.observers import NotebookProgress, in_kernel, progress_for
from pipeline.producer import TableSource
from pipeline.result import RunResult, read_table
from pipeline.rows import check_columns, check_gold, result_fields
from pipeline.store import LocalStore
from pipeline.system.threads import Stop, in_thread
from pipeline.tables import open_table, texts
from pipeline.wording import as_call, setting, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from pipeline.evaluation import Evaluation
    from pipeline.events import Observer

P = ParamSpec("P")
R = TypeVar("R")
_CONTINUE = "Run the same command again to continue."


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
        summary = _blocking(job, execute)
        return RunResult.of(summary, config, job.evaluation)


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
        _blocking(work.job, partial(work.job.execute, show_again=True))
        labelled = work.result()
        work.tell()
        return labelled


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
            await work.job.execute(show_again=True)
        except ClassifyError as error:
            raise error.with_traceback(None) from error.__cause__
        except asyncio.CancelledError:
            raise asyncio.CancelledError from None  # as short; it gets its words outside
        labelled = await in_thread(work.result)
        work.tell()  # in the thread of the loop, as all that is shown
        return labelled


def measured(labelled: Any, gold: str, config: RunConfig) -> Evaluation:
    """Measure a table in memory that was labelled with these settings. Raises ClassifyError."""
    from pipeline.evaluation import evaluate

    return evaluate(
        labelled,
        gold,
        label_column=config.label_column,
        score_column=config.score_column,
        unsure_label=None if config.threshold is None else config.unsure_label,
        text=config.text,
    )


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
        self._observers = observers
        self._told: Measured | None = None
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
        if config.gold is not None:
            check_gold(texts(self._table, [config.gold]).schema, config)
        store = LocalStore(output, output.parent)
        # True labels are no part of what is labelled: they may change between calls.
        job = config.model_copy(update={"gold": None})
        self.job = Run(job, source=TableSource(arrow), store=store, observers=observers)

    def result(self) -> Any:
        """The labelled table, of the kind that was given."""
        schema = pa.schema(result_fields(self._config))
        labelled = self._table.with_results(read_table(self._output, schema))
        if self._config.gold is not None and self._observers:
            self._told = Measured(self._measured(labelled, self._config.gold))
        return labelled

    def tell(self) -> None:
        """Tell whoever looks on how good the labels are, once there is a result."""
        if self._told is not None:
            for observer in self._observers:
                observer(self._told)

    def _measured(self, labelled: Any, gold: str) -> str:
        """Say how good the labels are, or why nobody can tell."""
        try:
            return " ".join(measured(labelled, gold, self._config).summary())
        except ClassifyError as error:
            return str(error)


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
