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
from pipeline.store import beat, disk
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

    @classmethod
    def parsed(cls, content: bytes) -> Holder | None:
        """Read it from the file of a lease; None if that tells of nobody."""
        try:
            found = json.loads(content)
            return cls(int(found["pid"]), str(found["host"]), float(found["since"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def __str__(self) -> str:
        if self.pid is None:
            return "its process is not known"
        return f"process {self.pid} on {self.host}"


def busy(place: object, holder: Holder, how: str = "") -> OutputBusy:
    """Return the error of an output that another run works on; `how`, if not by a lock."""
    return OutputBusy(
        f"{place}: another run holds this output ({holder}{how}).",
        "Wait for it, stop it, or choose another output.",
    )


class FlockLease:
    """The lease of a run directory: a lock on a file in it, which dies with its owner.

    It is the kernel's (flock): no name or clock of the machine matters, and a killed owner leaves
    no stale lock. The file's content tells who holds it, and marks the directory as one of a run.
    A file system without locks (some of NFS, Lustre and FUSE) is held by a beat: see `beat`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock"
        self._descriptor: int | None = None
        self._beat: beat.Beat | None = None
        self._dead: bytes | None = None  # what stayed as it was for as long as it was watched

    def acquire(self, *, create: bool) -> bool:
        if create:
            self._make_directory()
        elif not self._directory.exists():
            return False
        with writing(self._path):
            descriptor = disk.open_own(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take(descriptor)
            except BaseException:
                disk.close_own(descriptor)
                raise
        self._descriptor = descriptor
        return True

    def _take(self, descriptor: int) -> None:
        here = vars(Holder.here())
        try:
            locked = _locked(descriptor)
        except OSError as error:
            if error.errno not in disk.NO_LOCKS:
                raise
            taken = beat.Beat(self._path, descriptor, here)
            if self._beats() or not taken.begin():
                how = f"; the file system has no locks ({error.strerror}), so its beat was watched"
                raise busy(self._directory, self._told(), how) from None
            self._beat = taken
            return
        if not locked:
            raise busy(self._directory, self._told())
        with suppress(OSError):  # the lock holds on a full disk, too
            beat.write(descriptor, here)

    def release(self) -> None:
        if self._beat is not None:
            self._beat.end()
            self._beat = None
        if self._descriptor is not None:
            with suppress(OSError):  # a child that does not let go has a copy of it
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            disk.close_own(self._descriptor)
            self._descriptor = None

    def holder(self) -> Holder | None:
        # Nobody is kept from the lock: see `_LOCK_ATTEMPTS`. Without locks the file is watched for
        # a beat: for `beat.WATCH_S` if its owner was killed.
        with reading(self._path):
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                return None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._told()
            except OSError as error:
                if error.errno not in disk.NO_LOCKS:
                    raise
                return self._told() if self._beats() else None
            finally:
                os.close(descriptor)
        return None

    def _beats(self) -> bool:
        """Return True if an owner beats."""
        content = self._path.read_bytes()
        if not beat.is_owned(content) or content == self._dead:
            return False
        if not beat.stays(self._path, content, beat.WATCH_S):
            return True
        self._dead = content
        return False

    def _told(self) -> Holder:
        return Holder.parsed(self._path.read_bytes()) or Holder()

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
                disk.fsync_path(path.parent)


def _locked(descriptor: int) -> bool:
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_S)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
