"""How good are the labels? Measured against a column of true ones.

quality  counts rows, and tells accuracy, F1, confusion, thresholds, calibration and mistakes
words    how that is told in a terminal and in a notebook
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ClassifyError, InputError, OutputError
from pipeline.evaluation.quality import Evaluation, Evaluator, bounds_of
from pipeline.job.labelled import parquet_files
from pipeline.store import located, place_of
from pipeline.tables import open_table, texts
from pipeline.wording import listed, meant, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Evaluation", "evaluate"]

BATCH_ROWS = 65_536


def evaluate(
    table: Any,
    gold: str,
    *,
    label_map: Mapping[str, str] | None = None,
    label_column: str | None = None,
    score_column: str | None = None,
    text: str | None = None,
    run_dir: str | Path | None = None,
) -> Evaluation:
    """Measure labels against a column of true ones.

    Args:
        table: A labelled table: the path or address of an output of a run, or a table in memory of
            any kind that `classify` takes.
        gold: The column of true labels; rows without one are not counted.
        label_map: The true name of each label that the model calls otherwise, such as
            `{"LABEL_0": "negative"}`.
        label_column: The column of labels. Left out, that of the run, or `label`.
        score_column: The column of scores. Left out, that of the run, or `score`, if there is one.
        text: The column that is shown with mistakes. Left out, that of the run, if it is known.
        run_dir: Where the state of the run is, if it is not beside its output.

    Returns:
        Accuracy; precision, recall and F1 by label with intervals of 95%; confusion; accuracy by
        threshold; calibration; the most confident mistakes. It shows itself in a notebook.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do.
    """
    __tracebackhide__ = True
    try:
        return _evaluated(table, gold, label_map, label_column, score_column, text, run_dir)
    except ClassifyError as error:
        raise error.with_traceback(None) from error.__cause__
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"The table cannot be measured: {why}.",
            "True labels and labels must be text, numbers or categories, and scores numbers.",
        ) from error


class _Labelled(NamedTuple):
    """A labelled table: its columns, which of them a run has recorded as what, and how to read."""

    columns: list[str]
    recorded: dict[str, str]
    read: Callable[[list[str]], Iterator[dict[str, pa.Array]]]

    def needed(self, key: str, name: str) -> str:
        """Return a column that must be there. Raises InputError."""
        if name not in self.columns:
            raise InputError(
                f"{setting(key)}: there is no column {name!r}. There are: {listed(self.columns)}."
                f"{meant(name, self.columns)}",
                f"Name it with {setting(key)}.",
            )
        return name

    def found(self, key: str, name: str | None, usual: str) -> str | None:
        """Return the column that is named, or the usual one if that is there."""
        if name is not None:
            return self.needed(key, name)
        usual = self.recorded.get(key, usual)
        return usual if usual in self.columns else None


def _evaluated(
    table: Any,
    gold: str,
    label_map: Mapping[str, str] | None,
    label_column: str | None,
    score_column: str | None,
    text: str | None,
    run_dir: str | Path | None,
) -> Evaluation:
    is_path = isinstance(table, str | Path)
    labelled = (
        _of_output(place_of(table), run_dir, label_column, score_column)
        if is_path
        else _in_memory(table)
    )
    labelled.needed("gold", gold)
    label = labelled.needed(
        "label_column", label_column or labelled.recorded.get("label_column", "label")
    )
    score = labelled.found("score_column", score_column, "score")
    shown = labelled.found("text", text, "text")
    bounds = (0.0, 1.0)
    if score is not None:
        bounds = bounds_of(batch[score] for batch in labelled.read([score]))
    evaluator = Evaluator(gold, label_map, bounds)
    read = list(dict.fromkeys(name for name in (gold, label, score, shown) if name is not None))
    for batch in labelled.read(read):
        evaluator.add(
            batch[gold],
            batch[label],
            None if score is None else batch[score],
            None if shown is None else batch[shown],
        )
    return evaluator.found()


def _of_output(
    path: Path | str,
    run_dir: str | Path | None,
    label_column: str | None,
    score_column: str | None,
) -> _Labelled:
    store = located(path, None if run_dir is None else place_of(run_dir))
    state = store.load()
    settings = {} if state is None else state.run.settings
    kinds = ("label_column", "score_column", "text")
    try:
        text = [settings.get("text"), label_column or settings.get("label_column", "label")]
        files = parquet_files(
            store.output,
            text=[name for name in text if name],
            scores=[score_column or settings.get("score_column", "score")],
        )
        schema = pq.read_schema(files[0].open()) if files else pa.schema([])
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{path} cannot be read as a labelled table: {str(error).splitlines()[0]}.",
            "Give the output of a run that is complete.",
        ) from error

    def read(columns: list[str]) -> Iterator[dict[str, pa.Array]]:
        for file in files:
            with pq.ParquetFile(file.open()) as opened:
                for batch in opened.iter_batches(BATCH_ROWS, columns=columns):
                    yield {name: batch.column(name) for name in columns}

    recorded = {kind: settings[kind] for kind in kinds if settings.get(kind)}
    return _Labelled(schema.names, recorded, read)


def _in_memory(table: Any) -> _Labelled:
    opened = open_table(table)

    def read(columns: list[str]) -> Iterator[dict[str, pa.Array]]:
        for batch in texts(opened, columns).to_batches(BATCH_ROWS):
            yield {name: batch.column(name) for name in columns}

    return _Labelled(opened.names, {}, read)
