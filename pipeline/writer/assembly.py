"""Assembly: the committed parts become the output, which appears by one rename.

The rows are cut anew into row groups of a fixed size, so the bytes of the output depend on its
rows and never on where an interruption happened to end a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.writer.parts import COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 << 20
FILE_ROWS = 1_048_576


def assemble(
    parts: Sequence[Path], schema: Any, output: Path, *, as_file: bool, scratch: Path
) -> None:
    """Write the rows of `parts`, in order, to `output`: a file, or a directory of files.

    `schema` carries the metadata of the output. `scratch` is a path on the same filesystem that
    may be overwritten. Raises StoppedEarly if the disk refuses.
    """
    with storage.writing(output):
        storage.remove(scratch)
        groups = _row_groups(parts, schema)
        if as_file:
            _write_file(scratch, schema, groups, rows=None)
            storage.commit(scratch, output)
            return
        scratch.mkdir()
        pending = next(groups, None)
        number = 0
        while pending is not None or number == 0:
            file = scratch / f"part-{number:05d}.parquet"
            first = [] if pending is None else [pending]
            _write_file(file, schema, _chain(first, groups), rows=FILE_ROWS)
            pending = next(groups, None)
            number += 1
        storage.commit_directory(scratch, output)


def _chain(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from rest


def _write_file(file: Path, schema: Any, groups: Iterator[Any], *, rows: int | None) -> None:
    """Write row groups to one file until it holds `rows` rows or they end.

    An exception leaves the writer unclosed on purpose: closing it would write a footer and make
    a truncated file look whole. The file is a scratch one that is never renamed then.
    """
    with file.open("wb") as sink:
        writer = pq.ParquetWriter(sink, schema, compression=COMPRESSION)
        written = 0
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
            written += group.num_rows
            if rows is not None and written >= rows:
                break
        writer.close()


def _row_groups(parts: Sequence[Path], schema: Any) -> Iterator[Any]:
    """Cut the rows of all parts into row groups: ROW_GROUP_ROWS each, fewer where rows are big.

    The border is set by the rows alone: a group ends before the row whose bytes, in slices of
    1,024 rows, would take it over ROW_GROUP_BYTES.
    """
    step = 1_024
    pending: list[Any] = []
    rows = size_bytes = 0
    for piece in _steps(parts, schema, step):
        if rows and (rows + piece.num_rows > ROW_GROUP_ROWS or size_bytes > ROW_GROUP_BYTES):
            yield pa.concat_tables(pending)
            pending, rows, size_bytes = [], 0, 0
        pending.append(piece)
        rows += piece.num_rows
        size_bytes += piece.nbytes
    if pending:
        yield pa.concat_tables(pending)


def _steps(parts: Sequence[Path], schema: Any, step: int) -> Iterator[Any]:
    """Give the rows of all parts as tables of exactly `step` rows, the last one shorter."""
    rest: Any = None
    for part in parts:
        table = pq.read_table(part, schema=schema, partitioning=None, pre_buffer=False)
        if rest is not None and rest.num_rows:
            table = pa.concat_tables([rest, table])
        whole = table.num_rows - table.num_rows % step
        for start in range(0, whole, step):
            yield table.slice(start, step)
        rest = table.slice(whole)
    if rest is not None and rest.num_rows:
        yield rest
