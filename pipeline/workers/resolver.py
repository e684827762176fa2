"""The resolver: one code path that turns a chunk of rows into the same rows with results.

Rows are handled by Arrow, whole columns at a time; Python touches each distinct input once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, SettingsError
from pipeline.responses import Item, Keys, Outcome, RowError
from pipeline.threads import in_thread
from pipeline.workers.batching import MAX_REQUEST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from pipeline.config import RunConfig
    from pipeline.workers.dedup import Dedup
    from pipeline.workers.pool import Pool

T = TypeVar("T")

PREDICTIONS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))


@dataclass(frozen=True)
class Resolved:
    """A chunk with its result columns; `errors` of its rows have no label."""

    first_row: int
    table: Any
    errors: int
    labels: dict[str, int]


def joined(chunks: Sequence[Resolved]) -> Resolved:
    """Give chunks that follow on one another as one."""
    if len(chunks) == 1:
        return chunks[0]
    labels: Counter[str] = Counter()
    for chunk in chunks:
        labels.update(chunk.labels)
    return Resolved(
        chunks[0].first_row,
        pa.concat_tables([chunk.table for chunk in chunks]),
        errors=sum(chunk.errors for chunk in chunks),
        labels=dict(labels),
    )


@dataclass(frozen=True)
class Prepared:
    """The inputs of a chunk: which rows have which of the distinct `items`.

    `index` has one entry per row: the position in `items`, or null where the row has an error
    before it is sent; `errors` has that error, and null elsewhere.
    """

    items: list[Item]
    keys: list[bytes]
    index: Any
    errors: Any


def result_fields(config: RunConfig) -> list[Any]:
    """The columns that a run appends, in order."""
    fields = [
        pa.field(config.label_column, pa.string()),
        pa.field(config.score_column, pa.float64()),
        pa.field(config.error_column, pa.string()),
    ]
    if config.wants_predictions:
        fields.append(pa.field(config.predictions_column, PREDICTIONS))
    return fields


def output_schema(schema: Any, config: RunConfig) -> Any:
    """The schema of the output: all columns of the input, then the results."""
    for field in result_fields(config):
        schema = schema.append(field)
    return schema


def check_columns(schema: Any, config: RunConfig) -> None:
    """Refuse a missing or unfit text column, and a name that the output would have twice.

    Raises InputError or SettingsError, before anything is sent.
    """
    for setting, name in (("text", config.text), ("text_pair", config.text_pair)):
        if name is None:
            continue
        if name not in schema.names:
            raise SettingsError(
                f"{setting}: the input has no column {name!r}. It has: {', '.join(schema.names)}. "
                f"Name the column to classify with --{setting.replace('_', '-')}."
            )
        if not _is_text(schema.field(name).type):
            raise InputError(
                f"The column {name!r} holds {schema.field(name).type}, not text. Choose another "
                "one, or convert it to text first."
            )
    for key in ("label", "score", "error", "predictions"):
        name = getattr(config, f"{key}_column")
        if name in schema.names and (key != "predictions" or config.wants_predictions):
            raise SettingsError(
                f"The input has a column {name!r} already, which the output needs for its {key}. "
                f"Give the output's another name: --{key}-column NAME."
            )


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(
        test(kind)
        for test in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_string_view,
            pa.types.is_null,
        )
    )


class Resolver:
    """Resolves chunks, several at a time.

    A chunk that has the result columns already is of a retry: its rows with an error are resolved.
    """

    def __init__(self, config: RunConfig, pool: Pool, dedup: Dedup, threads: Executor) -> None:
        self._config = config
        self._threads = threads
        self._pool = pool
        self._dedup = dedup
        self._in_order = asyncio.Lock()
        self._keys = keys_of(config)

    async def resolve(self, first_row: int, table: Any) -> Resolved:
        """Give the chunk with its results. Raises whatever stopped the pool."""
        self._pool.expect()
        try:
            return await self._resolve(first_row, table)
        except BaseException as failure:
            # The pool waits for what was announced; nothing else would tell it.
            self._pool.stop(failure)
            raise

    async def _resolve(self, first_row: int, table: Any) -> Resolved:
        config = self._config
        rows, places = open_rows(table, config)
        # One after the other, so that earlier rows are asked for first: they are committed first.
        async with self._in_order:
            prepared = await self._in_thread(
                partial(prepare, rows, config, self._keys, first_row=first_row)
            )
        outcomes = await self._dedup.outcomes(
            prepared.items, prepared.keys, self._pool.ask, rows=rows.num_rows
        )
        found = await self._in_thread(partial(finish, first_row, rows, prepared, outcomes, config))
        if places is None:
            return found
        return await self._in_thread(
            partial(patch, first_row, table, places.to_pylist(), found.table, config)
        )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await in_thread(call, executor=self._threads)


def keys_of(config: RunConfig) -> Keys:
    """Give what makes the keys of a run's inputs, out of the settings that decide an answer."""
    settings = config.result_settings()
    decides = ("endpoint", "model", "top_k", "function_to_apply", "truncate")
    return Keys({name: settings[name] for name in decides})


