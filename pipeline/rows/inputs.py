"""Inputs: the distinct texts of a chunk, which rows have them, and the rows that cannot be sent.

Rows are handled by Arrow, whole columns at a time; Python touches each distinct input once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.pool import MAX_REQUEST_BYTES
from pipeline.responses import Keys
from pipeline.system.arrays import numbers, strings

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item


@dataclass(frozen=True)
class Prepared:
    """The inputs of a chunk: which rows have which of the distinct `items`.

    `index` has one entry per row: the position in `items`, or null if the row has an error before
    it is sent; `errors` has that error, and null elsewhere.
    """

    items: list[Item]
    keys: list[bytes]
    index: pa.Array
    errors: pa.StringArray


def keys_of(config: RunConfig) -> Keys:
    """Return what makes the keys of a run's inputs, out of the settings that decide an answer."""
    settings = config.result_settings()
    return Keys({name: settings[name] for name in config.ANSWER_SETTINGS if name in settings})


def open_rows(table: pa.Table, config: RunConfig) -> tuple[pa.Table, pa.Array | None]:
    """Return the rows of a chunk to resolve, and their places; None for all of them.

    Of a labelled chunk these are the rows that carry an error; the others stay as they are.
    """
    if config.error_column not in table.column_names:
        return table, None
    places = pc.indices_nonzero(pc.is_valid(table.column(config.error_column)))
    inputs = [name for name in (config.text, config.text_pair) if name]
    return table.select(inputs).take(places), places


def prepare(table: pa.Table, config: RunConfig, keys: Keys, first_row: int) -> Prepared:
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


def _sendable(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, pa.Array]:
    """Return a column of strings, null if a row cannot be sent, and why it cannot.

    A dictionary stays one: decoded, a long value would be there once for each row that has it.
    """
    values = column.combine_chunks()
    if not pa.types.is_dictionary(values.type):
        return _sendable_values(values.cast(pa.large_string()), name)
    texts, why = _sendable_values(values.dictionary.cast(pa.large_string()), name)
    error = why.take(values.indices)
    if values.indices.null_count:
        null = pc.is_null(values.indices)
        error = pc.if_else(null, strings([f"null {name}"])[0], error)
    return pa.DictionaryArray.from_arrays(values.indices, texts), error


def _sendable_values(values: pa.Array, name: str) -> tuple[pa.Array, pa.Array]:
    error = pa.nulls(len(values), pa.string())
    if values.null_count:
        error = pc.if_else(pc.is_null(values), strings([f"null {name}"])[0], error)
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
        values = pc.if_else(pc.is_null(error), values, pa.nulls(1, values.type)[0])
    return values, error


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        (value.as_py() or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _distinct(columns: list[pa.Array]) -> tuple[list[Item], pa.Array]:
    """Return the distinct inputs in order of appearance, and each row's position among them."""
    encoded = list(map(_encoded, columns))
    if len(encoded) == 1:
        return encoded[0].dictionary.to_pylist(), encoded[0].indices
    width = max(len(encoded[1].dictionary), 1)
    factor = numbers([width], pa.int64())[0]
    first, second = (one.indices.cast(pa.int64()) for one in encoded)
    both = pc.add(pc.multiply(first, factor), second).dictionary_encode()
    texts, pairs = (one.dictionary.to_pylist() for one in encoded)
    items: list[Item] = [
        (texts[code // width], pairs[code % width]) for code in both.dictionary.to_pylist()
    ]
    return items, both.indices


def _encoded(column: pa.Array) -> pa.DictionaryArray:
    """Encode a column as the values that it has, each once, in order of appearance."""
    if not pa.types.is_dictionary(column.type):
        return column.dictionary_encode()
    values = column.dictionary.dictionary_encode()
    used = values.indices.take(column.indices).dictionary_encode()
    texts = values.dictionary.take(used.dictionary)
    return pa.DictionaryArray.from_arrays(used.indices, texts)


def _as_items(columns: list[pa.Array]) -> list[Item]:
    values: list[list[Any]] = []
    for column in map(_encoded, columns):
        texts = column.dictionary.to_pylist()
        values.append([texts[place] for place in column.indices.to_pylist()])
    return values[0] if len(values) == 1 else list(zip(*values, strict=True))


def _scatter(rows: pa.Array, count: int) -> pa.Array:
    """Return the inverse of `rows`: for each of `count` rows its position there, or null."""
    positions: list[int | None] = [None] * count
    for position, row in enumerate(rows.to_pylist()):
        positions[row] = position
    return numbers(positions, pa.int64())
