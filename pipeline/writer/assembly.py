"""Assembly: the committed parts become the draft of an output that is one file.

The rows are cut again, into row groups of a fixed size, so the bytes of the output depend on its
rows and never on where an interruption happened to end a part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store.forms import CSV, JSONL, form_of
from pipeline.store.objects import writing
from pipeline.system.failpoints import failpoint
from pipeline.system.sizes import row_bytes
from pipeline.system.threads import stop_point
from pipeline.writer.parts import COMPRESSION, read_part, whole
from pipeline.writer.text_tables import TextWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.store import ByteSource
    from pipeline.store.objects import Output


ROW_GROUP_ROWS = 65_536
ROW_GROUP_BYTES = 64 << 20


def assemble(parts: Sequence[ByteSource], schema: pa.Schema, output: Output, *, rows: int) -> None:
    """Write the rows of `parts`, in order, as the draft of `output`, which is one file.

    `schema` carries the metadata of the output, `rows` is how many rows it must have. Raises
    StoppedEarly if the storage refuses.
    """
    with writing(output.place):
        output.begin_draft()
        failpoint("assembly.begun")
        written = 0
        # Leaving by an exception writes a footer, which makes a truncated file look whole; that is
        # harmless only because this is a draft, which is never published then.
        with (
            output.open_draft() as file,
            _writer(file, schema, output.place) as writer,
        ):
            for group in _row_groups(parts, schema):
                writer.write_table(group, row_group_size=group.num_rows)
                written += group.num_rows
                del group  # or it is held while the next one is put together
                failpoint("assembly.row group")
        # Nothing may be lost silently: a bug here must not reach the output.
        assert written == rows, f"{written} rows assembled, {rows} expected"
        failpoint("assembly.written")


def _writer(file: pa.NativeFile, schema: pa.Schema, name: str) -> pq.ParquetWriter | TextWriter:
    if form_of(name) in (CSV, JSONL):
        return TextWriter(file, schema, name)
    return pq.ParquetWriter(file, schema, compression=COMPRESSION)


def _row_groups(parts: Sequence[ByteSource], schema: pa.Schema) -> Iterator[pa.Table]:
    """Cut the rows of all parts into row groups: ROW_GROUP_ROWS each, fewer if rows are big.

    The border is set by the rows alone: a group ends before the row that would take it over
    ROW_GROUP_BYTES, and a larger row is a group by itself. So no more than a group and a part are
    held, however large the cells are.
    """
    pending: list[pa.Table] = []
    rows = size_bytes = 0
    for part in parts:
        stop_point()
        table = read_part(part).cast(schema)
        ends = np.concatenate([[0], np.cumsum(row_bytes(table))])
        start = 0
        while start < table.num_rows:
            room_to = ends[start] + ROW_GROUP_BYTES - size_bytes
            stop = int(np.searchsorted(ends, room_to, side="right")) - 1
            stop = min(max(stop, start + (not pending)), start + ROW_GROUP_ROWS - rows)
            if stop > start:
                pending.append(table.slice(start, stop - start))
            rows += stop - start
            size_bytes += int(ends[stop] - ends[start])
            start = stop
            if start < table.num_rows or rows == ROW_GROUP_ROWS:
                pending = [whole(pending)]  # the pieces are not held while it is written
                yield pending.pop()
                rows = size_bytes = 0
        del table  # or it is held while the next part is read
    if pending:
        pending = [whole(pending)]
        yield pending.pop()
