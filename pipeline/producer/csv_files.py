"""CSV: read as Python's `csv` module reads it, in blocks, with the line of whatever is wrong.

The rules:

- Quotes follow RFC 4180 strictly; line breaks of every kind inside quotes belong to the cell.
- The first line that is not blank is the header. Blank lines are skipped everywhere.
- An empty cell, quoted or not, is null. Every other spelling (`NA`, `null`, `None`, blanks) is
  text, and NUL is a character like any other.
- A row with too many or too few cells, an open quote, or a byte that the encoding does not know
  is an error with its line; nothing is repaired or dropped.
- Encoding `auto` is UTF-8 unless a byte order mark says UTF-16 or UTF-32. The mark is never part
  of the first column's name.
- `.gz` and `.zst` are decompressed while reading; a file that ends early is an error.

pyarrow's own CSV reader is not used: it loses bytes where a quoted CRLF meets a block border
(apache/arrow#51368) and settles types on the first block.

Importing this module raises `csv.field_size_limit`, which holds for the whole process, to
CELL_LIMIT_CHARACTERS.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import zlib
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InputError, SettingsError
from pipeline.producer import files
from pipeline.producer.csv_types import ColumnTypes, to_batch
from pipeline.producer.input_table import InputFile
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.producer.files import SourceFile
    from pipeline.producer.input_table import CsvFormat

# At most four bytes a character keep a block's column below the 2 GiB of an Arrow string array.
CELL_LIMIT_CHARACTERS = 2**28
csv.field_size_limit(CELL_LIMIT_CHARACTERS)

# Large enough that the work for each block does not show, small against a chunk.
BLOCK_ROWS = 4096
BLOCK_BYTES = 4 << 20

_READ_BYTES = 256 << 10

# Puts a character that no text has in the place of bytes that do not decode.
_MARK, _MARKING = "\udcff", "pipeline.producer.csv_files"
codecs.register_error(_MARKING, lambda error: (_MARK, error.end))  # type: ignore[attr-defined]

_BOMS = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def check_format(csv_format: CsvFormat) -> None:
    """Raise SettingsError for a delimiter or an encoding that cannot be one."""
    delimiter, encoding = csv_format.delimiter, csv_format.encoding
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise SettingsError(
            f"{setting('delimiter')}: {delimiter!r} cannot separate cells.",
            "It must be one character, and neither a quote, a line break nor NUL; in a shell, "
            "write a tab as $'\\t'.",
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
    sources: Sequence[SourceFile], csv_format: CsvFormat
) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Read every file once, and return the schema that holds over all rows of all files.

    Raises InputError for the first thing that is wrong with any of them.
    """
    header: list[str] = []
    types = ColumnTypes(0)
    settled = []
    for source in sources:
        signature = source.signature()
        digest = hashlib.sha256()
        rows = 0
        with source.unchanged(signature), _open_cells(source, csv_format, digest) as cells:
            if not header:
                header = cells.header
                text = [i for i, name in enumerate(header) if name in csv_format.text_columns]
                types = ColumnTypes(len(header), text)
            files.check_same_columns(source, cells.header, sources[0], header)
            for block in cells.blocks():
                rows += len(block)
                _check_unicode(itertools.chain.from_iterable(block))
                types.observe(block)
        settled.append(
            InputFile(source.path, rows, sha256=digest.hexdigest(), **signature._asdict())
        )
    return pa.schema(list(zip(header, types.types(), strict=True))), tuple(settled)


