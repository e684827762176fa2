"""The lease on disk."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import OutputBusy, OutputError
from pipeline.store.disk import fsync_path
from pipeline.store.objects import reading, writing
from pipeline.wording import setting

if TYPE_CHECKING:
    from pathlib import Path

# `holder` has the lock for microseconds; whoever wants it then tries again.
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as far as is known; `since` is in seconds since the epoch."""

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), round(time.time(), 3))

    def __str__(self) -> str:
        if self.pid is None:
            return "its process is not known"
        return f"process {self.pid} on {self.host}"


def busy(place: object, holder: Holder) -> OutputBusy:
    """Return the error of an output that another run works on."""
    return OutputBusy(
        f"{place}: another run holds this output ({holder}).",
        "Wait for it, stop it, or choose another output.",
    )


class FlockLease:
    """The lease of a run directory: a lock on a file in it, which dies with its owner.

    It is the kernel's (flock): no name or clock of the machine matters, and a killed owner leaves
    no stale lock. The file's content only tells who holds it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock"
        self._descriptor: int | None = None

    def acquire(self, *, create: bool) -> bool:
        if create:
            self._make_directory()
        elif not self._directory.exists():
            return False
        with writing(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _locked(descriptor):
            holder = _told(descriptor)
            os.close(descriptor)
            raise busy(self._directory, holder)
        self._descriptor = descriptor
        with suppress(OSError):  # the lock holds on a full disk, too
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(vars(Holder.here())).encode(), 0)
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> Holder | None:
        with reading(self._path):
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _told(descriptor)
            finally:
                os.close(descriptor)
        return None

    def _make_directory(self) -> None:
        root = self._directory
        missing = [path for path in root.parents if not path.exists()]
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{setting('output')}: cannot make {root}: {error.strerror}.",
                "Choose another place.",
            ) from None
        # Its name must outlast a power cut, or all that is durable in it is lost with it.
        with writing(root):
            for path in (root, *missing):
                fsync_path(path.parent)


def _locked(descriptor: int) -> bool:
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_S)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _told(descriptor: int) -> Holder:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        return Holder(int(found["pid"]), str(found["host"]), float(found["since"]))
    except (ValueError, TypeError, KeyError):
        return Holder()
