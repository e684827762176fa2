"""A growing file on object storage: what is appended between two `sync` is an object.

    answers/00000012-4096-9f2c1a7b      its number, its size in bytes, a nonce

The file is their contents in the order of their names. While it is open there is a copy in a local
file without a name, which is read and appended to; another machine makes its own from the objects.
Since each object is whole or not there, and begins and ends where an append did, the file has no
torn end; an object of an owner that was frozen, and woke, is only one more between the others.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from pipeline.store.objects import Objects

_NAME = re.compile(r"[a-z]+/(\d{8,})-(\d+)-[0-9a-f]{8}")
# A request takes tens of milliseconds, and the answers of a day are some hundred thousand objects.
_READERS = 16


class _Piece(NamedTuple):
    """An object, by its number, and how many bytes it has."""

    number: int
    size_bytes: int
    name: str


class FramesFile:
    """A growing file below `folder`, such as `answers/`; the lease keeps others from appending.

    With `sync_s` it also syncs by itself, so often, and a failure to do so is no failure.
    """

    is_ours = True
    scratch = None

    def __init__(self, objects: Objects, folder: str, sync_s: float | None = None) -> None:
        self.place = f"{objects.place}/{folder}"
        self._objects = objects
        self._folder = folder
        self._sync_s = sync_s
        self._file: BinaryIO | None = None
        self._number = self._synced = 0
        self._syncing = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def exists(self) -> bool:
        return self._file is not None or bool(self._pieces())

    def size(self) -> int:
        if self._file is not None:
            return os.fstat(self._file.fileno()).st_size
        return sum(piece.size_bytes for piece in self._pieces())

    def reader(self) -> BinaryIO:
        if not (pieces := self._pieces()):
            raise FileNotFoundError(2, "No such file", self.place)
        return self._copy(pieces)

    def open(self, *, read_only: bool = False) -> None:
        pieces = self._pieces()
        if read_only and not pieces:
            raise FileNotFoundError(2, "No such file", self.place)
        self._file = self._copy(pieces)
        self._number = max((piece.number for piece in pieces), default=0)
        self._synced = self.size()
        if self._sync_s is not None and not read_only:
            self._closing = threading.Event()
            self._thread = threading.Thread(target=self._go_on, name="events", daemon=True)
            self._thread.start()

    def read(self, length: int, at: int) -> bytes:
        return os.pread(self._descriptor, length, at)

    def append(self, content: bytes) -> int:
        start = self.size()
        rest, at = memoryview(content), start
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            os.ftruncate(self._descriptor, start)
            raise
        return start

    def sync(self) -> None:
        with self._syncing, _os_errors():
            end = self.size()
            if end > self._synced:
                self._put(os.pread(self._descriptor, end - self._synced, self._synced))
                self._synced = end

    def cut(self, size: int) -> None:
        begin, kept = 0, b""
        dropped: list[str] = []
        for piece in self._pieces():
            end = begin + piece.size_bytes
            if end > size:
                kept += os.pread(self._descriptor, max(0, size - begin), begin)
                dropped.append(piece.name)
            begin = end
        os.ftruncate(self._descriptor, size)
        self._synced = size
        with _os_errors():
            if kept:
                self._put(kept)
            self._objects.delete(*dropped)

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        if self._thread is not None:
            self._closing.set()
            self._thread.join()
            self._thread = None
            with suppress(OSError):
                self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def delete(self) -> None:
        with _os_errors():
            self._objects.delete(*(piece.name for piece in self._pieces()))

    @property
    def _descriptor(self) -> int:
        assert self._file is not None, "it is not open"
        return self._file.fileno()

    def _go_on(self) -> None:
        while not self._closing.wait(self._sync_s):
            with suppress(OSError):
                self.sync()

    def _put(self, content: bytes) -> None:
        number = self._number + 1
        name = f"{self._folder}{number:08d}-{len(content)}-{secrets.token_hex(4)}"
        self._objects.put(name, content)
        self._number = number

    def _pieces(self) -> list[_Piece]:
        with _os_errors():
            found = map(_NAME.fullmatch, self._objects.list(self._folder))
        return sorted(_Piece(int(each[1]), int(each[2]), each[0]) for each in found if each)

    def _copy(self, pieces: list[_Piece]) -> BinaryIO:
        """Return a local file, without a name, of what the objects hold."""
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - returned
        try:
            with ThreadPoolExecutor(_READERS, "answers") as readers, _os_errors():
                for at in range(0, len(pieces), 4 * _READERS):
                    names = [piece.name for piece in pieces[at : at + 4 * _READERS]]
                    # One that is deleted meanwhile is of a run that is complete by now.
                    file.writelines(
                        content or b"" for content in readers.map(self._objects.get, names)
                    )
            file.flush()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise what the storage said, as any file does."""
    try:
        yield
    except StoppedEarly as failure:
        if isinstance(failure.__cause__, OSError):
            raise failure.__cause__ from None
        raise
