"""Parquet: schema and rows from the footers, then batches small enough for any row group."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.producer import files
from pipeline.producer.chunks import with_schema
from pipeline.producer.input_table import InputFile
from pipeline.producer.parquet_types import check_kept, int96_unit, wider
from pipeline.system.threads import stop_point
from pipeline.wording import short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.producer.files import SourceFile
    from pipeline.producer.footprint import Footprint

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

_WIDE = pa.int32()
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def settle_files(
    sources: Sequence[SourceFile], footprint: Footprint
) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Settle one schema by all footers, then decode and checksum every file.

    The schema is the first file's, metadata included, and each column as wide as any file needs
    it. A dictionary whose small index counts the values of each row group, but not of all
    together, gets an index of 32 bits. Raises InputError for a file that is not Parquet or is
    damaged anywhere, and for columns that differ so that no type holds both.
    """
    signatures = [source.signature() for source in sources]
    schema = pa.schema([])
    for source, signature in zip(sources, signatures, strict=True):
        with source.unchanged(signature):
            found = read_schema(source)
            for name, _ in source.keys:  # the folder's value goes first, as in Spark and DuckDB
                if name in found.names:
                    found = found.remove(found.get_field_index(name))
            schema = _joined(source, found, sources[0], schema) if schema.names else found
    values: dict[str, tuple[set[Any], list[Any]]] = {
        each.name: (set(), [])
        for each in schema
        if pt.is_dictionary(each.type) and each.type.index_type.bit_width < _WIDE.bit_width
    }
    settled: list[InputFile] = []
    for source, signature in zip(sources, signatures, strict=True):
        with source.unchanged(signature):
            rows = 0
            for batch in read_batches(source, schema, 0):
                rows += batch.num_rows
                _collect_values(batch, values)
                footprint.observe(batch.num_rows, partial(pa.Table.from_batches, [batch]))
            sha256 = source.sha256()
        settled.append(
            InputFile(source.path, rows, sha256=sha256, **signature._asdict(), keys=source.keys)
        )
    return _widened(schema, values), tuple(settled)


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


def _collect_values(batch: pa.RecordBatch, values: dict[str, tuple[set[Any], list[Any]]]) -> None:
    """Add the values of dictionaries with an index of 8 or 16 bits."""
    for name, (found, last) in values.items():
        dictionary = batch.column(name).dictionary
        if not (last and dictionary.equals(last[0])):
            found.update(dictionary.to_pylist())
            last[:] = [dictionary]


def _widened(schema: pa.Schema, values: dict[str, tuple[set[Any], list[Any]]]) -> pa.Schema:
    for name, (found, _) in values.items():
        field = schema.field(name)
        kind = field.type
        bits = kind.index_type.bit_width - pt.is_signed_integer(kind.index_type)
        if len(found) > 1 << bits:
            wide = pa.dictionary(_WIDE, kind.value_type, kind.ordered)
            schema = schema.set(schema.get_field_index(name), field.with_type(wide))
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
                        f"file ({_reason(error)}).",
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
        f"({_reason(error)}).",
        "Copy or write the file again.",
    )


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def check_columns(path: str, schema: pa.Schema) -> None:
    """Raise InputError for a table without columns or with two of one name."""
    if not schema.names:
        raise InputError(f"{path} has no columns.", "Choose a table with a text column.")
    name, count = Counter(schema.names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: two columns are named {short(name)!r}.", "Rename one of them.")


def _joined(
    source: SourceFile, schema: pa.Schema, first: SourceFile, expected: pa.Schema
) -> pa.Schema:
    """Return `expected`, with columns as wide as either schema needs, nullable where either is."""
    files.check_same_columns(source, schema.names, first, expected.names)
    fields = []
    for field, wanted in zip(schema, expected, strict=True):
        kind = wider(wanted.type, field.type)
        if kind is None:
            raise InputError(
                f"{source}: column {field.name!r} is {field.type}, but {wanted.type} in {first}, "
                "and no type holds the values of both unchanged.",
                "Convert it to the same type in all files.",
            )
        nullable = wanted.nullable or field.nullable
        fields.append(wanted.with_type(kind).with_nullable(nullable))
    return pa.schema(fields, expected.metadata)
