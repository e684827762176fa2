"""Sources: what the input is, and its rows as chunks from any row on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import InputError, SettingsError
from pipeline.producer import csv_files, files, folders
from pipeline.producer.chunks import Chunk, rechunk
from pipeline.producer.columnar import check_columns
from pipeline.producer.files import SourceFile
from pipeline.producer.footprint import Footprint
from pipeline.producer.input_table import CsvFormat, InputFile, InputTable
from pipeline.producer.readers import reader_of
from pipeline.producer.storable import check_storable
from pipeline.wording import counted, reason, setting

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Sequence
    from pathlib import Path

# To read on over so many rows is cheaper than to seek.
SEEK_ROWS = 1 << 20


class Source(ABC):
    """Rows of a settled input, which `input` describes. Reading blocks, so call it in a thread."""

    input: InputTable

    def chunks(
        self,
        start_row: int,
        end_row: int | None = None,
        *,
        max_rows: int,
        max_bytes: int,
        counted: Sequence[str] | None = None,
        borders: Sequence[int] = (),
    ) -> Generator[Chunk, None, None]:
        """Stream the rows from `start_row` to before `end_row`; see `rechunk` for how they are cut.

        Every table has exactly the schema of the input; without `end_row` the last row is that
        before its `rows`. Raises InputError if the input cannot be read or is no longer what was
        settled. `close()` on what is returned closes the open file.
        """
        end_row = self.input.rows if end_row is None else end_row
        if not 0 <= start_row <= end_row <= self.input.rows:
            raise ValueError(
                f"start_row ({start_row}) and end_row ({end_row}) must be between 0 and "
                f"{self.input.rows}"
            )
        return rechunk(
            self._batches(start_row, end_row),
            self.input.schema,
            first_row=start_row,
            max_rows=max_rows,
            max_bytes=max_bytes,
            counted=counted,
            borders=borders,
        )

    def chunks_of(
        self, ranges: Sequence[range], *, max_rows: int, max_bytes: int, counted: Sequence[str]
    ) -> Generator[Chunk, None, None]:
        """Stream the chunks of ranges of rows, in their order; none goes over an end of a range.

        Rows between two of them are read and dropped if they are few: to seek reads a CSV file from
        its beginning, and a Parquet file from that of a row group.
        """
        for near in _near(ranges):
            open_rows = iter(near)
            wanted = next(open_rows)
            chunks = self.chunks(
                wanted.start,
                near[-1].stop,
                max_rows=max_rows,
                max_bytes=max_bytes,
                counted=counted,
                borders=[border for each in near for border in (each.start, each.stop)],
            )
            with closing(chunks):
                for chunk in chunks:
                    if chunk.first_row >= wanted.stop:
                        wanted = next(open_rows)
                    if chunk.first_row >= wanted.start:
                        yield chunk
                    del chunk  # or it is held while the next one is read

    def begins_with(self, earlier: InputTable) -> bool:
        """Return True if this is the input that was settled earlier, or all of what that had."""
        return not self.input.differences(earlier)

    @abstractmethod
    def _batches(self, start_row: int, end_row: int) -> Iterable[pa.RecordBatch]:
        """Read the rows from `start_row` to before `end_row`, in batches of any size."""


def _near(ranges: Sequence[range]) -> list[list[range]]:
    """Put ranges together that have at most SEEK_ROWS rows between them."""
    groups: list[list[range]] = []
    for each in ranges:
        if groups and each.start - groups[-1][-1].stop <= SEEK_ROWS:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def open_source(
    inputs: Sequence[str],
    *,
    text_columns: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str = "auto",
    escape: str | None = None,
    limit: int | None = None,
    earlier: InputTable | None = None,
    output: Path | None = None,
) -> FileSource:
    """Find the files that `inputs` name, and settle what they are by reading all of them once.

    `text_columns` of CSV files stay text. Without a `delimiter` it is a comma, or a tab in .tsv.
    `limit` takes the first rows only; types and checksums are still those of the whole input.
    `earlier`, the input of an interrupted run, is taken over without reading if the file system
    says that every file is still the same; otherwise the caller compares the two. Directories and
    globs pass over `output`, which may lie there.

    Raises InputError for files that are not one table, SettingsError for an impossible
    `delimiter`, `encoding`, `escape` or `limit`.
    """
    if limit is not None and limit < 1:
        raise SettingsError(
            f"{setting('limit')}: {limit} takes no rows.", "It must be at least 1, or be left out."
        )
    csv_format = CsvFormat(
        "," if delimiter is None else delimiter, encoding, tuple(text_columns), escape
    )
    csv_files.check_format(csv_format)
    sources = files.find_files(inputs, output=output)
    csv_format = _separated(csv_format, sources, delimiter)
    known = None if earlier is None else _still_valid(earlier, sources, csv_format)
    settled = known or _settle(sources, csv_format)
    return FileSource(replace(settled, rows=_limited(settled.files, limit)))


def first_rows(
    inputs: Sequence[str],
    *,
    max_rows: int,
    max_bytes: int,
    delimiter: str | None = None,
    encoding: str = "auto",
    escape: str | None = None,
    output: Path | None = None,
) -> pa.Table:
    """Read the first rows of an input and nothing after them, so what is wrong there stays unseen.

    Of a CSV all columns are text. Raises as `open_source` does.
    """
    csv_format = CsvFormat("," if delimiter is None else delimiter, encoding, escape=escape)
    csv_files.check_format(csv_format)
    sources = files.find_files(inputs, output=output)
    csv_format = _separated(csv_format, sources, delimiter)
    reader = reader_of(sources[0].path, csv_format)
    tables: list[pa.Table] = []
    rows = size_bytes = 0
    for source in sources:
        schema = reader.schema(source)
        if not schema.names:  # a CSV file without a byte
            continue
        if tables and not files.may_lack_columns(source.path):
            files.check_same_columns(source, schema.names, sources[0], tables[0].column_names)
        chunks = rechunk(
            reader.batches(source, schema, 0),
            schema,
            first_row=0,
            max_rows=max_rows - rows,
            max_bytes=max(1, max_bytes - size_bytes),
        )
        with closing(chunks):
            chunk = next(chunks, None)
            tables.append(schema.empty_table() if chunk is None else chunk.table)
            rows += 0 if chunk is None else chunk.table.num_rows
            size_bytes += 0 if chunk is None else chunk.size_bytes
            # A chunk that is full of bytes may not be the whole file.
            if rows >= max_rows or size_bytes >= max_bytes or next(chunks, None) is not None:
                break
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"The files of the input have columns of different types ({reason(error)}).",
            "Convert them to the same types.",
        ) from error


def _separated(
    csv_format: CsvFormat, sources: Sequence[SourceFile], delimiter: str | None
) -> CsvFormat:
    """Return the format with the delimiter that is given, or else that of the names.

    Raises InputError if the names say different ones.
    """
    if delimiter is not None:
        return csv_format
    first = sources[0].path
    found = files.delimiter_of(first)
    other = next((each.path for each in sources if files.delimiter_of(each.path) != found), None)
    if other is not None:
        raise InputError(
            f"The input mixes commas and tabs: {first} and {other}.",
            f"Run each kind by itself, or give {setting('delimiter')} for all of them.",
        )
    return replace(csv_format, delimiter=found)


def _settle(sources: list[SourceFile], csv_format: CsvFormat) -> InputTable:
    first = sources[0].path
    footprint = Footprint()
    schema, settled = reader_of(first, csv_format).settle(sources, footprint)
    schema = pa.schema(
        [*schema, *folders.key_fields([source.keys for source in sources])], schema.metadata
    )
    check_columns(first, schema)
    check_storable(first, schema)
    return InputTable(
        schema,
        _limited(settled, None),
        settled,
        csv_format if files.is_csv(first) else None,
        *footprint.sizes(),
    )


def _still_valid(
    earlier: InputTable, sources: list[SourceFile], csv_format: CsvFormat
) -> InputTable | None:
    """Return the earlier input with today's paths, if no file was written to since."""
    if earlier.csv_format != (csv_format if files.is_csv(sources[0].path) else None):
        return None
    now = [(source.signature(), source.keys) for source in sources]
    if now != [(file.signature, file.keys) for file in earlier.files]:
        return None
    moved = zip(earlier.files, sources, strict=True)
    return replace(earlier, files=tuple(replace(file, path=source.path) for file, source in moved))


