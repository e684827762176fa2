"""How good are the labels? Measured against a column of true ones.

quality  counts rows, and tells accuracy, F1, confusion, thresholds, calibration and mistakes
words    how that is told in a terminal and in a notebook
facts    how it is told in the summary of a run
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config_checks import names_beside_gold
from pipeline.errors import ClassifyError, InputError, OutputError, SettingsError
from pipeline.evaluation.facts import Facts
from pipeline.evaluation.quality import Evaluation, Evaluator, bounds_of
from pipeline.labelled import open_parquet, parquet_files
from pipeline.store import located, output_at, place_of
from pipeline.system.threads import stop_point
from pipeline.tables import open_table, texts
from pipeline.wording import alike, listed, reason, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.store.objects import Output

__all__ = ["Evaluation", "Facts", "evaluate", "measured"]

BATCH_ROWS = 65_536
_NAME_GOLD = "Name the column of true labels."


def evaluate(
    table: Any,
    gold: str | None = None,
    *,
    label_map: Mapping[str, str] | None = None,
    label_column: str | None = None,
    score_column: str | None = None,
    unsure_label: str | None = None,
    text: str | None = None,
    run_dir: str | Path | None = None,
) -> Evaluation:
    """Measure labels against a column of true ones.

    Args:
        table: A labelled table: the path or address of an output of a run, or a table in memory of
            any kind that `classify` takes.
        gold: The column of true labels; rows without one, or with a blank one, are not counted.
            Left out, that of the run.
        label_map: The true name of each label that the model calls otherwise, such as
            `{"LABEL_0": "negative"}`.
        label_column: The column of labels. Left out, that of the run, or `label` (beside true ones
            of that name `predicted_label`).
        score_column: The column of scores. Left out, that of the run, or `score` (`predicted_score`
            likewise), if there is one.
        unsure_label: The label of rows that were not decided, which are only counted. Left out,
            that of the run if it has a threshold.
        text: The column that is shown with mistakes. Left out, that of the run, if it is known.
        run_dir: Where the state of the run is, if it is not beside its output.

    Returns:
        Accuracy; precision, recall and F1 by label with intervals of 95%; confusion; accuracy by
        threshold; calibration; the most confident mistakes. It shows itself in a notebook.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do.
    """
    __tracebackhide__ = True
    with _refusals():
        given = {"label_column": label_column, "score_column": score_column, "text": text}
        given["unsure_label"] = unsure_label
        named = {key: value for key, value in given.items() if value is not None}
        if isinstance(table, str | Path):
            labelled, gold = _of_run(place_of(table), run_dir, gold, named)
        elif gold is None:
            raise SettingsError(f"{setting('gold')}: required for a table in memory.", _NAME_GOLD)
        else:
            labelled = _in_memory(table, gold)
        return _evaluated(labelled, gold, label_map, named)


def measured(output: Output, gold: str, settings: Mapping[str, Any]) -> Evaluation:
    """Measure the labels of an output that a run with these settings made, as `evaluate` does."""
    with _refusals():
        return _evaluated(_of_output(output, gold, settings, {}), gold, None, {})


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise InputError for what cannot be measured, and errors of the tree as they are."""
    __tracebackhide__ = True
    try:
        yield
    except ClassifyError as error:
        raise error.with_traceback(None) from error.__cause__
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise InputError(
            f"The table cannot be measured: {reason(error)}.",
            "True labels and labels must be text, numbers or categories, and scores numbers.",
        ) from error


class _Labelled(NamedTuple):
    """A labelled table: its columns, how to read them, and what they usually are.

    `usual` names columns by the setting that names them, as a run has recorded it.
    """

    columns: list[str]
    usual: dict[str, str]
    read: Callable[[list[str]], Iterator[dict[str, pa.Array]]]
    note: str | None = None

    def needed(self, key: str, name: str) -> str:
        """Return a column that must be there. Raises InputError."""
        if name not in self.columns:
            raise InputError(
                f"{setting(key)}: there is no column {name!r}. There are: {listed(self.columns)}."
                f"{alike(name, self.columns)}" + (f" {self.note}" if self.note else ""),
                f"Name it with {setting(key)}.",
            )
        return name

    def found(self, key: str, named: Mapping[str, str]) -> str | None:
        """Return the column that is named, or the usual one if that is there."""
        if key in named:
            return self.needed(key, named[key])
        return self.usual[key] if self.usual[key] in self.columns else None


