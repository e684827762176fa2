"""Files that only grow: the journal of stored answers, and the event log."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pipeline.store import disk
from pipeline.system.failpoints import end, failpoint, reached

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class DiskFile:
    """A growing file on a POSIX file system, appended to under its lock (flock).

    `failpoints` is the first word of the failpoints that it passes; none if it is empty. A symbolic
    link under its name is refused. `is_ours` is False if only its content can tell whose it is.
    """

    def __init__(
        self, path: Path, *, failpoints: str = "", mode: int = 0o666, is_ours: bool = True
    ) -> None:
        self.path = path
        self.is_ours = is_ours
        self.place = str(path)
        self._failpoints = failpoints
        self._mode = mode
        self._file = -1

    @classmethod
    def journal(cls, path: Path) -> DiskFile:
        """A journal of stored answers at a place of the user's, which may be reached by a link.

        Only its owner may read it.
        """
        return cls(path.resolve(), failpoints="journal", mode=0o600, is_ours=False)

    @property
    def scratch(self) -> Path | None:
        # A reader may be unable to write in its directory.
        return self.path.parent if os.access(self.path.parent, os.W_OK) else None

    def exists(self) -> bool:
        return self.path.exists()

    def size(self) -> int:
        return (self.path.stat() if self._file < 0 else os.fstat(self._file)).st_size

    def items(self) -> int | None:
        return None

    def reader(self, last_bytes: int | None = None) -> BinaryIO:  # noqa: ARG002 - it can seek
        return self.path.open("rb")

    def open(self, *, read_only: bool = False) -> None:
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
        self._file = disk.open_own(self.path, flags, self._mode)
        if read_only:
            return
        try:
            self._pass("made")
            # Even if the file was there: whoever made it may have died before this.
            disk.fsync_path(self.path.parent)
        except BaseException:
            self.close()
            raise

    def read(self, length: int, at: int) -> bytes:
        return os.pread(self._file, length, at)

    def append(self, content: bytes, items: int = 0) -> int:  # noqa: ARG002 - their heads tell
        with self.locked():
            start = os.fstat(self._file).st_size
            rest = memoryview(content)
            self._pass("before")
            if self._failpoints and reached(f"{self._failpoints}.torn"):
                os.write(self._file, rest[: len(rest) // 2])
                end(f"{self._failpoints}.torn")
            try:
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, start)
                raise
            return start

    def sync(self) -> None:
        self._pass("written")
        os.fdatasync(self._file)
        self._pass("synced")

    def cut(self, size: int) -> None:
        os.ftruncate(self._file, size)
        os.fsync(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        # Without locks nothing keeps others from appending: see docs/reliability.md.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in disk.NO_LOCKS:
                raise
            yield
            return
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._file >= 0:
            disk.close_own(self._file)
            self._file = -1

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)

    def _pass(self, step: str) -> None:
        if self._failpoints:
            failpoint(f"{self._failpoints}.{step}")
