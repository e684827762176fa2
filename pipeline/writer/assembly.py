"""Assembly: the committed parts become the output, which appears by one rename.

The rows are cut anew into row groups of a fixed size, so the bytes of the output depend on its
rows and never on where an interruption happened to end a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.failpoints import failpoint
from pipeline.threads import stop_point
from pipeline.writer.parts import COMPRESSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 << 20
FILE_ROWS = 1_048_576


def assemble(
    parts: Sequence[Path],
    schema: Any,
    output: Path,
    *,
    rows: int,
    as_file: bool,
    scratch: Path,
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Write the rows of `parts`, in order, to `output`: a file, or a directory of files.

    `schema` carries the metadata of the output, `rows` is how many rows it must have. `scratch`
    is a path on the same filesystem that may be overwritten; `before_rename` is called when the
    output lies there whole. Raises StoppedEarly if the disk refuses.
    """
    with storage.writing(output):
        storage.remove(scratch)
        failpoint("assembly.begun")
        groups = _row_groups(parts, schema)
        if as_file:
            written = _write_file(scratch, schema, groups, most_rows=None)
        else:
            scratch.mkdir()
            written = _write_files(scratch, schema, groups)
        # Nothing may be lost silently: a bug here must not reach the output.
        assert written == rows, f"{written} rows assembled, {rows} expected"
        failpoint("assembly.written")
        before_rename()
        if as_file:
            storage.commit(scratch, output, "output")
        else:
            storage.commit_directory(scratch, output)


def _write_files(directory: Path, schema: Any, groups: Iterator[Any]) -> int:
    """Write row groups to files of FILE_ROWS rows, at least one; gives how many rows."""
    total = number = 0
    while True:
        file = directory / f"part-{number:05d}.parquet"
        rows = _write_file(file, schema, groups, most_rows=FILE_ROWS)
        if not rows and number:
            storage.remove(file)
            return total
        total += rows
        number += 1


def _write_file(file: Path, schema: Any, groups: Iterator[Any], *, most_rows: int | None) -> int:
    """Write row groups to one file until it holds `most_rows` or they end; gives how many rows.

    Leaving by an exception writes a footer, which makes a truncated file look whole; that is
    harmless only because this is a scratch file, which is never renamed then.
    """
    rows = 0
    with pq.ParquetWriter(file, schema, compression=COMPRESSION) as writer:
        while most_rows is None or rows < most_rows:
            group = next(groups, None)
            if group is None:
                break
            writer.write_table(group, row_group_size=group.num_rows)
            rows += group.num_rows
            failpoint("assembly.row group")
    return rows


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
        stop_point()
        table = pq.read_table(part, schema=schema, partitioning=None, pre_buffer=False)
        if rest is not None and rest.num_rows:
            table = pa.concat_tables([rest, table])
        whole = table.num_rows - table.num_rows % step
        for start in range(0, whole, step):
            yield table.slice(start, step)
        rest = table.slice(whole)
    if rest is not None and rest.num_rows:
        yield rest
