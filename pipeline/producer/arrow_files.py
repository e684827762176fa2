"""Arrow IPC: files (`.arrow`, `.feather`, `.ipc`), or streams under the same names.

The datasets library of Hugging Face writes streams, and names them `.arrow`. A record batch is held
whole, as it was written: that bounds the memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.producer import files
from pipeline.producer.chunks import with_schema
from pipeline.producer.columnar import check_columns
from pipeline.system.threads import stop_point
from pipeline.wording import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.producer.files import SourceFile

BATCH_ROWS = 4096
_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"
_DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)


def read_schema(source: SourceFile) -> pa.Schema:
    """Read the schema of one file. Raises InputError."""
    with _open(source) as opened:
        schema = opened.schema
    check_columns(source.path, schema)
    return schema


def read_batches(source: SourceFile, schema: pa.Schema, start_row: int) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one file from `start_row` on.

    Raises InputError if the data is damaged, or if a value does not fit the type that `schema`
    gives its column.
    """
    with _open(source) as opened:
        for number, whole in enumerate(_record_batches(opened)):
            stop_point()
            if whole.num_rows <= start_row:
                start_row -= whole.num_rows
                continue
            try:
                # Offsets that point elsewhere would be followed.
                whole.validate(full=True)
            except (pa.ArrowInvalid, pa.ArrowIndexError) as error:
                raise _damaged(source, error, f", record batch {number}") from error
            chosen = whole.select(schema.names)
            for first in range(start_row, whole.num_rows, BATCH_ROWS):
                batch = chosen.slice(first, BATCH_ROWS)
                try:
                    fit = with_schema(batch, schema)
                except pa.ArrowException as error:
                    raise _unfit(source, batch, schema) or error from error
                yield fit
            start_row = 0


def _record_batches(opened: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(opened, pa.RecordBatchFileReader):
        return map(opened.get_batch, range(opened.num_record_batches))
    return iter(opened)


@contextmanager
def _open(source: SourceFile) -> Iterator[Any]:
    """Open one file; damage found while it is open becomes an InputError."""
    try:
        with source.open() as raw:
            start = raw.read(len(_FILE))
            raw.seek(0)
            if start.startswith(_FEATHER_1):
                raise InputError(
                    f"{source} is Feather of version 1, which is no Arrow file.",
                    "Write it again, as Feather of version 2 or as Parquet.",
                )
            open_ = pa.ipc.open_file if start == _FILE else pa.ipc.open_stream
            with open_(raw) as opened:
                yield opened
    except _DAMAGE as error:
        raise _damaged(source, error) from error


def _damaged(source: SourceFile, error: Exception, where: str = "") -> InputError:
    if isinstance(error, OSError) and error.errno is not None:
        return files.unreadable(source.path, error)
    return InputError(
        f"{source}{where} cannot be read as Arrow: it is truncated, damaged or of another kind "
        f"({reason(error)}).",
        "Copy or write the file again.",
    )


def _unfit(source: SourceFile, batch: pa.RecordBatch, schema: pa.Schema) -> InputError | None:
    """Return which column does not fit the type that it has together with other files."""
    for column, field in zip(batch.columns, schema, strict=True):
        try:
            column.cast(field.type)
        except pa.ArrowException as error:
            return InputError(
                f"{source}: column {field.name!r} ({column.type}) does not fit the {field.type} of "
                f"another file ({reason(error)}).",
                "Convert it to the same type in all files.",
            )
    return None
