"""How answers are shown: names of labels, rows that are unsure, columns of single scores.

Stored answers are as the model gave them. All this is done after them, a batch at a time, so that
other names or another threshold ask nothing again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.system.arrays import numbers, places, strings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from pipeline.config import RunConfig


def renamed(labels: pa.Array, names: Mapping[str, str] | None) -> pa.Array:
    """Return labels by their names; one without a name stays as it is."""
    if not names:
        return labels
    encoded = labels.dictionary_encode()
    found = [names.get(label, label) for label in encoded.dictionary.to_pylist()]
    return strings(found).take(encoded.indices)


def sharing_names(labels: pa.Array, config: RunConfig) -> frozenset[str]:
    """Return which of the model's labels have the name of another label, or of unsure rows."""
    names = set((config.label_map or {}).values())
    if config.threshold is not None:
        names.add(config.unsure_label)
    names -= (config.label_map or {}).keys()  # these have another name themselves
    return frozenset(names.intersection(pc.unique(labels).to_pylist()) if names else ())


def not_renamed(
    labels: Collection[str], config: RunConfig
) -> tuple[Sequence[str], Sequence[str]] | None:
    """Return labels to rename that are not among those of the output, and those left as they were.

    None if there are not both: then no name is misspelt.
    """
    names = config.label_map or {}
    unused = [label for label, name in names.items() if name not in labels]
    others = sorted({*labels} - {*names.values(), config.unsure_label})
    return (unused, others) if unused and others else None


def decided(label: pa.Array, score: pa.Array, config: RunConfig) -> pa.Array:
    """Return labels, of which those with a score below the threshold are unsure."""
    if config.threshold is None:
        return label
    is_low = pc.less(score, numbers([config.threshold], pa.float64())[0])
    return pc.if_else(is_low, strings([config.unsure_label])[0], label)


def score_columns(predictions: pa.ListArray, config: RunConfig) -> list[pa.Array]:
    """Return the score of each label that has a column; null where it is not among predictions."""
    if not config.score_labels:
        return []
    pairs = predictions.flatten()
    labels, scores = pairs.field("label"), pairs.field("score")
    rows = np.from_dlpack(pc.list_parent_indices(predictions))
    found = []
    for label in config.score_labels:
        # Backwards, so that of two with one name, which no model should have, the best counts.
        at = np.from_dlpack(pc.indices_nonzero(pc.equal(labels, strings([label])[0])))[::-1]
        place = np.full(len(predictions), -1, np.int64)
        place[rows[at]] = at
        found.append(scores.take(places(place)))
    return found
