"""Files that carry a schema of their own: one schema for all of them, and what it must hold."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.producer import files
from pipeline.producer.input_table import InputFile
from pipeline.producer.parquet_types import wider
from pipeline.wording import short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.producer.files import SourceFile
    from pipeline.producer.footprint import Footprint

_WIDE = pa.int32()


def settle_files(
    sources: Sequence[SourceFile],
    footprint: Footprint,
    *,
    read_schema: Callable[[SourceFile], pa.Schema],
    read_batches: Callable[[SourceFile, pa.Schema, int], Iterator[pa.RecordBatch]],
) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Settle one schema by those of all files, then decode and checksum every file.

    The schema is the first file's, metadata included, and each column as wide as any file needs
    it. A dictionary whose small index counts the values of each row group, but not of all
    together, gets an index of 32 bits. Raises InputError for a file that is
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
