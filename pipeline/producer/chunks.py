"""Chunks: contiguous ranges of input rows, the unit that workers resolve and the writer commits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipeline.system.sizes import row_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

# Columns of a chunk are joined, and 32-bit string offsets end at 2 GiB.
MAX_CHUNK_BYTES = 1 << 30
# What each value counts beside its own bytes: an offset of a text.
_OFFSET_BYTES = 4


@dataclass(frozen=True)
class Chunk:
    """Rows `first_row` to `first_row + table.num_rows - 1` of the input; at least one row.

    `size_bytes` is about what the columns take that count, told by their values alone.
    """

    first_row: int
    table: pa.Table
    size_bytes: int


def rechunk(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    *,
    first_row: int,
    max_rows: int,
    max_bytes: int,
    counted: Sequence[str] | None = None,
    borders: Sequence[int] = (),
) -> Generator[Chunk, None, None]:
    """Cut a stream of record batches of any size into chunks.

    A chunk has `max_rows` rows, or fewer if one more would exceed `max_bytes` in the `counted`
    columns (all, if not given), or is one of `borders`, or at the end of the stream; a row larger
    than `max_bytes` is a chunk by itself. The rows alone decide, so a stream that begins at the
    border of a chunk gives the same chunks from there on. The shared dictionary of a dictionary
    column is not counted; one that is larger than `max_bytes` by itself is cut down to the values
    that a batch uses of it. A chunk owns its memory: it keeps no larger batch alive.

    Raises ValueError for bounds below 1 or above MAX_CHUNK_BYTES.
    """
    _check_bounds(max_rows, max_bytes)
    held: list[pa.RecordBatch] = []
    rows = size = 0
    ahead = iter([*borders, sys.maxsize])
    border = next(ahead)
    for batch in batches:
        rest = _map_columns(batch, lambda column: _own_dictionary(column, max_bytes))
        sized = rest if counted is None else rest.select(counted)
        ends = np.cumsum(row_bytes(sized) + _OFFSET_BYTES * sized.num_columns)
        start = before = 0
        while start < rest.num_rows:
            stop = int(np.searchsorted(ends, before + max_bytes - size, side="right"))
            while border <= first_row:
                border = next(ahead)
            most_rows = min(max_rows, border - first_row)
            stop = min(max(stop, start + (not held)), start + most_rows - rows)
            if stop > start:
                held.append(rest.slice(start, stop - start))
                rows += stop - start
                size += int(ends[stop - 1]) - before
                start, before = stop, int(ends[stop - 1])
            if start < rest.num_rows or rows == most_rows:
                yield Chunk(first_row, _concatenated(held, schema), size)
                first_row += rows
                held, rows, size = [], 0, 0
    if held:
        yield Chunk(first_row, _concatenated(held, schema), size)


def _check_bounds(max_rows: int, max_bytes: int) -> None:
    if max_rows < 1 or not 1 <= max_bytes <= MAX_CHUNK_BYTES:
        raise ValueError(
            f"max_rows ({max_rows}) must be at least 1, and max_bytes ({max_bytes}) between 1 "
            f"and {MAX_CHUNK_BYTES}"
        )


def _concatenated(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Copy slices into one table that shares no buffer with their parents."""
    try:
        joined = pa.concat_batches([_map_columns(batch, _without_view) for batch in batches])
    except pa.ArrowException:
        # Dictionaries that do not fit their index type together, and types Arrow cannot join.
        return pa.Table.from_batches(
            [pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in batches]
        )
    return pa.Table.from_batches([with_schema(joined, schema)])


def with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Cast the columns of a batch that are of another type than the schema has."""
    if batch.schema.equals(schema, check_metadata=True):
        return batch
    columns = [
        column if column.type == kind else column.cast(kind)
        for column, kind in zip(batch.columns, schema.types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _map_columns(batch: pa.RecordBatch, change: Callable[[pa.Array], pa.Array]) -> pa.RecordBatch:
    before = batch.columns
    after = list(map(change, before))
    if all(map(is_, before, after)):
        return batch
    return pa.RecordBatch.from_arrays(after, names=batch.schema.names)


def _own_dictionary(array: pa.Array, max_bytes: int) -> pa.Array:
    """Cut a dictionary down to the values in use, where each part would carry too much of it.

    One that holds a null is cut down too: Parquet takes nulls among the indices only.
    """
    if not pt.is_dictionary(array.type) or not (
        array.dictionary.null_count or array.dictionary.nbytes > max_bytes
    ):
        return array
    used = array.indices.unique().sort()
    used = used.filter(array.dictionary.take(used).is_valid())
    return pa.DictionaryArray.from_arrays(
        pc.index_in(array.indices, used).cast(array.type.index_type),
        array.dictionary.take(used),
        ordered=array.type.ordered,
    )


def _without_view(column: pa.Array) -> pa.Array:
    if pt.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pt.is_binary_view(column.type) else column
