"""The lease where the file system has no locks: its owner beats, and whoever wants it watches.

The file of the lease then also tells its `owner`, a nonce, and a `beat`, a number that the owner
raises every BEAT_S. Somebody else takes the lease once the file has stayed as it is for WATCH_S, by
the watcher's own clock; no clocks are compared. That decides only who may try: an owner that was
frozen for longer, and writes once more, is fenced by the log.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from pathlib import Path

BEAT_S = 5.0
WATCH_S = 30.0

_LOOKS_PER_BEAT = 10
# One write within a block replaces all of what was there.
FILE_BYTES = 500


def write(descriptor: int, facts: dict[str, Any]) -> None:
    """Replace the content of a lease's file. Raises OSError."""
    os.pwrite(descriptor, json.dumps(facts).encode().ljust(FILE_BYTES), 0)
    os.fsync(descriptor)


def stays(path: Path, content: bytes, seconds: float) -> bool:
    """Watch the file of a lease. Return False as soon as its content is another one.

    Raises OSError, and what ends this at a `stop_point`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stop_point()
        time.sleep(min(BEAT_S, seconds) / _LOOKS_PER_BEAT)
        # Opened again each time: over a network that is what asks for the newest content.
        if path.read_bytes() != content:
            return False
    return True


def is_owned(content: bytes) -> bool:
    """Return True if the file of a lease names an owner that beats, or did until it was killed."""
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        return isinstance(found, dict) and found.get("owner") is not None
    return False


class Beat:
    """The beat of one owner; `facts` is what the file tells beside it."""

    def __init__(self, path: Path, descriptor: int, facts: dict[str, Any]) -> None:
        self._path = path
        self._descriptor = descriptor
        self._facts = {**facts, "owner": secrets.token_hex(8)}
        self._number = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="lease-beat", daemon=True)

    def begin(self) -> bool:
        """Take a lease that nobody holds. Return False if somebody else took it at the same time.

        Raises OSError.
        """
        self._write()
        content = self._path.read_bytes()
        # Of two that take it at once, the one that writes last has it.
        if not self._is_own(content) or not stays(self._path, content, BEAT_S):
            return False
        self._thread.start()
        return True

    def end(self) -> None:
        """Beat no more, and say that nobody holds the lease."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if self._is_own(self._path.read_bytes()):
                write(self._descriptor, {**self._facts, "owner": None})

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):  # the log tells of a disk that is gone
                if not self._is_own(self._path.read_bytes()):
                    return
                self._write()

    def _write(self) -> None:
        self._number += 1
        write(self._descriptor, {**self._facts, "beat": self._number})

    def _is_own(self, content: bytes) -> bool:
        return str(self._facts["owner"]).encode() in content
