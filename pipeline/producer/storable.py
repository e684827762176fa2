"""Checks that Parquet can hold a table: the parts and the output will have all of its columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import InputError

# Columns that Arrow's datasets add to those of a file; `pq.read_table` reads by a dataset.
_RESERVED = {"__fragment_index", "__batch_index", "__last_in_fragment", "__filename"}
_DICTIONARY_VALUES = (pt.is_string, pt.is_large_string, pt.is_binary, pt.is_large_binary)


def check_storable(what: str, schema: pa.Schema) -> None:
    """Raise InputError, naming the column, unless every column survives being written and read.

    Arrow has types that Parquet has not (unions, intervals, run ends, dictionaries of anything
    but text and bytes), and pyarrow keeps a few column names for itself when it reads.
    """
    whole = _reason(schema)
    if whole is None:
        return
    for field in schema:
        reason = _reason(pa.schema([field]))
        if reason is not None:
            raise InputError(
                f"{what}: column {field.name!r} ({field.type}) cannot be kept in Parquet "
                f"({reason}).",
                "Convert or rename it, or leave it out.",
            )
    raise InputError(f"{what} cannot be kept in Parquet ({whole}).", "Convert its columns.")


def _reason(schema: pa.Schema) -> str | None:
    """Return why a table without rows cannot be written and read again; None if it can."""
    kind = next((found for field in schema if (found := _foreign_dictionary(field.type))), None)
    if kind is not None:
        return f"a dictionary of {kind.value_type}"
    reserved = next((name for name in schema.names if name in _RESERVED), None)
    if reserved is not None:
        return f"pyarrow keeps the name {reserved} for itself"
    buffer = pa.BufferOutputStream()
    try:
        columns = [pa.nulls(0, kind) for kind in schema.types]
        pq.write_table(pa.table(columns, schema=schema), buffer)
        # Not by `pq.read_table`, which imports pandas.
        with pq.ParquetFile(pa.BufferReader(buffer.getvalue())) as file:
            file.read().cast(schema)
    except (pa.ArrowException, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _foreign_dictionary(kind: pa.DataType) -> pa.DataType | None:
    """Find a dictionary, however deep, that Parquet gives back as something else."""
    if pt.is_dictionary(kind):
        return None if any(test(kind.value_type) for test in _DICTIONARY_VALUES) else kind
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return next((found for each in inner if (found := _foreign_dictionary(each))), None)
