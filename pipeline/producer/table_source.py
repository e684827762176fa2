"""A table in memory as a source."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.producer.chunks import rechunk
from pipeline.producer.columnar import check_columns
from pipeline.producer.footprint import Footprint
from pipeline.producer.input_table import InputFile, InputTable, Signature
from pipeline.producer.sources import Source
from pipeline.producer.storable import check_storable
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from collections.abc import Iterable

# It is checksummed in pieces of this size, however it is chunked.
_IDENTITY_ROWS = 65_536
_IDENTITY_BYTES = 64 << 20
_BATCH_ROWS = 4096


class TableSource(Source):
    """A table that is already in memory; its identity is the checksum of its rows.

    Raises InputError for a table without columns, with two of one name, or with a column that
    Parquet cannot hold.
    """

    def __init__(self, table: pa.Table) -> None:
        check_columns("The table", table.schema)
        check_storable("The table", table.schema)
        _check_dictionaries(table)
        self._table = table
        footprint = Footprint()
        for first in range(0, table.num_rows, _BATCH_ROWS):
            piece = table.slice(first, _BATCH_ROWS)
            footprint.observe(piece.num_rows, piece.slice)
        self.input = InputTable(
            table.schema,
            table.num_rows,
            (_identify(table),),
            None,
            *footprint.sizes(),
        )

    def begins_with(self, earlier: InputTable) -> bool:
        """Return True if the first rows are the table that was settled earlier."""
        first = _identify(self._table.slice(0, earlier.rows))
        return not replace(self.input, files=(first,)).differences(earlier)

    def _batches(self, start_row: int, end_row: int) -> Iterable[pa.RecordBatch]:
        rows = self._table.slice(start_row, end_row - start_row)
        batches: list[pa.RecordBatch] = rows.to_batches(max_chunksize=_BATCH_ROWS)
        return batches


def _check_dictionaries(table: pa.Table) -> None:
    """Refuse a dictionary whose index counts the values of each piece, but not of all together."""
    for name, column in zip(table.schema.names, table.columns, strict=True):
        if pt.is_dictionary(column.type):
            try:
                column.unify_dictionaries()
            except pa.ArrowInvalid as error:
                raise InputError(
                    f"The table: column {name!r} ({column.type}) holds more values than its index "
                    f"can count ({error}).",
                    "Cast it to a dictionary with a larger index.",
                ) from error


class _Digest(io.RawIOBase):
    """A file that keeps only the length and the checksum of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return len(data)


def _identify(table: pa.Table) -> InputFile:
    digest = _Digest()
    with pa.ipc.new_stream(digest, table.schema) as stream:
        for piece in rechunk(
            table.to_batches(),
            table.schema,
            first_row=0,
            max_rows=_IDENTITY_ROWS,
            max_bytes=_IDENTITY_BYTES,
        ):
            stop_point()
            stream.write_table(piece.table)
    never_written = Signature(digest.size_bytes, 0, 0, 0)
    sha256 = digest.sha256.hexdigest()
    return InputFile(
        "the table in memory", table.num_rows, sha256=sha256, **never_written._asdict()
    )
