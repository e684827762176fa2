"""The bytes of CSV files: decompressed, counted, and refused where they are of another kind."""

from __future__ import annotations

import codecs
import gzip
import io
import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import InputError

if TYPE_CHECKING:
    from pipeline.producer.files import SourceFile

# The most that one row may take in the file, decompressed: it is held whole, several times over.
ROW_BYTES = 16 << 20
READ_BYTES = 256 << 10
_START_BYTES = 6

# What files hold that are no text, by their first bytes.
_MAGIC = (
    (b"\x1f\x8b", "compressed by gzip", "Name it .csv.gz, or decompress it."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Name it .csv.zst, or decompress it."),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "Unpack it, or export it as CSV."),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "Export it as CSV."),
    (b"BZh", "compressed by bzip2", "Decompress it."),
    (b"\xfd7zXZ", "compressed by xz", "Decompress it."),
    (b"PAR1", "Parquet", "Name it .parquet."),
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


def encoding_of(source: SourceFile, stated: str) -> str:
    """Return the encoding, which `auto` takes from the byte order mark.

    Raises InputError if the first bytes are of a file of another kind, UnicodeError if they are
    half of a mark.
    """
    with ExitStack() as stack:
        start = io.BufferedReader(open_bytes(source, stack)).read(_START_BYTES)
    for magic, kind, fix in _MAGIC:
        if start.startswith(magic):
            raise InputError(f"{source} is {kind}, not CSV.", fix)
    if stated == "auto":
        return next((name for bom, name in _BOMS if start.startswith(bom)), "utf-8")
    if len(start) < _START_BYTES:
        # The whole file: read piecemeal, a torn mark would pass for nothing as utf-8-sig.
        start.decode(stated)
    return stated