def read_batches(
    source: SourceFile, csv_format: CsvFormat, schema: pa.Schema, start_row: int
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
        self, source: SourceFile, text: io.TextIOWrapper, tap: _Tap, delimiter: str
    ) -> None:
        self._source = source
        self._tap = tap
        first = text.readline().removeprefix("\ufeff")
        self._reader = csv.reader(itertools.chain([first], text), delimiter=delimiter, strict=True)
        self.header = self._read_header()

    def blocks(self) -> Iterator[list[list[str]]]:
        """Yield the rows after the header, at most BLOCK_ROWS and about BLOCK_BYTES at a time."""
        columns = len(self.header)
        while True:
            stop_point()
            first_line = self._reader.line_num + 1
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
        first_line = self._reader.line_num + 1
        tap = self._tap
        full_at = tap.position + BLOCK_BYTES
        try:
            for row in self._reader:
                block.append(row)
                if len(block) >= rows or tap.position >= full_at:
                    break
        except csv.Error as error:
            raise self._malformed(error, first_line + sum(map(_lines, block))) from error
        return block

    def _read_header(self) -> list[str]:
        header: list[str] = []
        while not header and (block := self._take(1)):
            header = block[0]
        if not header:
            raise InputError(
                f"{self._source} has no header: it holds nothing but blank lines.",
                "Its first line must name the columns.",
            )
        _check_unicode(header)
        for position, name in enumerate(header, start=1):
            if not name.strip():
                raise InputError(
                    f"{self._source}: column {position} of {len(header)} has no name.",
                    "Name every column in the header.",
                )
            if name in header[: position - 1]:
                raise InputError(
                    f"{self._source}: two columns are named {name!r}.", "Rename one in the header."
                )
        return header

    def _ragged(self, block: list[list[str]], first_line: int) -> InputError:
        columns = len(self.header)
        at = next(i for i, row in enumerate(block) if len(row) not in (0, columns))
        line = first_line + sum(map(_lines, block[:at]))
        cells = len(block[at])
        return InputError(
            f"{self._source} line {line}: {cells} cell{'' if cells == 1 else 's'}, but the header "
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
        line = self._reader.line_num
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


class _Tap(io.RawIOBase):
    """Passes bytes on, counting and optionally hashing them."""

    def __init__(self, source: Any, digest: Any = None) -> None:
        super().__init__()
        self._source = source
        self._digest = digest
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._source.readinto(buffer)
        self.position += count
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count


@contextmanager
def _open_cells(source: SourceFile, csv_format: CsvFormat, digest: Any = None) -> Iterator[_Cells]:
    """Open a file for reading cells; what goes wrong underneath becomes an InputError."""
    encoding = csv_format.encoding
    try:
        if encoding == "auto":
            encoding = _detect_encoding(source)
        with ExitStack() as stack:
            tap = _open_bytes(source, stack, digest)
            buffered = io.BufferedReader(tap, _READ_BYTES)
            text = stack.enter_context(io.TextIOWrapper(buffered, encoding, newline=""))
            yield _Cells(source, text, tap, csv_format.delimiter)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{source} holds characters that are not Unicode text (lone surrogates) when it is "
            f"read as {encoding}.",
            f"Set {setting('encoding')} to the one that the file is written in.",
        ) from error
    except UnicodeError as error:
        raise _undecodable(source, encoding, error) from error
    except (EOFError, zlib.error) as error:
        raise _not_decompressed(source, error) from error
    except OSError as error:
        # Decompressors report damage as an OSError of their own; the system's carry a number.
        if error.errno is None:
            raise _not_decompressed(source, error) from error
        raise files.unreadable(source.path, error) from error


def _open_bytes(source: SourceFile, stack: ExitStack, digest: Any = None) -> _Tap:
    """Open the decompressed bytes; `digest` sees the raw ones."""
    raw = _Tap(stack.enter_context(source.open()), digest)
    name = source.path.lower()
    if name.endswith(".gz"):
        buffered = io.BufferedReader(raw, _READ_BYTES)
        return _Tap(stack.enter_context(gzip.GzipFile(fileobj=buffered, mode="rb")))
    if name.endswith(".zst"):
        return _Tap(stack.enter_context(pa.CompressedInputStream(raw, "zstd")))
    return raw


def _detect_encoding(source: SourceFile) -> str:
    with ExitStack() as stack:
        start = io.BufferedReader(_open_bytes(source, stack)).read(4)
    return next((encoding for bom, encoding in _BOMS if start.startswith(bom)), "utf-8")


def _not_decompressed(source: SourceFile, error: Exception) -> InputError:
    return InputError(
        f"{source} cannot be decompressed: it is truncated or damaged ({error}).",
        "Copy or compress the file again.",
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
    with ExitStack() as stack, suppress(UnicodeError):
        buffered = io.BufferedReader(_open_bytes(source, stack), _READ_BYTES)
        for text in io.TextIOWrapper(buffered, encoding, _MARKING, newline=""):
            if _MARK in text:
                break
            line += 1
    return line + 1
