"""How good labels are, measured against a column of true ones.

Rows are read batch by batch: what is kept are counts of pairs (true label, label), a histogram of
scores, and the most confident mistakes. So the memory does not grow with the table.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.evaluation import words
from pipeline.rows.shown import renamed
from pipeline.wording import listed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Of a normal distribution: 95% lie within so many standard deviations.
_Z = 1.959964
# Of scores between their bounds, which are 0 and 1 unless a model gives others.
CALIBRATION_BINS = 10
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
MOST_MISTAKES = 20
MOST_LABELS = 1_000
# True labels that differ: more of them are texts or numbers, and would fill the memory.
MOST_VALUES = 10_000
_TEXT_CHARACTERS = 400


class Share(NamedTuple):
    """A share, and the interval that holds the true one 19 times out of 20 (Wilson, 1927)."""

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, count: int, rows: int) -> Share:
        """Return the share of so many rows."""
        if not rows:
            return cls(None, None, None)
        p, z2 = count / rows, _Z * _Z / rows
        middle = (p + z2 / 2) / (1 + z2)
        half = _Z * math.sqrt(p * (1 - p) / rows + z2 / (4 * rows)) / (1 + z2)
        # At its ends, where both are equal, a rounded difference is not quite 0 or 1.
        low = 0.0 if count == 0 else max(0.0, middle - half)
        high = 1.0 if count == rows else min(1.0, middle + half)
        return cls(p, low, high)

    def as_f1(self) -> Share:
        """Return F1 where this is the share of those that are right of all that are either.

        F1 is 2 J / (1 + J) with J of Jaccard, which grows with it, and so do the bounds.
        """
        found = [None if share is None else 2 * share / (1 + share) for share in self]
        return Share(*found)


@dataclass(frozen=True)
class LabelQuality:
    """How good one label is: `rows` have it in truth, `predicted` were given it."""

    label: str
    rows: int
    predicted: int
    precision: Share
    recall: Share
    f1: Share


@dataclass(frozen=True)
class AtThreshold:
    """What holds of rows with a score of at least `threshold`: their share, how many are right."""

    threshold: float
    coverage: float
    accuracy: Share


@dataclass(frozen=True)
class Calibration:
    """Rows with scores between two bounds: their mean score, and how many are right."""

    low: float
    high: float
    rows: int
    score: float
    accuracy: Share


@dataclass(frozen=True)
class Mistake:
    """A row, counted from 0, whose label is wrong; `gold` is the true one. A long text is cut."""

    row: int
    gold: str
    label: str
    score: float | None
    text: str | None


@dataclass(frozen=True)
class Evaluation:
    """How good labels are. Shares are None where no row tells.

    `rows` have a true label, `without_gold` have none, or a blank one. Of those that have one,
    `unlabelled` have no label from the model, and `unsure` have a score below the threshold of the
    run: both count for nothing else. `macro_f1` is the mean over labels. `calibration_error` is how
    far scores are from the share that is right, on average over rows (expected calibration error);
    None without scores. `confusion` has the pairs with any rows, the most frequent first.
    """

    gold: str
    rows: int
    without_gold: int
    unlabelled: int
    unsure: int
    accuracy: Share
    macro_f1: float | None
    labels: list[LabelQuality]
    confusion: list[tuple[str, str, int]]
    thresholds: list[AtThreshold]
    calibration: list[Calibration]
    calibration_error: float | None
    mistakes: list[Mistake]
    notes: list[str] = field(default_factory=list)

    def summary(self) -> list[str]:
        """Return what matters most, in sentences: accuracy first, and what looks wrong."""
        return words.summary(self)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, as `classify evaluate --json` prints it."""
        found = asdict(self)
        found["confusion"] = [
            {"gold": gold, "label": label, "rows": rows} for gold, label, rows in self.confusion
        ]
        named: dict[str, Any] = _named(found)
        return named

    def __str__(self) -> str:
        return "\n".join(words.lines(self))

    def __repr__(self) -> str:
        return f"<Evaluation: {words.lines(self)[0]}>"

    def _repr_html_(self) -> str:
        return words.html(self)


def _named(value: Any) -> Any:
    if isinstance(value, Share):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _named(each) for key, each in value.items()}
    return [_named(each) for each in value] if isinstance(value, list) else value


