"""The one door to files: durable, atomic commits on a local disk.

The order of a commit is temp file, close, fsync, rename, fsync of the directory. Without the
first fsync a rename can leave an empty file after a power cut; without the second the rename
itself may be lost. A failed fsync is never tried again: the kernel may have dropped the dirty
pages, so a second one would report success for data that is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import OutputBusy, StoppedEarly
from pipeline.system.failpoints import end, failpoint, reached
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMP_SUFFIX = ".tmp"
_READ_BYTES = 1 << 20
# `holder_of` has a lock for microseconds; whoever wants it then tries again.
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_S = 0.02


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into a resumable stop that names the file."""
    try:
        yield
    except OSError as error:
        raise StoppedEarly(
            f"{path}: cannot write: {error.strerror or error}. What was committed is kept; "
            "mend the disk (or free some space) and run the same command again."
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read into a resumable stop that names the file."""
    try:
        yield
    except OSError as error:
        raise StoppedEarly(
            f"{path}: cannot read: {error.strerror or error}. Mend that, then run the same command "
            "again."
        ) from error


def fsync_path(path: Path) -> None:
    """Fsync a file or a directory by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(temp: Path, final: Path, what: str) -> None:
    """Make the closed file `temp` durable under the name `final`, atomically.

    `what` names its failpoints.
    """
    fsync_path(temp)
    failpoint(f"{what}.fsynced")
    temp.replace(final)
    failpoint(f"{what}.renamed")
    fsync_path(final.parent)
    failpoint(f"{what}.directory fsynced")


def commit_bytes(content: bytes, final: Path, what: str) -> None:
    """Write a small file durably and atomically; see `commit`."""
    temp = final.with_name(final.name + TEMP_SUFFIX)
    temp.write_bytes(content)
    failpoint(f"{what}.written")
    commit(temp, final, what)


def aside_of(temp: Path) -> Path:
    """Where `commit_directory` keeps what `temp` replaces until the replacement is durable."""
    return temp.with_name("replaced" + TEMP_SUFFIX)


def commit_directory(temp: Path, final: Path) -> None:
    """Make a directory of closed files durable under the name `final`.

    POSIX renames a directory over an empty one only, so an existing `final` is moved aside
    first: for that instant there is neither the old nor the new, but never a mixture.
    """
    for file in temp.iterdir():
        fsync_path(file)
    fsync_path(temp)
    failpoint("output.fsynced")
    aside = aside_of(temp)
    if final.exists():
        remove(aside)  # a kill may have left it, with what `final` has replaced since
        final.rename(aside)
        failpoint("output.moved aside")
    temp.rename(final)
    failpoint("output.directory renamed")
    fsync_path(final.parent)
    failpoint("output.directory durable")
    remove(aside)


def measure(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file. Raises OSError."""
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            stop_point()
            digest.update(piece)
            size_bytes += len(piece)
    return size_bytes, digest.hexdigest()


def append_durably(path: Path, line: bytes) -> None:
    """Append one line, whole or not at all, and fsync it."""
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        failpoint("record.before")
        if reached("record.torn"):
            file.write(line[: len(line) // 2])
            end("record.torn")
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
        failpoint("record.written")
        os.fsync(file.fileno())
        failpoint("record.fsynced")


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it; missing is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Lock:
    """An exclusive lock that dies with its owner, on a file in the run directory.

    It is the kernel's (flock): nothing about names or clocks of the machine enters, and a
    killed owner leaves no stale lock. The file's content only tells who holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, unless it is held already. Raises OutputBusy, saying who holds it."""
        if self._descriptor is not None:
            return
        with writing(self._path):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _locked(descriptor):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise busy(self._path, holder)
        self._descriptor = descriptor
        holder_now = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": round(time.time(), 3),
        }
        with suppress(OSError):  # the lock holds on a full disk, too
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder_now).encode(), 0)

    def release(self) -> None:
        """Give the lock back; harmless where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, as far as its file tells; `since` is in seconds since the epoch."""

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    def __str__(self) -> str:
        if self.pid is None:
            return "its process is not known"
        return f"process {self.pid} on {self.host}"


def holder_of(path: Path) -> Holder | None:
    """Who holds the lock on a file; None where nobody does, or there is no such file.

    Nothing is written, and nobody is kept from the lock: see `_LOCK_ATTEMPTS`.
    """
    with reading(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(descriptor)
        finally:
            os.close(descriptor)
    return None


def busy(lock: Path, holder: Holder) -> OutputBusy:
    """Give the error of an output that another run works on."""
    return OutputBusy(
        f"{lock.parent}: another run holds this output ({holder}). Wait for it, stop it, or choose "
        "another output."
    )


def _locked(descriptor: int) -> bool:
    for attempt in range(_LOCK_ATTEMPTS):
        if attempt:
            time.sleep(_LOCK_PAUSE_S)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _holder(descriptor: int) -> Holder:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        return Holder(int(found["pid"]), str(found["host"]), float(found["since"]))
    except (ValueError, TypeError, KeyError):
        return Holder()