def open_rows(table: Any, config: RunConfig) -> tuple[Any, Any]:
    """Give the rows of a chunk that are to be resolved, and their places; None for all of them.

    Of a labelled chunk these are the rows that carry an error; the others stay as they are.
    """
    if config.error_column not in table.column_names:
        return table, None
    places = pc.indices_nonzero(pc.is_valid(table.column(config.error_column)))
    inputs = [name for name in (config.text, config.text_pair) if name]
    return table.select(inputs).take(places), places


def prepare(table: Any, config: RunConfig, keys: Keys, *, first_row: int) -> Prepared:
    """Find the distinct inputs of a chunk and the rows that cannot be sent."""
    text, text_error = _sendable(table.column(config.text), "text")
    columns, error = [text], text_error
    if config.text_pair is not None:
        pair, pair_error = _sendable(table.column(config.text_pair), "text_pair")
        columns, error = [text, pair], pc.coalesce(text_error, pair_error)
    if config.dedup:
        items, index = _distinct(columns)
        item_keys = keys.of(items)
    else:
        rows = pc.indices_nonzero(pc.is_null(error))
        items = _as_items([column.take(rows) for column in columns])
        index = _scatter(rows, table.num_rows)
        # The row's number keeps equal texts apart and lets a resumed run find each row's answer.
        item_keys = keys.of(
            (f"{first_row + row}", item if isinstance(item, str) else "\0".join(item))
            for row, item in zip(rows.to_pylist(), items, strict=True)
        )
    return Prepared(items, item_keys, index, error)


def finish(
    first_row: int,
    table: Any,
    prepared: Prepared,
    outcomes: Sequence[Outcome],
    config: RunConfig,
) -> Resolved:
    """Append the result columns to the rows of a chunk."""
    good: Sequence[Any] = outcomes
    error = pa.nulls(len(outcomes), pa.string())
    if RowError in set(map(type, outcomes)):
        good = [None if type(outcome) is RowError else outcome for outcome in outcomes]
        failed = [outcome.message if type(outcome) is RowError else None for outcome in outcomes]
        error = pa.array(failed, pa.string())
    label = pa.array([found and found[0][0] for found in good], pa.string())
    score = pa.array([found and found[0][1] for found in good], pa.float64())
    if not len(outcomes):
        label, score, error = (pa.nulls(1, of.type) for of in (label, score, error))
        good = [None]
    columns = [label, score, error]
    if len(outcomes) < max(table.num_rows, 1):  # or else each row has an outcome of its own
        columns = [column.take(prepared.index) for column in columns]
        columns[2] = pc.coalesce(prepared.errors, columns[2])
    if config.wants_predictions:
        lists = [
            found and [{"label": name, "score": value} for name, value in found] for found in good
        ]
        columns.append(pa.array(lists, PREDICTIONS).take(prepared.index))
    result = table
    for field, column in zip(result_fields(config), columns, strict=True):
        result = result.append_column(field, column)
    return _counted(first_row, result, config)


