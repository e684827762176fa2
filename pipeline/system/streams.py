"""Standard input, output and error as a command finds them: closed, full, or read by nobody.

A run goes on in each of these cases, and its exit code stays the same.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STANDARD_ERROR = 2


class _Stream(io.FileIO):
    """A stream that passes over what cannot be written; `failed` is why, None if all was."""

    failed: OSError | None = None

    def write(self, content: ReadableBuffer) -> int:
        try:
            while (written := super().write(content)) is None:
                select.select([], [self], [])  # full, and opened so that a write does not wait
        except OSError as error:
            self.failed = error
            return memoryview(content).nbytes
        return written


def settle() -> None:
    """Open what is closed, and let no write to the other two fail.

    To be called before anything else is opened: a file or a socket under one of these numbers
    would be written to in their place, and libuv aborts when it closes one.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    for descriptor, name in enumerate(("stdout", "stderr"), start=1):
        before = getattr(sys, name)
        raw = _Stream(descriptor, "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(before, "encoding", "utf-8"),
            errors=getattr(before, "errors", "backslashreplace"),
            line_buffering=raw.isatty() or descriptor == _STANDARD_ERROR,
        )
        setattr(sys, name, text)


def lost() -> OSError | None:
    """Return why something of standard output was not written, None if nothing was lost.

    Whoever closes a pipe has read enough.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failed = raw.failed if isinstance(raw, _Stream) else None
    return None if failed is None or failed.errno == errno.EPIPE else failed
