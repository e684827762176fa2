"""How much disk the rows of an input take, told by some of them while all are read."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable

# So many rows, or bytes, are written together, about as in a part; of such groups one in so many,
# since that takes several times as long as reading.
_ROWS, _BYTES, _EVERY = 4096, 1 << 20, 16


class Footprint:
    """Counts the pieces of an input, and writes some of them."""

    def __init__(self) -> None:
        self._rows = self._written_rows = self._written_bytes = self._arrow_bytes = 0
        self._groups = self._group_rows = self._group_bytes = 0
        self._group: list[pa.Table] = []

    def sizes(self) -> tuple[int, int]:
        """Return about what all rows take in bytes: as Parquet, without footers, and as Arrow."""
        self._end_group()
        scale = self._rows / max(1, self._written_rows)
        return round(self._written_bytes * scale), round(self._arrow_bytes * scale)

    def observe(self, rows: int, piece: Callable[[], pa.Table]) -> None:
        """Count a piece of so many rows, which is made if it is wanted."""
        self._rows += rows
        self._group_rows += rows
        # More of the first ones: a small input has no more.
        if self._groups % _EVERY == 0 or self._groups & (self._groups - 1) == 0:
            table = piece()
            # Large cells are not held twice.
            some = table.slice(0, max(1, rows * _BYTES // max(_BYTES, table.nbytes)))
            self._group.append(some)
            self._group_bytes += some.nbytes
        if self._group_rows >= _ROWS or self._group_bytes >= _BYTES:
            self._end_group()

    def _end_group(self) -> None:
        if self._group:
            sink = pa.BufferOutputStream()
            # Nulls among the values of a dictionary are moved only where chunks are cut; what
            # Parquet cannot hold is said later.
            with suppress(pa.ArrowException):
                # The types of JSON are not settled yet.
                table = pa.concat_tables(self._group, promote_options="permissive")
                pq.write_table(table, sink, compression="zstd")
                content = sink.getvalue()
                self._written_bytes += content.size - int.from_bytes(content[-8:-4], "little")
                self._written_rows += table.num_rows
                self._arrow_bytes += table.nbytes
        self._groups += 1
        self._group, self._group_rows, self._group_bytes = [], 0, 0
