"""What the labelled rows hold, read in one pass over a few columns and in bounded memory.

Ten million rows are read batch by batch. What is kept of them are counts and the numbers of the
rows worth a look, whose texts are then fetched.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.labelled import open_parquet
from pipeline.observers.words import EMPTY_LABEL, MOST_CAUSES, OTHER_CAUSES
from pipeline.report.picked import Picked, by_chance, hashes
from pipeline.system import arrays
from pipeline.writer import is_stream, read_part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.report.picked import Lines
    from pipeline.store import ByteSource

BATCH_ROWS = 65_536
# A model has a few labels. Those beyond so many are counted together, whatever an endpoint says.
MOST_LABELS = 1_000
BINS = 25
LEAST_CERTAIN = 200
LEAST_CERTAIN_OF_A_LABEL = 50
# Samples are shown of the most frequent labels.
MOST_SAMPLED = 12
AT_RANDOM = 4
MOST_CERTAIN = 3
EXAMPLES = 5
TEXT_CHARACTERS = 400
ERROR_CHARACTERS = 400
OTHERS = "(other labels)"


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are looked at."""

    text: str
    text_pair: str | None
    label: str
    score: str
    error: str
    more: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The columns that the model was given."""
        return [self.text, *([self.text_pair] if self.text_pair else [])]

    @property
    def shown(self) -> list[str]:
        """The columns that are shown of a row: its texts, and those of choice beside them."""
        return list(dict.fromkeys([*self.texts, *self.more]))


@dataclass
class Row:
    """A row of the output, counted from 0, the first of `times` with its text, label and score.

    `texts` are the columns that are shown; long ones are cut, `characters` is how long each is.
    """

    number: int
    label: str | None = None
    score: float | None = None
    error: str | None = None
    times: int = 1
    texts: list[str | None] = field(default_factory=list)
    characters: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Label:
    """A label, how many rows have it, and how many of these have a score in each bin."""

    name: str
    rows: int
    bins: list[int]


@dataclass(frozen=True)
class Sample:
    """What rows with a label look like: some at random, and those with the highest scores."""

    label: str
    at_random: list[Row]
    most_certain: list[Row]


@dataclass
class ErrorGroup:
    """Errors with the same words, apart from numbers; `examples` are the first rows."""

    words: str
    rows: int = 0
    examples: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class LabelledRows:
    """What the rows hold: labels and causes the most frequent first, `edges` of the bins."""

    rows: int
    labels: list[Label]
    edges: list[float]
    causes: list[ErrorGroup]
    least_certain: list[Row]
    samples: list[Sample]


def scan(files: Sequence[ByteSource], columns: Columns) -> LabelledRows:
    """Read labelled rows. Raises OSError, ArrowException, or KeyError for a missing column."""
    bins = _Bins.over(*_range(files, columns.score))
    counts, errors = _Labels(bins), _Errors()
    rows = 0
    names = [*columns.texts, columns.label, columns.score, columns.error]
    for first, file in _opened(files, names):
        row = first
        for batch in file.iter_batches(BATCH_ROWS, columns=names, use_threads=False):
            numbers = np.arange(row, row + batch.num_rows)
            texts = [batch.column(name) for name in columns.texts]
            counts.add(batch.column(columns.label), batch.column(columns.score), numbers, texts)
            errors.add(batch.column(columns.error), numbers)
            row += batch.num_rows
        rows += row - first
    labels = counts.labels()
    least_certain, samples = counts.least_certain(labels), counts.samples(labels)
    causes = errors.found()
    shown = [*least_certain, *(row for cause in causes for row in cause.examples)]
    for sample in samples:
        shown += [*sample.at_random, *sample.most_certain]
    fetch_texts(files, columns, shown)
    return LabelledRows(rows, labels, bins.edges, causes, least_certain, samples)


def names_in(file: ByteSource) -> list[str]:
    """Return the names of the columns of a file. Raises OSError, ArrowException."""
    if is_stream(file):
        return list(read_part(file).schema.names)
    with file.open() as opened:
        return list(pq.read_schema(opened).names)


@dataclass(frozen=True)
class _Bins:
    """Bins of one width for all labels, on round borders."""

    low: float
    step: float
    count: int

    @classmethod
    def over(cls, low: float, high: float) -> _Bins:
        rough = max((high - low) / BINS, 1e-9)
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * by for by in (1, 2, 2.5, 5, 10) if size * by >= rough * (1 - 1e-9))
        if 0 <= low <= high <= 1:
            step = max(step, 0.01)
        first = math.floor(low / step + 1e-9)
        last = max(math.ceil(high / step - 1e-9), first + 1)
        return cls(first * step, step, last - first)

    @property
    def edges(self) -> list[float]:
        return [round(self.low + self.step * i, 12) for i in range(self.count + 1)]

    def of(self, scores: Any) -> Any:
        places = np.floor((scores - self.low) / self.step + 1e-9)
        return np.clip(places, 0, self.count - 1).astype(np.int64)


class _Labels:
    """Counts labels and scores, and picks the rows of each label that are shown."""

    def __init__(self, bins: _Bins) -> None:
        self._bins = bins
        self._ids: dict[str, int] = {}
        self._counts = np.zeros(MOST_LABELS + 1, np.int64)
        self._binned = np.zeros((MOST_LABELS + 1, bins.count), np.int64)
        self._least, self._most, self._at_random = (
            Picked(MOST_LABELS + 1, of_each)
            for of_each in (LEAST_CERTAIN_OF_A_LABEL, MOST_CERTAIN, AT_RANDOM + MOST_CERTAIN)
        )

    def add(
        self, labels: pa.Array, scores: pa.Array, numbers: Any, texts: Sequence[pa.Array]
    ) -> None:
        encoded = pc.dictionary_encode(labels.cast(pa.string()))
        if not len(encoded.dictionary):
            return
        places = np.array([self._id(name) for name in encoded.dictionary.to_pylist()], np.int64)
        there = np.from_dlpack(pc.indices_nonzero(labels.is_valid()))
        ids = places[np.from_dlpack(encoded.indices.drop_null())]
        values = np.from_dlpack(pc.coalesce(scores, arrays.numbers([math.nan], pa.float64())[0]))[
            there
        ]
        known = ~np.isnan(values)
        self._counts += np.bincount(ids, minlength=MOST_LABELS + 1)
        ids, values, there = ids[known], values[known], there[known]
        cells = ids * self._bins.count + self._bins.of(values)
        self._binned += np.bincount(cells, minlength=self._binned.size).reshape(self._binned.shape)
        texts = [each.cast(pa.large_string()) for each in texts]
        none = arrays.numbers([0], pa.int64())[0]
        lengths = sum(
            np.from_dlpack(pc.coalesce(pc.binary_length(each), none))[there] for each in texts
        )
        for picked, ranks in (
            (self._least, values),
            (self._most, -values),
            (self._at_random, by_chance(values, lengths)),
        ):
            picked.add(ids, ranks, values, numbers[there], lambda at: hashes(texts, there[at]))

    def _id(self, name: str) -> int:
        if name not in self._ids and len(self._ids) < MOST_LABELS:
            self._ids[name] = len(self._ids)
        return self._ids.get(name, MOST_LABELS)

    @property
    def _names(self) -> dict[int, str]:
        return {place: name or EMPTY_LABEL for name, place in self._ids.items()} | {
            MOST_LABELS: OTHERS
        }

    def labels(self) -> list[Label]:
        """Return the labels, the most frequent first."""
        found = [
            Label(name, int(self._counts[place]), self._binned[place].tolist())
            for place, name in self._names.items()
            if self._counts[place]
        ]
        return sorted(found, key=lambda label: (label.name == OTHERS, -label.rows, label.name))

    def least_certain(self, labels: Sequence[Label]) -> list[Row]:
        """Return the rows with the lowest scores, at most the same number of each label."""
        of_each = max(LEAST_CERTAIN // max(len(labels), 1), 1)
        rows = self._rows(self._least.found(min(of_each, LEAST_CERTAIN_OF_A_LABEL)))
        rows.sort(key=lambda row: (row.score or 0.0, row.number))
        return rows[:LEAST_CERTAIN]

    def samples(self, labels: Sequence[Label]) -> list[Sample]:
        """Return samples of the most frequent labels."""
        most, chance = (self._rows(each.found()) for each in (self._most, self._at_random))
        shown = {row.number for row in most}
        others = [row for row in chance if row.number not in shown]
        return [
            Sample(
                label.name,
                [row for row in others if row.label == label.name][:AT_RANDOM],
                [row for row in most if row.label == label.name],
            )
            for label in labels[:MOST_SAMPLED]
        ]

    def _rows(self, lines: Lines) -> list[Row]:
        names = self._names
        return [
            Row(number, names[label], score, times=times)
            for label, score, number, times in zip(
                *(each.tolist() for each in (lines.labels, lines.scores, lines.numbers)),
                lines.times.tolist(),
                strict=True,
            )
        ]


class _Errors:
    """Counts errors by their cause, and keeps the first rows of each."""

    def __init__(self) -> None:
        self._causes: dict[str, ErrorGroup] = {}

    def add(self, errors: pa.Array, numbers: Any) -> None:
        there = errors.is_valid()
        if not there.true_count:
            return
        words = pc.utf8_slice_codeunits(errors.filter(there).cast(pa.string()), 0, ERROR_CHARACTERS)
        places = numbers[np.from_dlpack(pc.indices_nonzero(there))]
        # All numbers but the status in front are those of a row, such as how long it is.
        status, rest = (pc.utf8_slice_codeunits(words, *cut) for cut in ((0, 4), (4, 200)))
        keys = pc.binary_join_element_wise(
            status, pc.replace_substring_regex(rest, r"\d+", "#"), arrays.strings([""])[0]
        )
        encoded = pc.dictionary_encode(keys)
        found = np.from_dlpack(encoded.indices)
        counts: Counter[int] = Counter(dict(enumerate(np.bincount(found).tolist())))
        for place, rows in counts.most_common():
            cause = self._cause(encoded.dictionary[place].as_py())
            cause.rows += rows
            wanted = EXAMPLES - len(cause.examples)
            if wanted > 0:
                for at in np.flatnonzero(found == place)[:wanted].tolist():
                    row = Row(int(places[at]), error=words[at].as_py())
                    cause.examples.append(row)

    def _cause(self, key: str) -> ErrorGroup:
        if key not in self._causes and len(self._causes) >= MOST_CAUSES:
            key = OTHER_CAUSES
        return self._causes.setdefault(key, ErrorGroup(key))

    def found(self) -> list[ErrorGroup]:
        return sorted(self._causes.values(), key=lambda cause: (-cause.rows, cause.words))


def _range(files: Sequence[ByteSource], score: str) -> tuple[float, float]:
    """Return the lowest and the highest score, as the statistics of the files have them."""
    low, high = math.inf, -math.inf
    for file in files:
        with _parquet(file, [score]) as opened:
            metadata = pq.read_metadata(opened)
        # A column inside of another one may have the same name, but not the same path.
        paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
        if score not in paths:
            raise KeyError(score)
        kind = metadata.schema.column(paths.index(score)).physical_type
        if kind != "DOUBLE":
            raise pa.ArrowTypeError(f"its column {score!r} holds no scores, but {kind}")
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group).column(paths.index(score)).statistics
            if found is not None and found.has_min_max:
                low, high = min(low, found.min), max(high, found.max)
    return (low, high) if low <= high and math.isfinite(high - low) else (0.0, 1.0)


@contextmanager
def _parquet(file: ByteSource, names: Sequence[str]) -> Iterator[pa.NativeFile]:
    """Open a file as Parquet; of a part that is none yet these columns become such a file."""
    if not is_stream(file):
        with file.open() as opened:
            yield opened
        return
    sink = pa.BufferOutputStream()
    pq.write_table(read_part(file).select(names), sink, compression="none", use_dictionary=False)
    with pa.BufferReader(sink.getvalue()) as opened:
        yield opened


def _opened(
    files: Sequence[ByteSource], names: Sequence[str]
) -> Iterator[tuple[int, pq.ParquetFile]]:
    """Open one file after the other, with its first row. Raises KeyError for a missing column."""
    end = 0
    for file in files:
        first = end if file.first_row is None else file.first_row
        with _parquet(file, names) as source, open_parquet(source) as opened:
            for name in names:
                if name not in opened.schema_arrow.names:
                    raise KeyError(name)
            yield first, opened
            end = first + opened.metadata.num_rows


def fetch_texts(files: Sequence[ByteSource], columns: Columns, rows: Sequence[Row]) -> None:
    """Put the texts into rows, from the row groups that hold one of them."""
    names = columns.shown
    wanted: dict[int, list[Row]] = {}
    for row in rows:
        wanted.setdefault(row.number, []).append(row)
    numbers = np.array(sorted(wanted), np.int64)
    for first_row, file in _opened(files, names):
        first = first_row
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if len(numbers[(numbers >= first) & (numbers < end)]):
                for batch in file.iter_batches(
                    BATCH_ROWS, row_groups=[group], columns=names, use_threads=False
                ):
                    here = numbers[(numbers >= first) & (numbers < first + batch.num_rows)]
                    for number in here.tolist():
                        for row in wanted[number]:
                            _take_texts(batch, names, number - first, row)
                    first += batch.num_rows
            first = end


def _take_texts(batch: pa.RecordBatch, names: Sequence[str], at: int, row: Row) -> None:
    for name in names:
        value = batch.column(name)[at].as_py()
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        whole = None if value is None else str(value)
        row.texts.append(None if whole is None else whole[:TEXT_CHARACTERS])
        row.characters.append(len(whole or ""))
