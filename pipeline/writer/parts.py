"""Parts: a resolved chunk, or a few in a row, as one durable Parquet file in the run store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.store import PartRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.store import RunStore

COMPRESSION = "zstd"


def write_part(
    store: RunStore,
    table: pa.Table,
    *,
    first_row: int,
    errors: int,
    labels: Mapping[str, int],
    revision: str | None,
) -> PartRecord:
    """Write one part durably; it counts only once what this returns is recorded.

    Raises StoppedEarly if the storage refuses.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=COMPRESSION, row_group_size=table.num_rows)
    content = sink.getvalue()
    file, sha256 = store.put_part(first_row, content)
    return PartRecord(
        first_row=first_row,
        rows=table.num_rows,
        file=file,
        size_bytes=content.size,
        sha256=sha256,
        errors=errors,
        revision=revision,
        labels=dict(labels),
    )
