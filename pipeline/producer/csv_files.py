"""CSV: read as Python's `csv` module reads it, in blocks, with the line of whatever is wrong.

The rules:

- Quotes follow RFC 4180 strictly; line breaks of every kind inside quotes belong to the cell.
- The first line that is not blank is the header, after Excel's `sep=;`, whose delimiter holds for
  the file. Blank lines are skipped everywhere. A first column without a name, as pandas and R write
  the index, is `Unnamed: 0`.
- An empty cell, quoted or not, is null. Every other spelling (`NA`, `null`, `None`, blanks) is
  text, and NUL is a character like any other.
- With `escape`, that character makes the next one plain text, and an unquoted `N` after it is null.
- A row with too many or too few cells, an open quote, or a byte that the encoding does not know
  is an error with its line; nothing is repaired or dropped.
- Encoding `auto` is UTF-8 unless a byte order mark says UTF-16 or UTF-32. The mark is never part
  of the first column's name.
- `.gz` and `.zst` are decompressed while reading; a file that ends early is an error.
- A file without a byte has no rows, beside others; a row of more than ROW_BYTES is an error.

pyarrow's own CSV reader is not used: it loses bytes where a quoted CRLF meets a block border
(apache/arrow#51368) and settles types on the first block.

Importing this module raises `csv.field_size_limit`, which holds for the whole process, to
CELL_LIMIT_CHARACTERS.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import itertools
import re
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InputError, SettingsError
from pipeline.producer import files
from pipeline.producer.csv_types import ColumnTypes, to_batch
from pipeline.producer.input_table import InputFile
from pipeline.producer.text_bytes import (
    READ_BYTES,
    RowTooLong,
    Tap,
    encoding_of,
    open_bytes,
    reading,
    too_long,
)
from pipeline.system.arrays import strings
from pipeline.system.threads import stop_point
from pipeline.wording import counted, setting, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.producer.files import SourceFile
    from pipeline.producer.footprint import Footprint
    from pipeline.producer.input_table import CsvFormat

# At most four bytes a character keep a block's column below the 2 GiB of an Arrow string array.
CELL_LIMIT_CHARACTERS = 2**28
csv.field_size_limit(CELL_LIMIT_CHARACTERS)

# Large enough that the work for each block does not show, small against a chunk.
BLOCK_ROWS = 4096
BLOCK_BYTES = 4 << 20

_SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_UNNAMED = "Unnamed: 0"

# Puts a character that no text has in the place of bytes that do not decode.
_MARK, _MARKING = "\udcff", "pipeline.producer.csv_files"
codecs.register_error(_MARKING, lambda error: (_MARK, error.end))  # type: ignore[attr-defined]


def check_format(csv_format: CsvFormat) -> None:
    """Raise SettingsError for a delimiter or an encoding that cannot be one."""
    delimiter, encoding = csv_format.delimiter, csv_format.encoding
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise SettingsError(
            f"{setting('delimiter')}: {delimiter!r} cannot separate cells.",
            "It must be one character, and neither a quote, a line break nor NUL; in a shell, "
            "write a tab as $'\\t'.",
        )
    if csv_format.escape is not None and csv_format.escape in f'"\r\n\0{delimiter}':
        raise SettingsError(
            f"{setting('csv_escape')}: {csv_format.escape!r} cannot escape characters.",
            "It must be neither the delimiter, a quote, a line break nor NUL. A quote in a quoted "
            "cell that is doubled needs no setting.",
        )
    if encoding == "auto":
        return
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except (LookupError, ValueError) as error:
        raise SettingsError(
            f"{setting('encoding')}: {encoding!r} is not a text encoding that Python knows.",
            "Use auto, or a codec name such as utf-8, utf-16, cp1252 or shift_jis.",
        ) from error


def settle_files(
    sources: Sequence[SourceFile], footprint: Footprint, csv_format: CsvFormat
) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Read every file once, and return the schema that holds over all rows of all files.

    Raises InputError for the first thing that is wrong with any of them.
    """
    header: list[str] = []
    types = ColumnTypes(0)
    settled = []
    first = sources[0]
    for source in sources:
        signature = source.signature()
        digest = hashlib.sha256()
        rows = 0
        with source.unchanged(signature), _open_cells(source, csv_format, digest) as cells:
            if cells.header and not header:
                header = cells.header
                text = [i for i, name in enumerate(header) if name in csv_format.text_columns]
                types = ColumnTypes(len(header), text)
                first = source
            if cells.header:
                files.check_same_columns(source, cells.header, first, header)
            for block in cells.blocks():
                rows += len(block)
                _check_unicode(itertools.chain.from_iterable(block))
                types.observe(block)
                footprint.observe(len(block), partial(_as_text, block))
        settled.append(
            InputFile(
                source.path,
                rows,
                sha256=digest.hexdigest(),
                **signature._asdict(),
                keys=source.keys,
            )
        )
    if not header:
        raise _no_header(first)
    return pa.schema(list(zip(header, types.types(), strict=True))), tuple(settled)


