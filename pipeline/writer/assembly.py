"""Assembly: the committed parts become the draft of the output.

The rows are cut again, into row groups of a fixed size, so the bytes of the output depend on its
rows and never on where an interruption happened to end a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.store.objects import writing
from pipeline.system.arrays import numbers
from pipeline.system.failpoints import failpoint
from pipeline.system.threads import stop_point
from pipeline.writer.parts import COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store import ByteSource
    from pipeline.store.objects import Output


ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 << 20
FILE_ROWS = 1_048_576


def assemble(parts: Sequence[ByteSource], schema: pa.Schema, output: Output, *, rows: int) -> None:
    """Write the rows of `parts`, in order, as the draft of `output`: a file or several.

    `schema` carries the metadata of the output, `rows` is how many rows it must have. Raises
    StoppedEarly if the storage refuses.
    """
    with writing(output.path):
        output.begin_draft()
        failpoint("assembly.begun")
        groups = _row_groups(parts, schema)
        if output.is_file:
            written = _write_file(output, "", schema, groups, most_rows=None)
        else:
            written = _write_files(output, schema, groups)
        # Nothing may be lost silently: a bug here must not reach the output.
        assert written == rows, f"{written} rows assembled, {rows} expected"
        failpoint("assembly.written")


def _write_files(output: Output, schema: pa.Schema, groups: Iterator[pa.Table]) -> int:
    """Write row groups to files of FILE_ROWS rows, at least one. Return how many rows."""
    total = number = 0
    while True:
        name = f"part-{number:05d}.parquet"
        rows = _write_file(output, name, schema, groups, most_rows=FILE_ROWS)
        if not rows and number:
            output.drop_from_draft(name)
            return total
        total += rows
        number += 1


def _write_file(
    output: Output,
    name: str,
    schema: pa.Schema,
    groups: Iterator[pa.Table],
    *,
    most_rows: int | None,
) -> int:
    """Write row groups to one file until it holds `most_rows` or they end. Return how many rows.

    Leaving by an exception writes a footer, which makes a truncated file look whole; that is
    harmless only because this is a draft, which is never published then.
    """
    rows = 0
    with (
        output.open_draft(name) as file,
        pq.ParquetWriter(file, schema, compression=COMPRESSION) as writer,
    ):
        while most_rows is None or rows < most_rows:
            group = next(groups, None)
            if group is None:
                break
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
            del group  # or it is held while the next one is put together
            failpoint("assembly.row group")
    return rows


def _row_groups(parts: Sequence[ByteSource], schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut the rows of all parts into row groups: ROW_GROUP_ROWS each, fewer if rows are big.

    The border is set by the rows alone: a group ends before the row that would take it over
    ROW_GROUP_BYTES, and a larger row is a group by itself. So no more than a group and a part are
    held, however large the cells are.
    """
    pending: list[pa.Table] = []
    rows = size_bytes = 0
    for part in parts:
        stop_point()
        with part.open() as file:
            table = pq.ParquetFile(file, pre_buffer=False).read().cast(schema)
        ends = np.concatenate([[0], np.cumsum(_row_bytes(table))])
        start = 0
        while start < table.num_rows:
            room_to = ends[start] + ROW_GROUP_BYTES - size_bytes
            stop = int(np.searchsorted(ends, room_to, side="right")) - 1
            stop = min(max(stop, start + (not pending)), start + ROW_GROUP_ROWS - rows)
            if stop > start:
                pending.append(table.slice(start, stop - start))
            rows += stop - start
            size_bytes += int(ends[stop] - ends[start])
            start = stop
            if start < table.num_rows or rows == ROW_GROUP_ROWS:
                pending = [_whole(pending)]  # the pieces are not held while it is written
                yield pending.pop()
                rows = size_bytes = 0
        del table  # or it is held while the next part is read
    if pending:
        pending = [_whole(pending)]
        yield pending.pop()


def _whole(pieces: Sequence[pa.Table]) -> pa.Table:
    """Join the pieces of a row group, so that nothing in it tells where a part ended.

    The writer's pages follow the chunks of a column, and its dictionaries those that it is given.
    """
    table = pa.concat_tables(pieces)
    columns = [
        _by_appearance(column) if pt.is_dictionary(column.type) else column.combine_chunks()
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _by_appearance(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Give a dictionary column the values that it uses, in the order of their first row."""
    kind = column.type
    used = [chunk.dictionary.take(chunk.indices.drop_null().unique()) for chunk in column.chunks]
    values = pa.chunked_array(used, kind.value_type).unique()
    indices = [
        pc.index_in(chunk.dictionary, value_set=values).take(chunk.indices).cast(kind.index_type)
        for chunk in column.chunks
    ]
    joined = pa.chunked_array(indices, kind.index_type).combine_chunks()
    return pa.DictionaryArray.from_arrays(joined, values, ordered=kind.ordered)


def _row_bytes(table: pa.Table) -> Any:
    """Return about how many bytes each row has, told by its values alone."""
    none = np.zeros(0, np.int64)
    columns = [[none, *map(_value_bytes, column.chunks)] for column in table.columns]
    return sum(map(np.concatenate, columns), np.zeros(table.num_rows, np.int64))


def _value_bytes(array: pa.Array) -> Any:
    """Return about how many bytes each value of an array has, those inside lists included."""
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        return _value_bytes(array.storage)
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        return _value_bytes(array.cast(pa.large_binary()))
    if any(is_it(kind) for is_it in (pt.is_string, pt.is_large_string, pt.is_binary,
                                     pt.is_large_binary)):  # fmt: skip
        return np.from_dlpack(pc.coalesce(pc.binary_length(array), numbers([0], pa.int64())[0]))
    if pt.is_struct(kind):
        return sum(map(_value_bytes, array.flatten()), np.zeros(len(array), np.int64))
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_map(kind):
        offsets = np.from_dlpack(array.offsets)
        inside = array.values if not pt.is_map(kind) else pa.StructArray.from_arrays(
            [array.keys, array.items], ["key", "value"]
        )  # fmt: skip
        ends = np.concatenate([[0], np.cumsum(_value_bytes(inside))])
        return ends[offsets[1:]] - ends[offsets[:-1]]
    if pt.is_fixed_size_list(kind):
        size = kind.list_size
        inside = _value_bytes(array.values.slice(array.offset * size, len(array) * size))
        return inside.reshape(len(array), size).sum(axis=1)
    try:
        width_bytes = kind.bit_width / 8
    except ValueError:  # null, for example
        width_bytes = 0
    return np.full(len(array), width_bytes, np.int64)
