"""An output that is text: CSV or JSON Lines, compressed if its name says so.

CSV is what RFC 4180 says, with `\\n` between rows: an empty text is quoted, and null is nothing
between two commas. Lists and objects are JSON in a cell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipeline.errors import OutputError
from pipeline.store.forms import CSV, JSONL, compression_of, form_of
from pipeline.system.arrays import strings
from pipeline.system.threads import stop_point
from pipeline.wording import setting, short

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXT = pa.large_string()
_QUOTED = '[",\r\n\ufeff]|^$'
# So many rows at once: text takes several times what they do, Python objects many times.
_CSV_ROWS, _JSON_ROWS = 4096, 1024


def check_writable(name: str, schema: pa.Schema) -> None:
    """Refuse columns that the form of an output cannot hold. Raises OutputError."""
    form = form_of(name)
    if form not in (CSV, JSONL):
        return
    for field in schema:
        if _holds_bytes(field.type):
            raise OutputError(
                f"{setting('output')}: column {short(field.name)!r} holds {field.type}, which "
                f"{form} has no way to write.",
                "Name a .parquet file, or leave the column out.",
            )
        if form == CSV and not field.name.strip():
            raise OutputError(
                f"{setting('output')}: a column without a name cannot be written to CSV.",
                "Name a .parquet file, or give the column a name.",
            )


def nested(name: str, schema: pa.Schema) -> list[str]:
    """Return the columns that become JSON in the cells of an output that is CSV."""
    if form_of(name) != CSV:
        return []
    return [field.name for field in schema if pt.is_nested(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    if isinstance(kind, pa.ExtensionType):
        kind = kind.storage_type
    tests = (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)
    inner = (kind.field(position).type for position in range(kind.num_fields))
    return any(test(kind) for test in tests) or any(map(_holds_bytes, inner))


class TextWriter:
    """Writes tables as rows of text, as `pq.ParquetWriter` writes row groups."""

    def __init__(self, file: pa.NativeFile, schema: pa.Schema, name: str) -> None:
        packed = compression_of(name)
        self._file = pa.CompressedOutputStream(file, packed) if packed else file
        self._lines = _json_lines if form_of(name) == JSONL else _csv_lines
        if form_of(name) == CSV:
            header = pa.table([strings([each]) for each in schema.names], schema.names)
            self.write_table(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write_table(self, table: pa.Table, row_group_size: int | None = None) -> None:  # noqa: ARG002
        """Write the rows of a table; they have no groups."""
        for lines in self._lines(table):
            stop_point()
            self._file.write(lines)


def _csv_lines(whole: pa.Table) -> Iterator[Any]:
    for start in range(0, whole.num_rows, _CSV_ROWS):
        yield _csv_rows(whole.slice(start, _CSV_ROWS))


def _csv_rows(table: pa.Table) -> Any:
    comma, line_end, nothing = (strings([text]).cast(_TEXT)[0] for text in (",", "\n", ""))
    cells = [_quoted(_as_text(_whole(column))) for column in table.columns]
    rows = pc.binary_join_element_wise(*cells, comma, null_handling="replace", null_replacement="")
    rows = pc.binary_join_element_wise(rows, nothing, line_end)
    _, offsets, data = rows.buffers()
    ends = np.frombuffer(offsets, np.int64)
    return data[int(ends[rows.offset]) : int(ends[rows.offset + len(rows)])]


def _quoted(cells: pa.Array) -> pa.Array:
    quote, nothing = (strings([text]).cast(_TEXT)[0] for text in ('"', ""))
    needed = pc.match_substring_regex(cells, _QUOTED)
    doubled = pc.replace_substring(cells, '"', '""')
    return pc.if_else(needed, pc.binary_join_element_wise(quote, doubled, quote, nothing), cells)


def _as_text(column: pa.Array) -> pa.Array:
    kind = column.type
    if pt.is_nested(kind):
        cells = [None if each is None else _json(each).decode() for each in _values(column)]
        return strings(cells).cast(_TEXT)
    text = column.cast(_TEXT)
    if pt.is_floating(kind):
        # As Python prints it: read again, it is no integer.
        return pc.replace_substring_regex(text, "^(-?[0-9]+)$", r"\1.0")
    return text


def _json_lines(table: pa.Table) -> Iterator[bytes]:
    for start in range(0, table.num_rows, _JSON_ROWS):
        piece = table.slice(start, _JSON_ROWS)
        columns = [_values(_plain(_whole(column))) for column in piece.columns]
        names = table.column_names
        yield b"".join(
            _json(dict(zip(names, row, strict=True))) + b"\n" for row in zip(*columns, strict=True)
        )


def _plain(column: pa.Array) -> pa.Array:
    """Return a column whose values orjson writes."""
    kind = column.type
    exotic = pt.is_temporal(kind) or pt.is_decimal(kind)
    return column.cast(_TEXT) if exotic else column


def _json(value: Any) -> bytes:
    return orjson.dumps(value, default=_worded)


def _worded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _values(column: pa.Array) -> list[Any]:
    """Return the values of a column; texts that are not UTF-8, as Parquet may hold, as bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return list(column.cast(_with_bytes(column.type)).to_pylist())


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    if pt.is_string(kind) or pt.is_large_string(kind):
        return pa.large_binary()
    if pt.is_list(kind):
        return pa.list_(_with_bytes(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in kind.fields])
    return kind


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array of plain values."""
    array = column.combine_chunks()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if isinstance(array.type, pa.ExtensionType):
        array = array.storage
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_string(array.type) or pt.is_large_string(array.type) or pt.is_string_view(array.type):
        return _unicode(array)
    return array


def _unicode(array: pa.Array) -> pa.Array:
    """Replace what is not UTF-8 in texts, which Parquet may hold."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        values = array.cast(pa.large_binary()).to_pylist()
        return strings([None if each is None else each.decode(errors="replace") for each in values])
    return array
