"""The bytes of text files: decompressed, counted, and refused where they are of another kind."""

from __future__ import annotations

import codecs
import gzip
import io
import math
import zlib
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.producer import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.producer.files import SourceFile

# The most that one row may take in the file, decompressed: it is held whole, several times over.
ROW_BYTES = 16 << 20
READ_BYTES = 256 << 10
_START_BYTES = 6

# What files hold that are no text, by their first bytes.
_MAGIC = (
    (b"\x1f\x8b", "compressed by gzip", "Name it {suffix}.gz, or decompress it."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Name it {suffix}.zst, or decompress it."),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "Unpack it, or export it as {kind}."),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "Export it as {kind}."),
    (b"BZh", "compressed by bzip2", "Decompress it."),
    (b"\xfd7zXZ", "compressed by xz", "Decompress it."),
    (b"PAR1", "Parquet", "Name it .parquet."),
    (b"ARROW1", "an Arrow file", "Name it .arrow."),
)

_BOMS = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class RowTooLong(Exception):
    """A row takes more than ROW_BYTES; the reader of rows knows its line."""


class Tap(io.RawIOBase):
    """Passes bytes on, counting and optionally hashing them.

    With `most_bytes`, raises RowTooLong where so many have passed since `row_begins`.
    """

    def __init__(self, source: Any, digest: Any = None, most_bytes: float = math.inf) -> None:
        super().__init__()
        self._source = source
        self._digest = digest
        self._most_bytes = most_bytes
        self.position = self.row_begins = 0

    def readable(self) -> bool:  # noqa: D102 - of RawIOBase
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: D102 - of RawIOBase
        count: int = self._source.readinto(buffer)
        self.position += count
        if self.position - self.row_begins > self._most_bytes:
            raise RowTooLong
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count


def open_bytes(source: SourceFile, stack: ExitStack, digest: Any = None) -> Tap:
    """Open the decompressed bytes; `digest` sees the raw ones. Raises OSError."""
    name = source.path.lower()
    packed = name.endswith((".gz", ".zst"))
    raw = Tap(stack.enter_context(source.open()), digest, math.inf if packed else ROW_BYTES)
    if name.endswith(".gz"):
        buffered = io.BufferedReader(raw, READ_BYTES)
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=buffered, mode="rb"))
        return Tap(unpacked, most_bytes=ROW_BYTES)
    if name.endswith(".zst"):
        unzstd = stack.enter_context(pa.CompressedInputStream(raw, "zstd"))
        return Tap(unzstd, most_bytes=ROW_BYTES)
    return raw


def first_bytes(source: SourceFile) -> bytes:
    """Return a few bytes that the decompressed file begins with.

    Raises InputError if they are of a file of another kind.
    """
    with ExitStack() as stack:
        start = io.BufferedReader(open_bytes(source, stack)).read(_START_BYTES)
    for magic, other, fix in _MAGIC:
        if start.startswith(magic):
            kind, suffix = files.kind_of(source.path), files.plain_suffix(source.path)
            raise InputError(f"{source} is {other}, not {kind}.", fix.format(**locals()))
    return start


def marked_encoding(start: bytes) -> str:
    """Return the encoding that the byte order mark tells, which is UTF-8 without one."""
    return next((name for bom, name in _BOMS if start.startswith(bom)), "utf-8")


def encoding_of(source: SourceFile, stated: str) -> str:
    """Return the encoding, which `auto` takes from the byte order mark.

    Raises InputError if the first bytes are of a file of another kind, UnicodeError if they are
    half of a mark.
    """
    start = first_bytes(source)
    if stated == "auto":
        return marked_encoding(start)
    if len(start) < _START_BYTES:
        # The whole file: read piecemeal, a torn mark would pass for nothing as utf-8-sig.
        start.decode(stated)
    return stated


@contextmanager
def reading(source: SourceFile) -> Iterator[None]:
    """Say of which file the bytes cannot be read, or not decompressed, as an InputError."""
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise _not_decompressed(source, error) from error
    except OSError as error:
        # Decompressors report damage as an OSError of their own; the system's carry a number.
        if error.errno is None:
            raise _not_decompressed(source, error) from error
        raise files.unreadable(source.path, error) from error


def too_long(source: SourceFile, line: int, fix: str) -> InputError:
    """Return the error for a row that takes more than ROW_BYTES."""
    return InputError(
        f"{source} line {line}: the row that begins here takes more than {ROW_BYTES >> 20} MiB.",
        fix,
    )


def _not_decompressed(source: SourceFile, error: Exception) -> InputError:
    return InputError(
        f"{source} cannot be decompressed: it is truncated or damaged ({error}).",
        "Copy or compress the file again.",
    )