def _as_text(block: list[list[str]]) -> pa.Table:
    columns = list(map(strings, zip(*block, strict=True)))
    return pa.Table.from_arrays(columns, list(map(str, range(len(columns)))))


def read_batches(
    source: SourceFile, schema: pa.Schema, start_row: int, csv_format: CsvFormat
) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one file from `start_row` on, as batches of at most BLOCK_ROWS.

    Raises InputError if the file does not read as it did when the schema was settled.
    """
    with _open_cells(source, csv_format) as cells:
        if cells.header != schema.names:
            raise files.changed(source)
        for block in cells.blocks():
            rows = block[start_row:]
            start_row = max(0, start_row - len(block))
            if rows:
                try:
                    batch = to_batch(rows, schema)
                except pa.ArrowInvalid as error:
                    raise files.changed(source) from error
                yield batch


def read_schema(source: SourceFile, csv_format: CsvFormat) -> pa.Schema:
    """Read the header alone: every column is text, as far as that tells. Raises InputError."""
    with _open_cells(source, csv_format) as cells:
        return pa.schema([(name, pa.string()) for name in cells.header])


class _Cells:
    """The records of one open file: its header, then blocks of rows of equal length."""

    def __init__(
        self, source: SourceFile, text: io.TextIOWrapper, tap: Tap, csv_format: CsvFormat
    ) -> None:
        self._source = source
        self._tap = tap
        self._lines_before = 0
        delimiter, escape = csv_format.delimiter, csv_format.escape
        first = text.readline().removeprefix("\ufeff")
        if separator := _SEPARATOR.fullmatch(first):
            delimiter, first, self._lines_before = separator[1], text.readline(), 1
        lines: Iterator[str] = itertools.chain([first], text)
        if escape is not None:
            lines = _without_null_marks(lines, delimiter, escape)
        self._reader = csv.reader(lines, delimiter=delimiter, escapechar=escape, strict=True)
        # Also a compressed file may hold nothing.
        self.header = self._read_header() if first else []

    @property
    def line(self) -> int:
        """The line that was read last."""
        return self._lines_before + self._reader.line_num

    def blocks(self) -> Iterator[list[list[str]]]:
        """Yield the rows after the header, at most BLOCK_ROWS and about BLOCK_BYTES at a time."""
        columns = len(self.header)
        while columns:
            stop_point()
            first_line = self.line + 1
            block = self._take(BLOCK_ROWS)
            if not block:
                return
            lengths = set(map(len, block))
            if lengths != {columns}:
                if not lengths <= {0, columns}:
                    raise self._ragged(block, first_line)
                block = [row for row in block if row]
            if block:
                yield block

    def _take(self, rows: int) -> list[list[str]]:
        block: list[list[str]] = []
        first_line = self.line + 1
        tap = self._tap
        full_at = tap.position + BLOCK_BYTES
        try:
            for row in self._reader:
                block.append(row)
                tap.row_begins = tap.position
                if len(block) >= rows or tap.position >= full_at:
                    break
        except (csv.Error, RowTooLong) as error:
            line = first_line + sum(map(_lines, block))
            if isinstance(error, RowTooLong):
                raise _too_long(self._source, line) from error
            raise self._malformed(error, line) from error
        return block

    def _read_header(self) -> list[str]:
        header: list[str] = []
        while not header and (block := self._take(1)):
            header = block[0]
        if not header:
            raise _no_header(self._source)
        _check_unicode(header)
        if len(header) > 1 and not header[0].strip() and _UNNAMED not in header:
            header[0] = _UNNAMED
        seen: set[str] = set()
        for position, name in enumerate(header, start=1):
            if not name.strip():
                raise InputError(
                    f"{self._source}: column {position} of {len(header)} has no name.",
                    "Name every column in the header.",
                )
            if name in seen:
                raise InputError(
                    f"{self._source}: two columns are named {short(name)!r}.",
                    "Rename one in the header.",
                )
            seen.add(name)
        return header

    def _ragged(self, block: list[list[str]], first_line: int) -> InputError:
        columns = len(self.header)
        at = next(i for i, row in enumerate(block) if len(row) not in (0, columns))
        line = first_line + sum(map(_lines, block[:at]))
        cells = len(block[at])
        return InputError(
            f"{self._source} line {line}: {counted(cells, 'cell')}, but the header "
            f"names {columns}.",
            "Quote cells that hold the delimiter or a line break, or set "
            f"{setting('delimiter')} to the one that the file uses.",
        )

    def _malformed(self, error: csv.Error, record_line: int) -> InputError:
        if "unexpected end of data" in str(error):
            return InputError(
                f"{self._source} line {record_line}: a quote that opens in this record is never "
                "closed.",
                "Close it, or double a quote that belongs to the text.",
            )
        line = self.line
        since = "" if line == record_line else f" (the record begins at line {record_line})"
        return InputError(
            f"{self._source} line {line}{since}: {error}.",
            "A quote inside a quoted cell must be doubled.",
        )


def _check_unicode(cells: Iterable[str]) -> None:
    """Raise UnicodeEncodeError for lone surrogates, which some codecs yield and Arrow refuses."""
    "".join(cells).encode()


def _lines(row: list[str]) -> int:
    """Count the lines that a record takes in the file."""
    return 1 + sum(
        cell.count("\n") + cell.count("\r") - cell.count("\r\n")
        for cell in row
        if "\n" in cell or "\r" in cell
    )


def _without_null_marks(lines: Iterable[str], delimiter: str, escape: str) -> Iterator[str]:
    r"""Empty the cells that are `\N` and not quoted, as MySQL writes null."""
    between, escaped = re.escape(delimiter), re.escape(escape)
    token = re.compile(
        rf'(?P<null>(?:^|(?<={between})){escaped}N(?=[{between}\r\n]|$))|{escaped}.|"', re.DOTALL
    )
    quoted = False

    def emptied(found: re.Match[str]) -> str:
        nonlocal quoted
        quoted ^= found[0] == '"'
        return "" if found["null"] and not quoted else found[0]

    for line in lines:
        yield token.sub(emptied, line)


@contextmanager
def _open_cells(source: SourceFile, csv_format: CsvFormat, digest: Any = None) -> Iterator[_Cells]:
    """Open a file for reading cells; what goes wrong underneath becomes an InputError."""
    encoding = csv_format.encoding
    try:
        with reading(source), ExitStack() as stack:
            encoding = encoding_of(source, encoding)
            tap = open_bytes(source, stack, digest)
            buffered = io.BufferedReader(tap, READ_BYTES)
            text = stack.enter_context(io.TextIOWrapper(buffered, encoding, newline=""))
            yield _Cells(source, text, tap, csv_format)
    except RowTooLong as error:
        raise _too_long(source, 1) from error
    except UnicodeEncodeError as error:
        raise InputError(
            f"{source} holds characters that are not Unicode text (lone surrogates) when it is "
            f"read as {encoding}.",
            f"Set {setting('encoding')} to the one that the file is written in.",
        ) from error
    except UnicodeError as error:
        raise _undecodable(source, encoding, error) from error


def _too_long(source: SourceFile, line: int) -> InputError:
    return too_long(source, line, "Shorten it, or close a quote that is left open.")


def _no_header(source: SourceFile) -> InputError:
    return InputError(
        f"{source} has no header: it holds nothing but blank lines.",
        "Its first line must name the columns.",
    )


def _undecodable(source: SourceFile, encoding: str, error: UnicodeError) -> InputError:
    what = ""
    if isinstance(error, UnicodeDecodeError) and error.start < len(error.object):
        what = f" (byte 0x{error.object[error.start]:02x}: {error.reason})"
    return InputError(
        f"{source} line {_bad_line(source, encoding)}: not valid {encoding}{what}.",
        f"Set {setting('encoding')} to the one that the file is written in, such as cp1252 or "
        "utf-16.",
    )


def _bad_line(source: SourceFile, encoding: str) -> int:
    """Decode the file again, and return the line of the first byte that does not decode."""
    line = 0
    # Some codecs refuse whatever the handler says.
    with ExitStack() as stack, suppress(UnicodeError, RowTooLong):
        tap = open_bytes(source, stack)
        buffered = io.BufferedReader(tap, READ_BYTES)
        for text in io.TextIOWrapper(buffered, encoding, _MARKING, newline=""):
            tap.row_begins = tap.position
            if _MARK in text:
                break
            line += 1
    return line + 1
