"""Which rows are shown of each label: those of the lowest rank, one line for each text.

Memory is bounded, since so many lines are kept of each label. A text is looked at only where the
rank of its row may be low enough. A line that was dropped never returns, since ranks only have to
be lower from then on; so the number of rows of each line that is left is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.system import arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Lines(NamedTuple):
    """Arrays of one length: label, rank, text (as a hash), score, first row, number of rows."""

    labels: Any
    ranks: Any
    texts: Any
    scores: Any
    numbers: Any
    times: Any

    def at(self, places: Any) -> Lines:
        """Return the lines in these places."""
        return Lines(*(each[places] for each in self))


class Picked:
    """The lines of the lowest rank of each label, at most `of_each`; `labels` are numbered."""

    def __init__(self, labels: int, of_each: int) -> None:
        self._of_each = of_each
        # What a rank may be to get in: any, while there is room.
        self._highest = np.full(labels, np.inf)
        kinds = (np.int64, np.float64, np.uint64, np.float64, np.int64, np.int64)
        self._kept = Lines(*(np.empty(0, kind) for kind in kinds))

    def add(
        self, labels: Any, ranks: Any, scores: Any, numbers: Any, texts_at: Callable[[Any], Any]
    ) -> None:
        """Add rows, which follow on those before; `texts_at` gives the texts in some places."""
        at = np.flatnonzero(ranks <= self._highest[labels])
        if not len(at):
            return
        once = np.ones(len(at), np.int64)
        new = Lines(labels[at], ranks[at], texts_at(at), scores[at], numbers[at], once)
        every = Lines(*(np.concatenate(pair) for pair in zip(self._kept, new, strict=True)))
        self._kept = _lowest(_merged(every), self._of_each)
        labels, counts = np.unique(self._kept.labels, return_counts=True)
        lasts = np.cumsum(counts) - 1
        full = counts == self._of_each
        self._highest[labels[full]] = self._kept.ranks[lasts[full]]

    def found(self, of_each: int | None = None) -> Lines:
        """Return the lines by label and rank; of equal ranks the first rows come first."""
        return self._kept if of_each is None else _lowest(self._kept, of_each)


def _merged(lines: Lines) -> Lines:
    """Make one line of those with the same label, rank and text."""
    lines = lines.at(np.lexsort((lines.numbers, lines.texts, lines.ranks, lines.labels)))
    differs = [each[1:] != each[:-1] for each in (lines.labels, lines.ranks, lines.texts)]
    starts = np.flatnonzero(np.r_[True, differs[0] | differs[1] | differs[2]])
    return lines.at(starts)._replace(times=np.add.reduceat(lines.times, starts))


def _lowest(lines: Lines, of_each: int) -> Lines:
    lines = lines.at(np.lexsort((lines.numbers, lines.ranks, lines.labels)))
    _, counts = np.unique(lines.labels, return_counts=True)
    place = np.arange(len(lines.labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return lines.at(np.flatnonzero(place < of_each))


def by_chance(scores: Any, lengths: Any) -> Any:
    """Return a rank between 0 and 1 that looks random, and is the same for the same text.

    It comes from the content, so that a report on the same rows shows the same sample.
    """
    mixed = scores.astype(np.float64).view(np.uint64) ^ (
        lengths.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )
    # The end of splitmix64.
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def hashes(columns: Sequence[pa.Array], places: Any) -> Any:
    """Return a number for the texts in these places, the same for the same texts."""
    found = np.zeros(len(places), np.uint64)
    for column in columns:
        taken = column.take(arrays.numbers(places, pa.int64()))
        encoded = pc.dictionary_encode(taken, null_encoding="encode")
        each = [hash(text) & 0xFFFFFFFFFFFFFFFF for text in encoded.dictionary.to_pylist()]
        told = np.array(each, np.uint64)[np.from_dlpack(encoded.indices)]
        found = found * np.uint64(0x9E3779B97F4A7C15) ^ told
    return found