def _evaluated(
    labelled: _Labelled, gold: str, label_map: Mapping[str, str] | None, named: Mapping[str, str]
) -> Evaluation:
    labelled.needed("gold", gold)
    key = "label_column"
    label = labelled.needed(key, named.get(key, labelled.usual[key]))
    if label == gold:
        raise InputError(
            f"{setting('gold')}: {gold!r} is the column of labels.",
            f"Name another one with {setting('gold')}, or with {setting('label_column')}.",
        )
    score, shown = labelled.found("score_column", named), labelled.found("text", named)
    unsure = named.get("unsure_label", labelled.usual.get("unsure_label"))
    bounds = (0.0, 1.0)
    if score is not None:
        bounds = bounds_of(batch[score] for batch in labelled.read([score]))
    evaluator = Evaluator(gold, label_map, bounds, unsure)
    read = list(dict.fromkeys(name for name in (gold, label, score, shown) if name is not None))
    for batch in labelled.read(read):
        stop_point()
        evaluator.add(
            batch[gold],
            batch[label],
            None if score is None else batch[score],
            None if shown is None else batch[shown],
        )
    found = evaluator.found()
    return found if labelled.note is None else replace(found, notes=[labelled.note, *found.notes])


def _usual(gold: str, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return what the columns of an output usually are."""
    usual = {"label_column": "label", "score_column": "score", "text": "text"}
    usual |= names_beside_gold({"gold": gold})
    return usual | {key: settings[key] for key in usual if settings.get(key)}


def _of_run(
    path: Path | str, run_dir: str | Path | None, gold: str | None, named: Mapping[str, str]
) -> tuple[_Labelled, str]:
    """Return the output of a run, and the column of true labels, which the run may have recorded.

    Where its record cannot be read, the output alone is enough.
    """
    note, settings, recorded, unfinished = None, {}, None, False
    try:
        store = located(path, None if run_dir is None else place_of(run_dir))
    except OutputError:  # of a place that holds no run directory, and none was given
        output = output_at(path)
    else:
        output = store.output
        recorded = (store.summary().get("evaluation") or {}).get("gold")
        try:
            state = store.load()
            settings = {} if state is None else state.run.settings
            unfinished = state is not None and state.complete is None
        except ClassifyError as error:
            note = f"The columns are taken to have their usual names. {error.what}"
    if unfinished and not output.exists():
        raise OutputError(
            f"{output.place} does not exist yet: its run is not complete.",
            "Run the same `classify run` again to complete it, then evaluate it.",
        )
    if (column := gold or recorded) is None:
        raise SettingsError(
            f"{setting('gold')}: required, since no run of {output.place} has measured its labels.",
            _NAME_GOLD,
        )
    return _of_output(output, column, settings, named, note), column


def _of_output(
    output: Output,
    gold: str,
    settings: Mapping[str, Any],
    named: Mapping[str, str],
    note: str | None = None,
) -> _Labelled:
    usual = _usual(gold, settings)
    columns = {**usual, **named}
    try:
        if not output.exists():
            raise FileNotFoundError(ENOENT, "it does not exist")
        files = parquet_files(
            output,
            text=[columns["text"], columns["label_column"]],
            scores=[columns["score_column"]],
        )
        schema = pq.read_schema(files[0].open()) if files else pa.schema([])
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{output.place} cannot be read as a labelled table: {reason(error)}.",
            "Give the output of a run that is complete.",
        ) from error

    def read(columns: list[str]) -> Iterator[dict[str, pa.Array]]:
        for file in files:
            with open_parquet(file.open()) as opened:
                for batch in opened.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                    yield {name: batch.column(name) for name in columns}

    if settings.get("threshold") is not None:  # what a text output does not tell
        usual["unsure_label"] = settings.get("unsure_label", "unsure")
    if unsure := (schema.metadata or {}).get(b"classify.unsure_label"):
        usual["unsure_label"] = unsure.decode()
    return _Labelled(schema.names, usual, read, note)


def _in_memory(table: Any, gold: str) -> _Labelled:
    opened = open_table(table)

    def read(columns: list[str]) -> Iterator[dict[str, pa.Array]]:
        for batch in texts(opened, columns).to_batches(BATCH_ROWS):
            yield {name: batch.column(name) for name in columns}

    return _Labelled(opened.names, _usual(gold, {}), read)
