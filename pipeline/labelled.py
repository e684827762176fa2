"""The files of an output, to be read as Parquet whatever they are.

An output that is text is read as an input would be, and its columns become a Parquet file without a
name, so that whoever looks at labels knows one kind of file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import OutputError
from pipeline.producer import open_source
from pipeline.store.forms import CSV, JSONL, form_of
from pipeline.store.objects import ByteSource
from pipeline.system.spool import Spool
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.objects import Output

_ROWS, _BYTES = 65_536, 64 << 20


def is_text(output: Output) -> bool:
    """Return True for an output that is CSV or JSON Lines."""
    return form_of(output.place) in (CSV, JSONL)


def open_parquet(file: pa.NativeFile) -> pq.ParquetFile:
    """Open a file of an output for reading.

    Without Arrow's reading ahead, and to be read with `use_threads=False`: both pass on to Arrow's
    own threads the buffers of a file that is a Python object. If one of them is still to be
    released when the interpreter ends, the process aborts (before Python 3.14), and its exit code
    is not that of the run.
    """
    return pq.ParquetFile(file, pre_buffer=False)


def check_retriable(output: Output) -> None:
    """Refuse an output whose rows cannot stay as they are. Raises OutputError."""
    if is_text(output):
        raise OutputError(
            f"{setting('retry_failed', 'True')}: {output.place} is {form_of(output.place)}, which "
            "does not keep all types and nulls, so its other rows could not stay as they are.",
            f"Label the input again with {setting('overwrite', 'True')}, to a .parquet file if its "
            f"failed rows are to be asked again; with {setting('cache')}, answers are kept.",
        )


def parquet_files(
    output: Output,
    columns: Sequence[str] | None = None,
    *,
    text: Sequence[str] = (),
    scores: Sequence[str] = (),
) -> list[ByteSource]:
    """Return the files of an output as Parquet; of text, these columns at least (all, if none).

    `text` are columns that are text whatever they hold, `scores` those of numbers. Raises OSError,
    or InputError for text that is damaged.
    """
    found = output.files()
    if not is_text(output):
        return found
    spool = Spool()
    kinds = dict.fromkeys(text, pa.string()) | dict.fromkeys(scores, pa.float64())
    if not found[0].size_bytes:  # JSON Lines without a row
        pq.write_table(
            pa.table({name: pa.nulls(0, kind) for name, kind in kinds.items()}), spool.file
        )
    else:
        source = open_source([output.place], text_columns=text if _is_csv(output) else ())
        kept = [
            field
            if pt.is_nested(field.type)
            else field.with_type(kinds.get(field.name, field.type))
            for field in source.input.schema
            if columns is None or field.name in columns
        ]
        schema = pa.schema(kept)
        with pq.ParquetWriter(spool.file, schema, compression="zstd") as writer:
            for chunk in source.chunks(0, max_rows=_ROWS, max_bytes=_BYTES):
                writer.write_table(chunk.table.select(schema.names).cast(schema))
    spool.file.flush()
    return [ByteSource(found[0].name, spool.status().st_size, spool.open)]


def _is_csv(output: Output) -> bool:
    return form_of(output.place) == CSV