def _limited(settled: Iterable[InputFile], limit: int | None) -> int:
    rows = sum(file.rows for file in settled)
    return rows if limit is None else min(rows, limit)


class FileSource(Source):
    """The rows of files, one after the other."""

    def __init__(self, settled: InputTable) -> None:
        self.input = settled

    def accept_links(self) -> None:
        """Take over when the names of the files changed last, as a hard link that is deleted does.

        Their content is still what was settled: size, time and inode are compared as before.
        """
        files = [
            replace(file, ctime_ns=SourceFile(file.path).signature().ctime_ns)
            for file in self.input.files
        ]
        self.input = replace(self.input, files=tuple(files))

    def _batches(self, start_row: int, end_row: int) -> Iterator[pa.RecordBatch]:
        batches = self._whole_batches(start_row)
        # Reading goes on to the end of the last file, which is checked there, if it is wanted.
        if end_row == sum(file.rows for file in self.input.files):
            return batches
        return _at_most(batches, end_row - start_row)

    def _whole_batches(self, start_row: int) -> Iterator[pa.RecordBatch]:
        for file in self.input.files:
            source = SourceFile(file.path, known=file.signature)
            source.check_between(file.signature)
            if start_row >= file.rows:
                start_row -= file.rows
                continue
            rows = start_row
            with source.unchanged(file.signature):
                for batch in self._read(source, file.keys, start_row):
                    rows += batch.num_rows
                    source.check_between(file.signature)
                    if rows > file.rows:
                        break
                    yield batch
            if rows != file.rows:
                raise InputError(
                    f"{file.path} does not hold the {counted(file.rows, 'row')} planned. Its "
                    "footer is wrong, or it changed: write the file again, then run again."
                )
            start_row = 0

    def _read(
        self, source: SourceFile, keys: folders.Keys, start_row: int
    ) -> Iterator[pa.RecordBatch]:
        schema, csv_format = self.input.schema, self.input.csv_format
        own = pa.schema(list(schema)[: len(schema) - len(keys)], schema.metadata)
        batches = reader_of(source.path, csv_format or CsvFormat()).batches(source, own, start_row)
        return (folders.with_keys(batch, keys, schema) for batch in batches)


def _at_most(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    if rows == 0:
        return
    for batch in batches:
        yield batch.slice(0, rows)
        rows -= min(rows, batch.num_rows)
        if rows == 0:
            return
