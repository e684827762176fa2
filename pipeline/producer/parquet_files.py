"""Parquet: schema and rows from the footers, then batches small enough for any row group."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.producer import files
from pipeline.producer.chunks import with_schema
from pipeline.producer.columnar import check_columns
from pipeline.producer.parquet_types import check_kept, int96_unit
from pipeline.system.threads import stop_point
from pipeline.wording import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.producer.files import SourceFile

# A batch is decoded whole, and its first rows may be larger than the mean of their row group: up to
# all of it, so a batch of a large one has fewer rows.
BATCH_ROWS = 4096
BATCH_BYTES = 4 << 20
_LARGE_GROUP_BYTES = 64 << 20
_BATCH_ROWS_OF_LARGE = 1024
# The most that the values of a dictionary may come to, repeated in a batch.
_REPEATED_BYTES = 32 << 20

_FEW_ROWS = 16

# Without a read buffer, pyarrow holds the compressed columns of a whole row group.
_READ_BYTES = 1 << 20

_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def read_schema(source: SourceFile) -> pa.Schema:
    """Read the schema of one file. Raises InputError, also for what the output cannot keep."""
    with _open(source) as file:
        check_kept(source, file)
        with _open(source, "us") as by_us:
            unit = int96_unit(source, file, by_us)
            schema = by_us.schema_arrow if unit == "us" else file.schema_arrow
        rows, groups = file.metadata.num_rows, range(file.num_row_groups)
        counts = [file.metadata.row_group(i).num_rows for i in groups]
        if rows != sum(counts) or min(counts, default=0) < 0:
            raise pa.ArrowInvalid("the footer contradicts itself about the number of rows")
    check_columns(source.path, schema)
    return schema


def read_batches(source: SourceFile, schema: pa.Schema, start_row: int) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one file from `start_row` on; whole row groups before it are not read.

    Text that is not UTF-8 passes as it is. Raises InputError if the data is damaged, naming the
    row group and the column, or if a value does not fit the type that `schema` gives its column.
    """
    with _open(source) as by_ns, _open(source, _int96_of(by_ns, schema), by_ns.metadata) as file:
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if rows <= start_row:
                start_row -= rows
                continue
            try:
                # Group by group: pyarrow cannot join nested dictionaries of two in one batch.
                for decoded in file.iter_batches(_batch_rows(source, file, group), [group]):
                    stop_point()
                    batch = decoded.select(schema.names).slice(start_row)
                    start_row = max(0, start_row - decoded.num_rows)
                    if batch.num_rows:
                        yield with_schema(batch, schema)
            except _DAMAGE as error:
                raise _unfit(source, file, group, schema) or error from error


def _int96_of(by_ns: pq.ParquetFile, schema: pa.Schema) -> str:
    """Return the unit in which to read INT96: columns never get a coarser one otherwise."""
    found = by_ns.schema_arrow
    kinds = zip(map(found.field, schema.names), schema.types, strict=True)
    coarser = any("[ns" in str(field.type) and "[us" in str(wanted) for field, wanted in kinds)
    return "us" if coarser else "ns"


def _batch_rows(source: SourceFile, file: pq.ParquetFile, group: int) -> int:
    """Return how many rows of a row group to decode at once."""
    found = file.metadata.row_group(group)
    size_bytes = found.total_byte_size
    rows: int = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size_bytes // max(1, found.num_rows))))
    if size_bytes > _LARGE_GROUP_BYTES:
        rows = min(rows, _BATCH_ROWS_OF_LARGE)
    # A value of a dictionary is stored once, and decoded in each row that has it.
    longest_bytes = 0
    columns = range(found.num_columns) if rows * size_bytes > _REPEATED_BYTES else ()
    for column in map(found.column, columns):
        size_bytes = column.total_uncompressed_size
        if column.physical_type == "BYTE_ARRAY" and rows * size_bytes > _REPEATED_BYTES:
            if column.has_dictionary_page:
                values = -(-column.num_values // found.num_rows)
                longest_bytes += values * _longest(source, file, group, column.path_in_schema)
            if "DELTA_BYTE_ARRAY" in column.encodings:
                # The same for what values have in common with the one before.
                rows = min(rows, _FEW_ROWS)
    return max(1, min(rows, _REPEATED_BYTES // max(1, longest_bytes)))


def _longest(source: SourceFile, file: pq.ParquetFile, group: int, path: str) -> int:
    """Return the length in bytes of the longest value in the dictionary of a column chunk."""
    with (
        source.open() as raw,
        _reader(raw, metadata=file.metadata, read_dictionary=[path]) as opened,
    ):
        array = next(opened.iter_batches(BATCH_ROWS, [group], columns=[path])).column(0)
        while pt.is_nested(array.type):
            array = array.field(0) if pt.is_struct(array.type) else array.values
        longest = pc.max(pc.binary_length(array.dictionary)).as_py()
    return int(longest or 0)


def _unfit(
    source: SourceFile, file: pq.ParquetFile, group: int, schema: pa.Schema
) -> InputError | None:
    """Return what is wrong with a row group that cannot be read, naming the column."""
    for position, name in enumerate(schema.names):
        try:
            for batch in file.iter_batches(_FEW_ROWS, [group], [name]):
                stop_point()
                kind, wanted = batch.column(0).type, schema.field(position).type
                try:
                    batch.column(0).cast(wanted)
                except pa.ArrowException as error:
                    return InputError(
                        f"{source}: column {name!r} ({kind}) does not fit the {wanted} of another "
                        f"file ({reason(error)}).",
                        "Convert it to the same type in all files.",
                    )
        except _DAMAGE as error:
            return _damaged(source, error, f", row group {group}, column {name!r}")
    return None


@contextmanager
def _open(source: SourceFile, int96: str = "ns", metadata: Any = None) -> Iterator[pq.ParquetFile]:
    """Open one file; damage found while it is open becomes an InputError.

    `int96` is the unit of old timestamps.
    """
    try:
        with (
            source.open() as raw,
            _reader(raw, coerce_int96_timestamp_unit=int96, metadata=metadata) as file,
        ):
            yield file
    except _DAMAGE as error:
        raise _damaged(source, error) from error


def _reader(raw: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(
        raw,
        buffer_size=_READ_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
        **options,
    )


def _damaged(source: SourceFile, error: Exception, where: str = "") -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return files.unreadable(source.path, error)
    return InputError(
        f"{source}{where} cannot be read as Parquet: it is truncated, damaged or of another kind "
        f"({reason(error)}).",
        "Copy or write the file again.",
    )