def patch(
    first_row: int, table: Any, rows: Sequence[int], results: Any, config: RunConfig
) -> Resolved:
    """Put the result columns of `results` in place of those of `rows` of a labelled chunk."""
    order = list(range(table.num_rows))
    for position, row in enumerate(rows):
        order[row] = table.num_rows + position
    for field in result_fields(config):
        both = [one.column(field.name).combine_chunks() for one in (table, results)]
        column = pa.concat_arrays(both).take(pa.array(order, pa.int64()))
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return _counted(first_row, table, config)


def _counted(first_row: int, table: Any, config: RunConfig) -> Resolved:
    counts = pc.value_counts(table.column(config.label_column)).to_pylist()
    return Resolved(
        first_row,
        table,
        errors=table.num_rows - table.column(config.error_column).null_count,
        labels={
            count["values"]: count["counts"] for count in counts if count["values"] is not None
        },
    )


def _sendable(column: Any, name: str) -> tuple[Any, Any]:
    """Give a column as plain strings, null where a row cannot be sent, and why."""
    values = column.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    values = values.cast(pa.large_string())
    error = pa.nulls(len(values), pa.string())
    if values.null_count:
        error = pc.if_else(pc.is_null(values), pa.scalar(f"null {name}"), error)
    lengths = pc.binary_length(values)
    if (pc.max(lengths).as_py() or 0) > MAX_REQUEST_BYTES:
        too_long = pc.fill_null(pc.greater(lengths, MAX_REQUEST_BYTES), False)
        limit = f"{name} longer than a request may be ({MAX_REQUEST_BYTES:,} bytes)"
        error = pc.if_else(too_long, pa.scalar(limit), error)
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        # Arrow does not check the texts that it is given: such as half of a surrogate pair.
        damaged = pa.array([not _is_utf8(value) for value in values.cast(pa.large_binary())])
        error = pc.if_else(
            damaged, pa.scalar(f"{name} is no valid text (not a string, or not UTF-8)"), error
        )
    if error.null_count < len(error):
        values = pc.if_else(pc.is_null(error), values, pa.scalar(None, pa.large_string()))
    return values, error


def _is_utf8(value: Any) -> bool:
    try:
        (value.as_py() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _distinct(columns: list[Any]) -> tuple[list[Item], Any]:
    """Give the distinct inputs in order of appearance, and each row's position among them."""
    encoded = [column.dictionary_encode() for column in columns]
    if len(encoded) == 1:
        return _texts(encoded[0].dictionary), encoded[0].indices
    width = max(len(encoded[1].dictionary), 1)
    first, second = (one.indices.cast(pa.int64()) for one in encoded)
    both = pc.add(pc.multiply(first, width), second).dictionary_encode()
    texts, pairs = (_texts(one.dictionary) for one in encoded)
    items: list[Item] = [
        (texts[code // width], pairs[code % width]) for code in both.dictionary.to_pylist()
    ]
    return items, both.indices


def _as_items(columns: list[Any]) -> list[Item]:
    values = [_texts(column) for column in columns]
    return values[0] if len(values) == 1 else list(zip(*values, strict=True))


def _texts(column: Any) -> list[Any]:
    """Give a column as Python strings; by NumPy, which makes no Arrow scalar of each first."""
    values: list[Any] = column.to_numpy(zero_copy_only=False).tolist()
    return values


def _scatter(rows: Any, count: int) -> Any:
    """Give the inverse of `rows`: for each of `count` rows its position there, or null."""
    positions: list[int | None] = [None] * count
    for position, row in enumerate(rows.to_pylist()):
        positions[row] = position
    return pa.array(positions, pa.int64())
