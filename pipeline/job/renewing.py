"""A table that has changed: the answers of the complete output are those of the run that follows.

So only texts that are new or changed are asked for, without a cache to keep. The output was made
with the same settings, which its run has recorded, and says which revision of the model it was.

An output with a label map or a threshold does not hold its answers as they came; its run keeps
them.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import orjson
import pyarrow as pa

from pipeline.errors import ResumeRefused, SettingsError
from pipeline.labelled import is_text, open_parquet, parquet_files
from pipeline.responses import ResponseStore
from pipeline.rows import keys_of, prepare
from pipeline.store.objects import reading
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config import RunConfig
    from pipeline.job.decisions import EarlierRun
    from pipeline.outcomes import Answer
    from pipeline.store import RunState, RunStore
    from pipeline.store.objects import GrowingFile

BATCH_ROWS = 32_768


def check_update(config: RunConfig, store: RunStore, **earlier: Unpack[EarlierRun]) -> None:
    """Refuse what cannot take answers from the output. Raises SettingsError.

    An `overwrite` would ask for everything on each night on which the input is the same.
    """
    for other in ("overwrite", "ask_again", "retry_failed"):
        if earlier.get(other):
            raise SettingsError(
                f"{setting('update', 'True')} and {setting(other, 'True')} cannot be combined.",
                "Drop one of the two.",
            )
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


def holds_answers(state: RunState) -> bool:
    """Return True if the output of a run holds its answers as they came."""
    return not {"label_map", "threshold"} & state.run.settings.keys()


def can_take_over(config: RunConfig, store: RunStore, was: RunState) -> bool:
    """Return True if the output of a complete run gives its answers, unless it was changed."""
    output = store.output
    return (
        was.complete is not None
        and holds_answers(was)
        and config.dedup
        and (config.allow_drift or not was.mixed)
        and not output.replaces(config.input)
        and output.exists()
        and not output.is_torn()
    )


def keeps_answers(
    config: RunConfig, store: RunStore, was: RunState, *, reads_output: bool = True
) -> bool:
    """Return True if the answers of a run are there for another one that asks alike.

    Those of a complete run are in its output, which is read, unless that shows them otherwise.
    Without `reads_output`, it is taken to be what that run wrote.
    """
    if was.complete is not None and holds_answers(was):
        return can_take_over(config, store, was) and (
            not reads_output or store.output.identity() == was.assembled
        )
    return store.holds_answers() or any(Path(cache).exists() for cache in was.caches)


def check_answers_are_kept(config: RunConfig, store: RunStore, was: RunState) -> None:
    """Refuse to pay again for the answers of a complete run that are nowhere. Raises ResumeRefused.

    They are in its output, in its run directory, or in the caches that it had.
    """
    if holds_answers(was) or was.complete is None or not was.complete["labelled"]:
        return
    gone = [cache for cache in was.caches if not Path(cache).exists()]
    if not (was.caches or store.holds_answers()):
        gone = [store.journal.place]
    if gone:
        left = [cache for cache in was.caches if cache not in gone]
        uses_left = f" and {setting('cache', left[-1])}" if left else ""
        raise ResumeRefused(
            f"{config.output} was made with a label map or a threshold, so its answers are stored "
            f"separately, and {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} missing.",
            f"Put {'it' if len(gone) == 1 else 'them'} back, or label the whole input again "
            f"with {setting('overwrite', 'True')}{uses_left}.",
        )


def take_over(config: RunConfig, store: RunStore, was: RunState, answers: GrowingFile) -> None:
    """Store the answers of the output that a run has made; those that are stored already are not.

    Raises ResumeRefused if the output is another one by now, or mixes revisions of the model;
    StoppedEarly if it cannot be read, or the answers cannot be stored.
    """
    fix = f"Label the whole input again with {setting('overwrite', 'True')}."
    if store.output.identity() != was.assembled:
        raise ResumeRefused(
            f"{config.output} is not what the run wrote that {store.place} records, so its answers "
            "are not known.",
            f"Put it back. {fix}",
        )
    if was.mixed and not config.allow_drift:
        raise ResumeRefused(
            f"{config.output} has labels of several revisions of the model.",
            f"Accept that with {setting('allow_drift', 'True')}. {fix}",
        )
    with closing(ResponseStore(answers)) as stored:
        for keys, found, revision in _answers(config, store, was):
            stop_point()
            known = stored.get(keys)
            new = [place for place in range(len(keys)) if place not in known]
            if new:
                stored.put([([keys[i] for i in new], [found[i] for i in new], revision)])


def _answers(
    config: RunConfig, store: RunStore, was: RunState
) -> Iterator[tuple[list[bytes], list[Answer], str | None]]:
    """Yield the answers of the output: keys, and what was answered under which revision."""
    keys, settings = keys_of(config), was.run.settings
    texts = [name for name in (config.text, config.text_pair) if name is not None]
    score_column = settings["score_column"]
    results = [settings["label_column"], score_column]
    if config.wants_predictions:
        results = [settings["predictions_column"]]
    with reading(store.output.place):
        for file in parquet_files(
            store.output,
            [*texts, *results],
            text=[*texts, *set(results) - {score_column}],
            scores=[score_column],
        ):
            with open_parquet(file.open()) as opened:
                metadata = opened.schema_arrow.metadata or {}
                revision = metadata.get(b"classify.model_revision", b"").decode() or None
                if is_text(store.output):  # which tells nothing of itself
                    revision = was.latest_revision
                for batch in opened.iter_batches(
                    BATCH_ROWS, columns=[*texts, *results], use_threads=False
                ):
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
        rows = batch.column(0).to_pylist()
        return [
            tuple(
                (each["label"], each["score"])
                for each in (orjson.loads(row) if isinstance(row, str) else row)
            )
            for row in rows
        ]
    labels, scores = (column.to_pylist() for column in batch.columns)
    return [((label, score),) for label, score in zip(labels, scores, strict=True)]
