"""What notebooks and the command line call: `run`, `classify` and `aclassify`."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import uvloop

from pipeline.config import RunConfig
from pipeline.errors import InputError, Interrupted
from pipeline.producer import TableSource
from pipeline.runner import Run
from pipeline.threads import Stop, in_thread
from pipeline.workers import output_schema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from pipeline.events import Observer

T = TypeVar("T")


@dataclass(frozen=True)
class RunResult:
    """What came of a run; `summary` has all of it, as `classify run --json` prints it."""

    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """0 where every row is labelled or errors are within `max_errors`, else 3."""
        return int(self.summary["exit_code"])

    @property
    def output(self) -> Path:
        """The labelled table."""
        return Path(self.summary["output"])

    def __str__(self) -> str:
        found = self.summary
        return (
            f"{found['output']}: {found['rows']:,} rows, {found['labelled']:,} labelled, "
            f"{found['errors']:,} with errors; {found['requests']:,} requests in "
            f"{found['seconds']:,.1f} s"
        )


def run(
    config: RunConfig,
    *,
    observers: Sequence[Observer] = (),
    restart: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> RunResult:
    """Label a table of files, as `classify run` does.

    Runs inside a running event loop too (in a thread of its own). Raises an error of the tree in
    `pipeline.errors`; what was committed by then is kept, and the same call continues it.
    """
    job = Run(config, observers=observers)

    def execute() -> Awaitable[dict[str, Any]]:
        return job.execute(restart=restart, overwrite=overwrite, retry_failed=retry_failed)

    return RunResult(_blocking(job, execute))


def classify(table: Any, *, checkpoint: str | Path | None = None, **settings: Any) -> Any:
    """Label a table in memory and give the same kind of table back, with the result columns.

    `table` is a pandas or polars DataFrame, a pyarrow Table, or anything else that offers the
    Arrow PyCapsule interface (which comes back as a pyarrow Table). `settings` are those of
    RunConfig. With `checkpoint`, a directory, an interrupted call keeps what was done and the
    same call continues it. Runs inside a running event loop too.
    """
    with _InMemory(table, checkpoint, settings) as work:
        job = work.prepare()
        _blocking(job, job.execute)
        return work.result()


async def aclassify(table: Any, *, checkpoint: str | Path | None = None, **settings: Any) -> Any:
    """Do what `classify` does without blocking the event loop.

    The table is read in a thread: leave it as it is until this returns.
    """
    with _InMemory(table, checkpoint, settings) as work:
        job = await in_thread(work.prepare, Stop())
        await job.execute()
        return await in_thread(work.result)


class _InMemory:
    """A run over a table in memory: its output lies in the checkpoint, or in a temporary place."""

    def __init__(self, table: Any, checkpoint: str | Path | None, settings: dict[str, Any]) -> None:
        self._table = table
        self._checkpoint = checkpoint
        self._settings = settings
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._directory = Path(
            self._checkpoint
            or self._stack.enter_context(tempfile.TemporaryDirectory(prefix="classify-"))
        )
        return self

    def prepare(self) -> Run:
        """Read the table through Arrow, and give the run over it; takes as long as it is large."""
        text = self._settings.get("text", "text"), self._settings.get("text_pair")
        arrow = _as_arrow(self._table, [name for name in text if isinstance(name, str)])
        self._output = self._directory / "labelled.parquet"
        settings = {**self._settings, "input": "(a table in memory)", "output": self._output}
        config = RunConfig(**settings)
        self._schema = output_schema(arrow.schema, config)
        return Run(config, source=TableSource(arrow), directory=self._directory)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def result(self) -> Any:
        """The labelled table, of the kind that was given."""
        labelled = pq.read_table(self._output, schema=self._schema, partitioning=None)
        kind = _kind(self._table)
        if kind == "pandas":
            # The caller's own columns and index, untouched; only the results come from Arrow.
            added = labelled.select(labelled.schema.names[self._table.shape[1] :]).to_pandas()
            return self._table.assign(**{str(name): added[name].array for name in added})
        if kind == "polars":
            import polars as pl

            return pl.from_arrow(labelled)
        return labelled


def _kind(table: Any) -> str:
    return type(table).__module__.partition(".")[0]


def _from_pandas(frame: Any, text: Sequence[str]) -> Any:
    """Read the columns to classify; the others stay in the frame and are only named here."""
    columns = [
        _texts(frame.iloc[:, i]) if name in text else pa.nulls(len(frame))
        for i, name in enumerate(frame.columns)
    ]
    return pa.table(columns, names=[str(name) for name in frame.columns])


def _texts(series: Any) -> Any:
    """Read a column; what is no text in it (it may hold anything) is an error of its row.

    Such a value becomes bytes that are no UTF-8, which the resolver reports.
    """
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, UnicodeEncodeError):
        values = [
            value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"\xff"
            for value in series
        ]
        present = series.notna().to_numpy()
        return pa.array(values, pa.large_binary(), mask=~present).view(pa.large_string())


def _as_arrow(table: Any, text: Sequence[str]) -> Any:
    """Read a table through Arrow. Raises InputError for what is no table."""
    try:
        kind = _kind(table)
        if kind == "pandas":
            return _from_pandas(table, text)
        if kind == "polars":
            import polars as pl

            # Its own string views cannot be written to Parquet inside dictionaries.
            return table.to_arrow(compat_level=pl.CompatLevel.oldest())
        return pa.table(table)
    except (TypeError, ValueError, AttributeError, pa.ArrowException) as error:
        raise InputError(
            f"A {type(table).__name__} cannot be read as a table: {error}. Give a pandas or polars "
            "DataFrame, a pyarrow Table, or anything with the Arrow PyCapsule interface."
        ) from None


def _blocking(job: Run, execute: Callable[[], Awaitable[T]]) -> T:
    """Run to the end from synchronous code, wherever that code runs."""
    # The default loop takes a quarter more CPU a request.
    loop = uvloop.new_event_loop()
    runner = asyncio.Runner(loop_factory=lambda: loop)

    async def main() -> T:
        return await execute()

    def work() -> T:
        with runner:
            return runner.run(main())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        numbers = (signal.SIGINT, signal.SIGTERM)
        with _signals_to(job, loop, numbers, "Run the same command again to continue."):
            return work()
    # Beside a loop that is running here already, such as Jupyter's.
    outcome: list[Any] = []

    def in_own_thread() -> None:
        try:
            outcome.extend((work(), None))
        except BaseException as error:  # noqa: BLE001  (raised again by the caller)
            outcome.extend((None, error))

    thread = threading.Thread(target=in_own_thread, name="classify")
    with _signals_to(job, loop, (signal.SIGINT,), "With `checkpoint` the same call continues."):
        thread.start()
        thread.join()
    result: T
    result, error = outcome
    if error is not None:
        raise error
    return result


@contextmanager
def _signals_to(
    job: Run, loop: asyncio.AbstractEventLoop, numbers: Sequence[signal.Signals], advice: str
) -> Iterator[None]:
    """Pass signals on to a run, for as long as its loop is not closed for good.

    Not by KeyboardInterrupt, which could strike anywhere and leave the run alone, and not by the
    loop's own handlers, which it takes off before it has ended.
    """

    def interrupt(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        reason = Interrupted(
            f"Stopped by {name} after committing what was answered. {advice}", number
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
