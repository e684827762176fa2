"""A temporary file without a name, which is gone however the process ends."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from typing import Any

import pyarrow as pa


class Spool:
    """Bytes on disk: written once, then read by as many readers as there are, each by itself."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Begin an empty one, or take over a descriptor of a regular file. Raises OSError."""
        self.file: Any = (
            tempfile.TemporaryFile()  # noqa: SIM115 - see below
            if descriptor is None
            else os.fdopen(descriptor, "rb")
        )
        weakref.finalize(self, self.file.close)

    def status(self) -> os.stat_result:
        """Return what `fstat` says."""
        return os.fstat(self.file.fileno())

    def open(self) -> pa.NativeFile:
        """Open it for reading, once all is written."""
        return pa.PythonFile(_Reader(self), "r")


class _Reader(io.RawIOBase):
    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self._spool = spool
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}
        self._position = offset + (base[whence] if whence in base else self._spool.status().st_size)
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._spool.file.fileno(), [buffer], self._position)
        self._position += count
        return count