class Evaluator:
    """Takes batches of rows and tells how good their labels are.

    `label_map` gives the true name of a label that the model calls otherwise (`LABEL_0`); `unsure`
    is what stands for a label in rows that were not decided.
    """

    def __init__(
        self,
        gold: str,
        label_map: Mapping[str, str] | None,
        bounds: tuple[float, float],
        unsure: str | None = None,
    ) -> None:
        self._gold, self._unsure_label = gold, unsure
        self._map = dict(label_map or {})
        low, high = min(0.0, bounds[0]), max(1.0, bounds[1])
        self._edges = np.linspace(low, high, CALIBRATION_BINS + 1)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._seen: set[str] = set()
        self._true: set[str] = set()
        # By bin: rows, those that are right, and the sum of scores.
        self._bins = np.zeros((3, CALIBRATION_BINS))
        # By threshold: rows that have so high a score, and those that are right.
        self._kept = np.zeros((2, len(THRESHOLDS)), int)
        self._rows = self._without_gold = self._unlabelled = self._unsure = self._first = 0
        self._mistakes: list[tuple[float, int, Mistake]] = []

    def add(
        self, gold: pa.Array, label: pa.Array, score: pa.Array | None, text: pa.Array | None
    ) -> None:
        """Add the columns of some rows, which follow on those before."""
        first, self._first = self._first, self._first + len(gold)
        known = _is_given(gold).to_numpy(zero_copy_only=False)
        labelled = known & label.is_valid().to_numpy(zero_copy_only=False)
        self._without_gold += len(gold) - int(known.sum())
        self._rows += int(known.sum())
        self._unlabelled += int(known.sum() - labelled.sum())
        if self._unsure_label is not None:
            is_unsure = pc.equal(_as_text(label), self._unsure_label).fill_null(False)
            decided = labelled & ~is_unsure.to_numpy(zero_copy_only=False)
            self._unsure += int(labelled.sum() - decided.sum())
            labelled = decided
        places = np.flatnonzero(labelled)
        if not len(places):
            return
        taken = pa.array(places)
        true, given = _as_text(gold.take(taken)), _as_text(label.take(taken))
        self._seen.update(given.unique().to_pylist())
        given = renamed(given, self._map)
        pairs = pa.table({"gold": true, "label": given}).group_by(["gold", "label"])
        for found in pairs.aggregate([([], "count_all")]).to_pylist():
            self._pairs[found["gold"], found["label"]] += found["count_all"]
        self._true.update(true.unique().to_pylist())
        if len(self._true) > MOST_VALUES or len(self._pairs) > MOST_LABELS * MOST_LABELS:
            raise InputError(
                f"The column {self._gold!r} has too many values to be labels.",
                "Name the column of true labels.",
            )
        right = pc.equal(true, given).to_numpy(zero_copy_only=False)
        scores = np.full(len(places), np.nan)
        if score is not None:
            scores = score.take(taken).cast(pa.float64()).to_numpy(zero_copy_only=False)
            self._count(scores, right)
        self._note_mistakes(first + places, true, given, scores, right, text, places)

    def _count(self, scores: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> None:
        real = np.isfinite(scores)
        scores, right = scores[real], right[real]
        bins = np.searchsorted(self._edges, scores, "right") - 1
        bins = bins.clip(0, CALIBRATION_BINS - 1)
        for row, weights in enumerate((None, right, scores)):
            self._bins[row] += np.bincount(bins, weights, CALIBRATION_BINS)
        for i, threshold in enumerate(THRESHOLDS):
            kept = scores >= threshold
            self._kept[:, i] += (kept.sum(), right[kept].sum())

    def _note_mistakes(
        self,
        rows: np.ndarray[Any, Any],
        gold: pa.Array,
        label: pa.Array,
        scores: np.ndarray[Any, Any],
        right: np.ndarray[Any, Any],
        text: pa.Array | None,
        places: np.ndarray[Any, Any],
    ) -> None:
        wrong = np.flatnonzero(~right)
        order = np.lexsort((rows[wrong], -np.nan_to_num(scores[wrong], nan=-np.inf)))
        for at in wrong[order[:MOST_MISTAKES]].tolist():
            row, score = int(rows[at]), float(scores[at])
            content = None if text is None else text[int(places[at])].as_py()
            mistake = Mistake(
                row,
                gold[at].as_py(),
                label[at].as_py(),
                None if math.isnan(score) else score,
                None if content is None else str(content)[:_TEXT_CHARACTERS],
            )
            entry = (-math.inf if math.isnan(score) else score, -row, mistake)
            if len(self._mistakes) < MOST_MISTAKES:
                heapq.heappush(self._mistakes, entry)
            else:
                heapq.heappushpop(self._mistakes, entry)

    def found(self) -> Evaluation:
        """Return what the rows tell. Raises InputError if none of them has a true label."""
        if not self._rows:
            raise InputError(
                f"No row has a value in the column {self._gold!r}.",
                "Name the column of true labels.",
            )
        qualities = self._qualities()
        known = [each.f1.value for each in qualities if each.f1.value is not None]
        right = sum(rows for (gold, label), rows in self._pairs.items() if gold == label)
        calibration = self._calibration()
        total = sum(each.rows for each in calibration)
        error = sum(
            each.rows * abs(each.score - (each.accuracy.value or 0.0)) for each in calibration
        )
        return Evaluation(
            self._gold,
            self._rows,
            self._without_gold,
            self._unlabelled,
            self._unsure,
            accuracy=Share.of(right, self._rows - self._unlabelled - self._unsure),
            macro_f1=sum(known) / len(known) if known else None,
            labels=qualities,
            confusion=[
                (gold, label, rows)
                for (gold, label), rows in sorted(
                    self._pairs.items(), key=lambda pair: (-pair[1], pair[0])
                )
            ],
            thresholds=self._thresholds(),
            calibration=calibration,
            calibration_error=float(error / total) if total else None,
            mistakes=[mistake for _, _, mistake in sorted(self._mistakes, reverse=True)],
            notes=self._notes(),
        )

    def _qualities(self) -> list[LabelQuality]:
        true: Counter[str] = Counter()
        given: Counter[str] = Counter()
        for (gold, label), rows in self._pairs.items():
            true[gold] += rows
            given[label] += rows
        found = []
        for name in sorted({*true, *given}, key=lambda name: (-true[name], name)):
            right = self._pairs[name, name]
            either = true[name] + given[name] - right
            precision, recall = Share.of(right, given[name]), Share.of(right, true[name])
            f1 = Share.of(right, either).as_f1()
            found.append(LabelQuality(name, true[name], given[name], precision, recall, f1))
        return found

    def _thresholds(self) -> list[AtThreshold]:
        scored = int(self._bins[0].sum())
        if not scored:
            return []
        return [
            AtThreshold(threshold, rows / scored, Share.of(right, rows))
            for threshold, rows, right in zip(THRESHOLDS, *self._kept.tolist(), strict=True)
        ]

    def _calibration(self) -> list[Calibration]:
        found = []
        borders = pairwise(self._edges.tolist())
        for (low, high), rows, right, scores in zip(borders, *self._bins.tolist(), strict=True):
            if rows:
                accuracy = Share.of(int(right), int(rows))
                found.append(Calibration(low, high, int(rows), scores / rows, accuracy))
        return found

    def _notes(self) -> list[str]:
        """Say what looks like another way of writing labels, which no figure here would tell."""
        notes = []
        if unknown := sorted(set(self._map) - self._seen):
            notes.append(f"The label map names labels that no row has: {listed(unknown)}.")
        true = {gold for gold, _ in self._pairs}
        given = {label for _, label in self._pairs}
        if true and given and not true & given:
            alike = {name.casefold() for name in true} & {name.casefold() for name in given}
            why = "Some differ only in case" if alike else "The model may call them otherwise"
            notes.append(
                f"None of the model's labels is a true label. {why}: true are "
                f"{listed(sorted(true))}; given are {listed(sorted(given))}. Name what each stands "
                f"for with a label map, such as {min(given)}={min(true)}."
            )
        elif (never_true := sorted(given - true)) and (never_given := sorted(true - given)):
            notes.append(
                f"Given, but never true: {listed(never_true)}. True, but never given: "
                f"{listed(never_given)}. If they mean the same, say so with a label map, such as "
                f"{never_true[0]}={never_given[0]}."
            )
        return notes


def _is_given(gold: pa.Array) -> pa.BooleanArray:
    """Tell which rows have a true label: nothing, not a number and white space are none."""
    known = pc.invert(gold.is_null(nan_is_null=pa.types.is_floating(gold.type)))
    kind = gold.type.value_type if pa.types.is_dictionary(gold.type) else gold.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        is_blank = pc.equal(pc.utf8_trim_whitespace(_as_text(gold)), "")
        known = pc.and_(known, pc.invert(pc.fill_null(is_blank, True)))
    return known


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def bounds_of(scores: Iterable[pa.Array]) -> tuple[float, float]:
    """Return the least and the greatest score, or 0 and 1 if there is none."""
    low, high = math.inf, -math.inf
    for column in scores:
        found = pc.min_max(column).as_py()
        if found["min"] is not None:
            low, high = min(low, found["min"]), max(high, found["max"])
    return (low, high) if low <= high and math.isfinite(high - low) else (0.0, 1.0)
