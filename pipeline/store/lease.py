"""The lease on disk."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.errors import OutputError
from pipeline.store import disk
from pipeline.store.beat import BeatLease
from pipeline.store.holder import Holder, busy
from pipeline.store.objects import ignored, reading, writing
from pipeline.wording import setting

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.store.objects import OnLost

# `holder` has the lock for microseconds; whoever wants it then tries again.
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02
# One write within a block replaces all of what was there.
_FILE_BYTES = 500


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
        self._beat = BeatLease(disk.DiskObjects(directory))

    @property
    def is_lock(self) -> bool:
        """False while it is held by a beat."""
        return not self._beat.why

    def acquire(self, *, create: bool, on_lost: OnLost = ignored) -> bool:
        if create:
            self._make_directory()
        elif not self._directory.exists():
            return False
        with writing(self._path):
            descriptor = disk.open_own(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take(descriptor, on_lost)
            except BaseException:
                disk.close_own(descriptor)
                raise
        self._descriptor = descriptor
        return True

    def _take(self, descriptor: int, on_lost: OnLost) -> None:
        try:
            if not _locked(descriptor):
                raise busy(self._directory, self._told())
        except OSError as error:
            if error.errno not in disk.NO_LOCKS:
                raise
            self._beating(error).acquire(create=True, on_lost=on_lost)
        with suppress(OSError):  # the lock holds on a full disk, too
            here = json.dumps(vars(Holder.here())).encode()
            os.pwrite(descriptor, here.ljust(_FILE_BYTES), 0)
            os.fsync(descriptor)

    def is_held(self) -> bool:
        return self.is_lock or self._beat.is_held()

    def release(self) -> None:
        self._beat.release()
        if self._descriptor is not None:
            with suppress(OSError):  # a child that does not let go has a copy of it
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            disk.close_own(self._descriptor)
            self._descriptor = None

    def holder(self) -> Holder | None:
        # Nobody is kept from the lock: see `_LOCK_ATTEMPTS`.
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
                return self._beating(error).holder()
            finally:
                os.close(descriptor)
        return None

    def _beating(self, error: OSError) -> BeatLease:
        self._beat.why = (
            f"; the file system has no locks ({error.strerror}), so its beat was watched"
        )
        return self._beat

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
