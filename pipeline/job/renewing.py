"""A table that has changed: the answers of the complete output are those of the run that follows.

So only texts that are new or changed are asked for, without a cache to keep. The output was made
with the same settings, which its run has recorded, and says which revision of the model it was.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import SettingsError
from pipeline.responses import ResponseStore
from pipeline.rows import keys_of, prepare
from pipeline.store.objects import reading
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config import RunConfig
    from pipeline.outcomes import Answer
    from pipeline.store import RunStore
    from pipeline.store.objects import GrowingFile

BATCH_ROWS = 32_768


def check_update(config: RunConfig, store: RunStore) -> None:
    """Refuse what cannot take answers from the output. Raises SettingsError."""
    if not config.dedup:
        raise SettingsError(
            f"{setting('update', 'True')}: needs {setting('dedup')}, which is false: an answer of "
            "the output stands for every row with that text.",
            "Drop one of the two.",
        )
    if store.output.replaces(config.input):
        raise SettingsError(
            f"{setting('update', 'True')}: the output is the input, which has no answers once it "
            "has changed.",
            "Choose another output.",
        )


def take_over(config: RunConfig, store: RunStore, answers: GrowingFile) -> None:
    """Store the answers of the output; harmless if some of them are stored already.

    Raises StoppedEarly if the output cannot be read, or the answers not be stored.
    """
    with closing(ResponseStore(answers)) as stored:
        for keys, found, revision in _answers(config, store):
            stop_point()
            stored.put([(keys, found, revision)])


def _answers(
    config: RunConfig, store: RunStore
) -> Iterator[tuple[list[bytes], list[Answer], str | None]]:
    """Yield the answers of the output: keys, and what was answered under which revision."""
    keys = keys_of(config)
    texts = [name for name in (config.text, config.text_pair) if name is not None]
    results = [config.label_column, config.score_column]
    if config.wants_predictions:
        results = [config.predictions_column]
    with reading(store.output.path):
        for file in store.output.files():
            with pq.ParquetFile(file.open()) as opened:
                metadata = opened.schema_arrow.metadata or {}
                revision = metadata.get(b"classify.model_revision", b"").decode() or None
                for batch in opened.iter_batches(BATCH_ROWS, columns=[*texts, *results]):
                    labelled = batch.filter(batch.column(results[0]).is_valid())
                    table = pa.Table.from_batches([labelled.select(texts)])
                    prepared = prepare(table, config, keys, first_row=0)
                    places, rows = _first_rows(prepared.index)
                    found = _as_answers(labelled.select(results).take(pa.array(rows)))
                    yield [prepared.keys[place] for place in places], found, revision


def _first_rows(index: pa.Array) -> tuple[list[int], np.ndarray]:
    """Return the places of the distinct inputs, and the first row of each."""
    rows = np.flatnonzero(index.is_valid().to_numpy(zero_copy_only=False))
    places, first = np.unique(index.drop_null().to_numpy(), return_index=True)
    return places.tolist(), rows[first]


def _as_answers(batch: pa.RecordBatch) -> list[Answer]:
    if batch.num_columns == 1:
        return [
            tuple((each["label"], each["score"]) for each in row)
            for row in batch.column(0).to_pylist()
        ]
    labels, scores = (column.to_pylist() for column in batch.columns)
    return [((label, score),) for label, score in zip(labels, scores, strict=True)]
