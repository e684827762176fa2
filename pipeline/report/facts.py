"""What a report is about: the state of a run, its log, and the rows that are there."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.errors import ClassifyError, OutputError, SettingsError
from pipeline.evaluation import evaluate
from pipeline.job.status import status_in
from pipeline.labelled import parquet_files
from pipeline.observers.words import EMPTY_LABEL
from pipeline.report.history import History, read_history
from pipeline.report.quality import Quality
from pipeline.report.rows import (
    MOST_LABELS,
    Columns,
    Label,
    LabelledRows,
    Row,
    fetch_texts,
    names_in,
    scan,
)
from pipeline.responses import count_labels
from pipeline.store import located
from pipeline.wording import alike, listed, reason, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.job.status import Status
    from pipeline.store import ByteSource, RunState, RunStore

# A run that is completed meanwhile takes its parts away.
_ATTEMPTS = 3


@dataclass(frozen=True)
class Facts:
    """All that the page tells; `found` is None if there are no rows to read.

    `summary` is empty if the last attempt still runs, or could not write one. `notes` are sentences
    that a reader should know before the rest. `answered` counts the stored answers of a run that is
    not complete by their label: those of rows that are not committed yet, too.
    """

    status: Status
    history: History
    software: str
    columns: Columns | None
    found: LabelledRows | None
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    answered: list[Label] = field(default_factory=list)
    quality: Quality | None = None

    @property
    def one_attempt(self) -> bool:
        """True if the summary speaks for the whole run."""
        return len(self.history.attempts) < 2 and "requests" in self.summary  # noqa: PLR2004

    def total(self, name: Literal["requests", "retries", "seconds"]) -> float:
        """Return the sum of a number over all attempts."""
        of_each = [getattr(attempt, name) for attempt in self.history.attempts]
        total: float = self.summary[name] if self.one_attempt else sum(of_each)
        return total

    @property
    def rows_per_second(self) -> float | None:
        """Committed rows over the time of all attempts; None if they took no time."""
        if self.one_attempt:
            return float(self.summary["rows_per_second"])
        seconds = self.total("seconds")
        return self.status.committed_rows / seconds if seconds else None


def gather(
    output: Path | str,
    run_dir: Path | str | None = None,
    more: Sequence[str] = (),
    gold: str | None = None,
    label_map: Mapping[str, str] | None = None,
) -> Facts:
    """Read what there is of the run of an output, or of a run directory.

    `more` are columns to show beside the texts; `gold` is the column of true labels, `label_map`
    that of `evaluate`. Raises OutputError if there is no run or its rows cannot be read,
    SettingsError or InputError for a column that it does not have, ResumeRefused for a damaged log,
    StoppedEarly for a disk that cannot be read.
    """
    store = located(output, run_dir)
    for _ in range(_ATTEMPTS):
        status = status_in(store, str(output))
        if status is None:
            raise OutputError(
                f"No run is recorded in {store.place}, so there is nothing to report.",
                "Give the path that `classify run` has as -o.",
            )
        with suppress(FileNotFoundError):
            facts = _facts(store, status, more)
            if facts.columns is None:
                return facts
            if gold is not None:
                measured = _quality(store, facts, output, run_dir, gold, label_map)
                return replace(facts, quality=measured)
            recorded = (facts.summary.get("evaluation") or {}).get("gold")
            if recorded is not None and facts.found is not None:
                with suppress(ClassifyError):  # what the run could not measure either, it has told
                    measured = _quality(store, facts, output, run_dir, recorded, label_map)
                    return replace(facts, quality=measured)
            return facts
    raise OutputError(
        f"{store.place}: parts that are recorded are missing.",
        "Run the same `classify run` again: it builds them again.",
    )


def _facts(store: RunStore, status: Status, more: Sequence[str]) -> Facts:
    state = store.load()
    history = read_history(store.events)
    if state is None:
        return Facts(status, history, "", None, None)
    settings = state.run.settings
    names = ("text", "text_pair", "label_column", "score_column", "error_column")
    columns = replace(Columns(*(settings[name] for name in names)), more=tuple(more))
    notes: list[str] = []
    files = _files(store, state, status, columns, notes)
    found = None if files is None else _scanned(files, columns)
    summary = {} if status.state == "running" else store.summary()
    if status.state != "complete" and status.exit_code is None:
        summary = {}  # of an attempt before the one that was killed
    answered = [] if status.state == "complete" else _answered(store)
    return Facts(status, history, state.run.software, columns, found, summary, notes, answered)


def _quality(
    store: RunStore,
    facts: Facts,
    output: Path | str,
    run_dir: Path | str | None,
    gold: str,
    label_map: Mapping[str, str] | None,
) -> Quality:
    """Measure the labels of a complete run against true ones."""
    if facts.status.state != "complete":
        raise OutputError(
            f"{setting('gold', gold)}: labels are measured once the run is complete.",
            f"Continue it, or leave {setting('gold')} out.",
        )
    found = evaluate(output, gold, label_map=label_map, run_dir=run_dir)
    mistakes = [(mistake, Row(mistake.row)) for mistake in found.mistakes]
    assert facts.columns is not None
    files = _output_files(store, facts.columns)
    fetch_texts(files, facts.columns, [row for _, row in mistakes])
    return Quality(found, mistakes)


def _answered(store: RunStore) -> list[Label]:
    with suppress(OSError):  # it is not there yet, or only its owner may read it
        counts = count_labels(store.journal).most_common(MOST_LABELS)
        return [Label(name or EMPTY_LABEL, texts, []) for name, texts in counts]
    return []


def _files(
    store: RunStore,
    state: RunState,
    status: Status,
    columns: Columns,
    notes: list[str],
) -> list[ByteSource] | None:
    """Return the files that hold the rows: the output, or the committed parts of the run so far."""
    if status.state != "complete":
        return [store.part(part) for part in state.parts]
    if not store.output.exists():
        notes.append("The output is missing, so nothing can be said of its rows.")
        return None
    files = store.output.files()
    if [file.size_bytes for file in files] != [size for size, _ in state.assembled or []]:
        notes.append(
            "The output is no longer what this run wrote. Labels, scores and errors are what it "
            "holds now; all else is as the run recorded it."
        )
    return _output_files(store, columns)


def _output_files(store: RunStore, columns: Columns) -> list[ByteSource]:
    named = (columns.text, columns.text_pair, columns.label, columns.error)
    text, scores = [name for name in named if name], [columns.score]
    wanted = None if columns.more else [*text, *scores]
    return parquet_files(store.output, wanted, text=text, scores=scores)


def _scanned(files: Sequence[ByteSource], columns: Columns) -> LabelledRows:
    try:
        if columns.more and files:
            there = names_in(files[0])
            for name in columns.more:
                if name not in there:
                    raise SettingsError(
                        f"{setting('columns')}: {_place(files)} has no column {name!r}. It has: "
                        f"{listed(there)}.{alike(name, there)}",
                        "Name columns to show beside the text.",
                    )
        return scan(files, columns)
    except KeyError as error:
        raise OutputError(
            f"{_place(files)} has no column {error.args[0]!r}, so it is not what the run wrote.",
            "Restore that, or label the input again.",
        ) from None
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{_place(files)} cannot be read as a labelled table: {reason(error)}."
        ) from None


def _place(files: Sequence[ByteSource]) -> str:
    first = files[0].name
    return first if len(files) == 1 else first.rpartition("/")[0]
