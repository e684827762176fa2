"""Parquet: schema and rows from the footers, then batches small enough for any row group."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.producer import files
from pipeline.producer.chunks import with_schema
from pipeline.producer.input_table import InputFile
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.producer.files import SourceFile

# A batch is decoded whole, and a page may decode to far more than the footer tells (a dictionary
# holds a repeated value once), so rows are few even where bytes seem to allow more.
BATCH_ROWS = 1024
BATCH_BYTES = 4 << 20

# Without a read buffer, pyarrow holds the compressed columns of a whole row group.
_READ_BYTES = 1 << 20

_WIDE = pa.int32()


def settle_files(sources: Sequence[SourceFile]) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Read every footer and checksum every file.

    The schema is the first file's, metadata included; a column is nullable where it is so in any
    file. A dictionary whose small index counts the values of each row group, but not of all
    together, gets an index of 32 bits. Raises InputError for a file that is not Parquet, or whose
    columns differ.
    """
    schema = pa.schema([])
    values: dict[str, set[Any]] = {}
    settled: list[InputFile] = []
    for source in sources:
        signature = source.signature()
        with source.unchanged(signature), _open(source) as file:
            found, rows = file.schema_arrow, file.metadata.num_rows
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            if rows != sum(counts) or min(counts, default=0) < 0:
                raise pa.ArrowInvalid("the footer contradicts itself about the number of rows")
            _collect_values(file, values)
            if not settled:
                check_columns(source.path, found)
                schema = found
            schema = _nullable_in_either(source, found, sources[0], schema)
            sha256 = source.sha256()
        settled.append(InputFile(source.path, rows, sha256=sha256, **signature._asdict()))
    return _widened(schema, values), tuple(settled)


def read_schema(source: SourceFile) -> pa.Schema:
    """Read the schema of one file from its footer. Raises InputError."""
    with _open(source) as file:
        schema = file.schema_arrow
    check_columns(source.path, schema)
    return schema


def _collect_values(file: pq.ParquetFile, values: dict[str, set[Any]]) -> None:
    """Add the values of this file's dictionaries with an index of 8 or 16 bits."""
    names = [
        field.name
        for field in file.schema_arrow
        if pt.is_dictionary(field.type) and field.type.index_type.bit_width < _WIDE.bit_width
    ]
    last: dict[str, pa.Array] = {}
    for batch in file.iter_batches(columns=names) if names else ():
        stop_point()
        for name in names:
            dictionary = batch.column(name).dictionary
            if name not in last or not dictionary.equals(last[name]):
                values.setdefault(name, set()).update(dictionary.to_pylist())
            last[name] = dictionary


def _widened(schema: pa.Schema, values: dict[str, set[Any]]) -> pa.Schema:
    for name, found in values.items():
        field = schema.field(name)
        kind = field.type
        bits = kind.index_type.bit_width - pt.is_signed_integer(kind.index_type)
        if len(found) > 1 << bits:
            wide = pa.dictionary(_WIDE, kind.value_type, kind.ordered)
            schema = schema.set(schema.get_field_index(name), field.with_type(wide))
    return schema


def read_batches(source: SourceFile, schema: pa.Schema, start_row: int) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one file from `start_row` on; whole row groups before it are not read.

    Raises InputError if the data is damaged or not valid for its type.
    """
    with _open(source) as file:
        groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
        first = 0
        while first < len(groups) and groups[first].num_rows <= start_row:
            start_row -= groups[first].num_rows
            first += 1
        row_bytes = max(
            (group.total_byte_size // group.num_rows for group in groups[first:] if group.num_rows),
            default=0,
        )
        batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))
        rest = range(first, len(groups))
        # pyarrow cannot join nested dictionaries of two row groups in one batch.
        at_once = [[group] for group in rest] if nests_dictionary(schema) else [rest]
        for decoded in itertools.chain.from_iterable(
            file.iter_batches(batch_size=batch_rows, row_groups=groups) for groups in at_once
        ):
            stop_point()
            batch = decoded.slice(start_row)
            start_row = max(0, start_row - decoded.num_rows)
            if batch.num_rows:
                # Parquet readers trust the file; text that is not UTF-8 would fail much later.
                batch.validate(full=True)
                yield with_schema(batch, schema)


def nests_dictionary(schema: pa.Schema) -> bool:
    """Return True if a column has a dictionary inside a list, a struct or a map."""
    return any(pt.is_nested(kind) and "dictionary<" in str(kind) for kind in schema.types)


@contextmanager
def _open(source: SourceFile) -> Iterator[pq.ParquetFile]:
    """Open one file; damage found while it is open becomes an InputError."""
    try:
        with (
            source.open() as raw,
            pq.ParquetFile(
                raw, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True
            ) as file,
        ):
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise files.unreadable(source.path, error) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(
            f"{source} cannot be read as Parquet: it is truncated, damaged or of another kind "
            f"({reason}).",
            "Copy or write the file again.",
        ) from error


def check_columns(path: str, schema: pa.Schema) -> None:
    """Raise InputError for a table without columns or with two of one name."""
    if not schema.names:
        raise InputError(f"{path} has no columns.", "Choose a table with a text column.")
    for position, name in enumerate(schema.names):
        if name in schema.names[:position]:
            raise InputError(f"{path}: two columns are named {name!r}.", "Rename one of them.")


def _nullable_in_either(
    source: SourceFile, schema: pa.Schema, first: SourceFile, expected: pa.Schema
) -> pa.Schema:
    """Return `expected`, nullable where either schema is; refuse any other difference."""
    files.check_same_columns(source, schema.names, first, expected.names)
    for position, field in enumerate(schema):
        wanted = expected.field(position)
        if field.type != wanted.type:
            raise InputError(
                f"{source}: column {field.name!r} is {field.type}, but {wanted.type} in {first}.",
                "All files of one input must have the same types: convert one of them.",
            )
        if field.nullable and not wanted.nullable:
            expected = expected.set(position, wanted.with_nullable(True))
    return expected
