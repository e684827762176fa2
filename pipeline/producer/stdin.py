"""Standard input as a file of the input, which `-` names.

An input is read more than once, so what comes through a pipe is stored first, in a temporary file
without a name: however a process ends, nothing of it is left. A file that a shell redirects is
read as it lies.
"""

from __future__ import annotations

import os
import re
import select
import stat
import tempfile
import zlib
from contextlib import suppress

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.system.spool import Spool
from pipeline.system.threads import stop_point

NAME = "-"
_DESCRIPTOR = 0
_READ_BYTES = 1 << 20
_WAIT_S = 0.2
_START_BYTES = 1 << 16
_BOM = b"\xef\xbb\xbf"

# Where it is by now, under the name that its kind gives it.
_held: dict[str, Spool] = {}


def path() -> str:
    """Return the name under which standard input is read, such as `<stdin>.csv`.

    The first call stores it, and tells its kind by its first bytes. Raises InputError.
    """
    if not _held:
        spool = _stored()
        with spool.open() as file:
            _held[f"<stdin>{_suffix(file.read(_START_BYTES))}"] = spool
    return next(iter(_held))


def status(path: str) -> os.stat_result | None:
    """Return what `fstat` says, if this is the name of standard input."""
    return _held[path].status() if path in _held else None


def open_file(path: str) -> pa.NativeFile | None:
    """Open it for reading, if this is its name."""
    return _held[path].open() if path in _held else None


def _stored() -> Spool:
    """Return what standard input holds as a file."""
    if os.isatty(_DESCRIPTOR):
        raise InputError(
            "The input is -, and standard input is a terminal.",
            "Pipe a table into the command, or name a file.",
        )
    try:
        if stat.S_ISREG(os.fstat(_DESCRIPTOR).st_mode) and not os.lseek(_DESCRIPTOR, 0, 1):
            return Spool(os.dup(_DESCRIPTOR))
        spool = Spool()
        while piece := _next():
            spool.file.write(piece)
        spool.file.flush()
    except OSError as error:
        raise InputError(
            f"Standard input cannot be stored in {tempfile.gettempdir()}: {error.strerror}.",
            "Free some space there, or have TMPDIR name a directory with more.",
        ) from error
    return spool


def _next() -> bytes:
    """Wait for what comes next; empty at the end."""
    while not select.select([_DESCRIPTOR], [], [], _WAIT_S)[0]:
        stop_point()
    stop_point()
    return os.read(_DESCRIPTOR, _READ_BYTES)


def _suffix(start: bytes) -> str:
    """Return the suffix of a file that begins so."""
    packed = ""
    with suppress(zlib.error, OSError, pa.ArrowException):  # damage is told where it is read
        if start.startswith(b"\x1f\x8b"):
            packed = ".gz"
            start = zlib.decompressobj(31).decompress(start, _START_BYTES)
        elif start.startswith(b"\x28\xb5\x2f\xfd"):
            packed = ".zst"
            start = pa.CompressedInputStream(pa.BufferReader(start), "zstd").read(_READ_BYTES)
    if not packed and start.startswith(b"PAR1"):
        return ".parquet"
    if not packed and start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return ".arrow"
    if re.match(rb"\s*(\{|\[\s*\{)", start.removeprefix(_BOM)):
        return f".jsonl{packed}"
    line = start.partition(b"\n")[0]
    return f".tsv{packed}" if b"\t" in line and b"," not in line else f".csv{packed}"
