"""Parts: a resolved chunk, or a few in a row, as one durable Parquet file in the run directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.store import disk as storage
from pipeline.system.failpoints import failpoint
from pipeline.writer.manifest import PartRecord

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pyarrow as pa

COMPRESSION = "zstd"


def write_part(
    directory: Path,
    table: pa.Table,
    *,
    first_row: int,
    errors: int,
    labels: Mapping[str, int],
    revision: str | None,
) -> PartRecord:
    """Write one part durably; it counts only once the manifest records what this returns.

    The name tells the first row, so a part that a kill left unrecorded is replaced by the one
    that takes its place. Raises StoppedEarly if the disk refuses.
    """
    final = directory / f"part-{first_row:012d}.parquet"
    temp = final.with_name(final.name + storage.TEMP_SUFFIX)
    with storage.writing(final):
        pq.write_table(table, temp, compression=COMPRESSION, row_group_size=table.num_rows)
        failpoint("part.written")
        size_bytes, sha256 = storage.measure(temp)
        failpoint("part.measured")
        storage.commit(temp, final, "part")
    return PartRecord(
        first_row=first_row,
        rows=table.num_rows,
        file=final.name,
        size_bytes=size_bytes,
        sha256=sha256,
        errors=errors,
        revision=revision,
        labels=dict(labels),
    )


def verified_parts(directory: Path, parts: list[PartRecord]) -> int:
    """Count the parts, from the first on, whose files are what the manifest says.

    Size and checksum catch a file that a power cut left short, empty or garbled.
    """
    for count, part in enumerate(parts):
        try:
            if storage.measure(directory / part.file) != (part.size_bytes, part.sha256):
                return count
        except OSError:
            return count
    return len(parts)


def identify(output: Path) -> list[list[Any]]:
    """Size in bytes and SHA-256 of a file, or of each visible file below a directory, by name.

    What is hidden (`.DS_Store`, `_SUCCESS`) is no part of the table. Raises OSError.
    """
    files = [output]
    if output.is_dir():
        files = [file for file in sorted(output.rglob("[!._]*")) if file.is_file()]
    return [list(storage.measure(file)) for file in files]
