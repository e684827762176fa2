"""Parts: a resolved chunk, or a few in a row, as one durable file in the run store.

A part of an output that is one file is read again when that is assembled, so it is an Arrow IPC
stream, which costs least to write and to read. A part of a directory is one of its Parquet files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.store import PartRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.store import ByteSource, RunStore

COMPRESSION = "zstd"
_STREAM = ".arrows"


def write_empty_part(store: RunStore, schema: pa.Schema) -> PartRecord:
    """Write the part of a directory without rows. Raises what `write_part` does."""
    return write_part(
        store,
        schema.empty_table(),
        first_row=0,
        errors=0,
        labels={},
        revision=None,
        final_schema=schema,
    )


def write_part(
    store: RunStore,
    table: pa.Table,
    *,
    first_row: int,
    errors: int,
    labels: Mapping[str, int],
    revision: str | None,
    final_schema: pa.Schema | None = None,
    packed: bool = False,
) -> PartRecord:
    """Write one part durably; it counts only once what this returns is recorded.

    With `final_schema`, it is a Parquet file of the output and has that schema. Without, it is an
    Arrow IPC stream, compressed if it is to be `packed`.
    Raises StoppedEarly if the storage refuses.
    """
    if final_schema is None:
        content, suffix = _as_stream(table, packed=packed), _STREAM
    else:
        content, suffix = _as_parquet(whole([table.cast(final_schema)])), ".parquet"
    file, sha256, stamp = store.put_part(first_row, content, suffix)
    return PartRecord(
        first_row=first_row,
        rows=table.num_rows,
        file=file,
        size_bytes=content.size,
        sha256=sha256,
        errors=errors,
        revision=revision,
        labels=dict(labels),
        stamp=stamp,
    )


def is_stream(part: ByteSource) -> bool:
    """Return True for a part of an output that is one file."""
    return part.name.endswith(_STREAM)


def read_part(part: ByteSource) -> pa.Table:
    """Read a part of an output that is one file. Raises OSError or ArrowException."""
    with part.open() as file:
        return pa.ipc.open_stream(file).read_all()


def _as_stream(table: pa.Table, *, packed: bool) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if packed else None)
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    return sink.getvalue()


def _as_parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=COMPRESSION, row_group_size=max(1, table.num_rows))
    return sink.getvalue()


def whole(pieces: Sequence[pa.Table]) -> pa.Table:
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
    """Return a dictionary column with the values that it uses, in the order of their first row."""
    kind = column.type
    used = [chunk.dictionary.take(chunk.indices.drop_null().unique()) for chunk in column.chunks]
    values = pa.chunked_array(used, kind.value_type).unique()
    indices = [
        pc.index_in(chunk.dictionary, value_set=values).take(chunk.indices).cast(kind.index_type)
        for chunk in column.chunks
    ]
    joined = pa.chunked_array(indices, kind.index_type).combine_chunks()
    return pa.DictionaryArray.from_arrays(joined, values, ordered=kind.ordered)
