"""A growing file on object storage: what is appended between two `sync` is an object.

    answers/00000012-00000012-4096-57-9f2c1a7b
            its numbers, its size in bytes, how many items are in it, its owner's nonce

The file is their contents in the order of their names. While it is open there is a copy in a local
file without a name, which is read and appended to; another machine makes its own from the objects.
Since each object is whole or not there, and begins and ends where an append did, the file has no
torn end; an object of an owner that was frozen, and woke, is only one more between the others.

Two a second are many to read: a request takes tens of milliseconds, whatever it reads. So once the
last ones are MOST_SMALL, or JOINED_BYTES together, the next one holds their contents too, and has
the numbers from the first of them on. It covers those of its owner whose numbers lie within its
own: they count for nothing from the instant that it is there, and are deleted. Those of others it
leaves alone, since nobody knows what an owner that was frozen will still do.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pipeline.store.objects import Objects

MOST_SMALL = 64
JOINED_BYTES = 1 << 20

_NAME = re.compile(r"[a-z]+/(\d{8,})-(\d{8,})-(\d+)-(\d+)-([0-9a-f]{8})")
_READERS = 16
# A piece that was listed may be gone when it is read: the run that goes on has joined it to others.
_READ_ATTEMPTS = 5


class _Piece(NamedTuple):
    """An object: its numbers, how many bytes and items it has, and whose it is."""

    first: int
    last: int
    size_bytes: int
    items: int
    owner: str
    folder: str

    @property
    def name(self) -> str:
        return (
            f"{self.folder}{self.first:08d}-{self.last:08d}-{self.size_bytes}-{self.items}"
            f"-{self.owner}"
        )

    @classmethod
    def of(cls, name: str) -> _Piece | None:
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        first, last, size_bytes, items, owner = found.groups()
        folder = name[: found.start(1)]
        return cls(int(first), int(last), int(size_bytes), int(items), owner, folder)


class _Extent(NamedTuple):
    """How much of a file: bytes, and the items that were appended since it was opened."""

    size_bytes: int
    items: int


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
        self._owner = ""
        self._read: list[_Piece] = []  # on opening
        self._number = 0
        # How many bytes and items there are, and of these how many are stored.
        self._held = self._stored = _Extent(0, 0)
        # The last objects of this owner, which the next one may hold too, and where they begin.
        self._small: list[_Piece] = []
        self._small_at = 0
        self._syncing = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def exists(self) -> bool:
        return self._file is not None or bool(self._listed())

    def size(self) -> int:
        if self._file is not None:
            return os.fstat(self._file.fileno()).st_size
        return sum(piece.size_bytes for piece in self._pieces())

    def items(self) -> int | None:
        return sum(piece.items for piece in self._pieces())

    def reader(self, last_bytes: int | None = None) -> BinaryIO:
        return self._copy(last_bytes)[0]

    def open(self, *, read_only: bool = False) -> None:
        self._file, self._read = self._copy(may_be_new=not read_only)
        self._number = max((piece.last for piece in self._read), default=0)
        self._owner, self._small = secrets.token_hex(4), []
        self._held = self._stored = _Extent(self.size(), 0)
        if read_only:
            return
        self._forget(_sorted_out(self._listed())[1])  # a kill came before that
        if self._sync_s is not None:
            self._closing = threading.Event()
            self._thread = threading.Thread(target=self._go_on, name="events", daemon=True)
            self._thread.start()

    def read(self, length: int, at: int) -> bytes:
        return os.pread(self._descriptor, length, at)

    def append(self, content: bytes, items: int = 0) -> int:
        start = self.size()
        rest, at = memoryview(content), start
        try:
            while rest:
                written = os.pwrite(self._descriptor, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            os.ftruncate(self._descriptor, start)
            raise
        # At once, since another thread stores what there is.
        self._held = _Extent(at, self._held.items + items)
        return start

    def sync(self) -> None:
        with self._syncing, _os_errors():
            held, stored = self._held, self._stored
            if held == stored:
                return
            end = held.size_bytes
            joins = len(self._small) >= MOST_SMALL or end - self._small_at >= JOINED_BYTES
            if joins and not set(self._small) <= set(self._listed()):
                # Another owner has discarded them: they must not come back.
                self._small, joins = [], False
            old = self._small if joins else []
            begin = self._small_at if old else stored.size_bytes
            content = os.pread(self._descriptor, end - begin, begin)
            piece = self._put(content, held.items - stored.items, old)
            self._stored = held
            small = [piece] if len(content) < JOINED_BYTES else []
            if old or not self._small:
                self._small, self._small_at = small, begin
            else:
                self._small += small
            self._forget(old)

    def cut(self, size: int) -> None:
        begin, kept = 0, b""
        dropped: list[_Piece] = []
        for piece in self._read:
            end = begin + piece.size_bytes
            if end > size:
                kept += os.pread(self._descriptor, max(0, size - begin), begin)
                dropped.append(piece)
            begin = end
        os.ftruncate(self._descriptor, size)
        self._held = self._stored = _Extent(size, self._held.items)
        with _os_errors():
            if kept:
                self._put(kept, sum(piece.items for piece in dropped))
            self._objects.delete(*(piece.name for piece in dropped))

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
            self._objects.delete(*(piece.name for piece in self._listed()))

    @property
    def _descriptor(self) -> int:
        assert self._file is not None, "it is not open"
        return self._file.fileno()

    def _go_on(self) -> None:
        while not self._closing.wait(self._sync_s):
            with suppress(OSError):
                self.sync()

    def _put(self, content: bytes, items: int, old: Sequence[_Piece] = ()) -> _Piece:
        """Store content, which begins with that of `old`, and `items` more."""
        number = self._number + 1
        first = old[0].first if old else number
        items += sum(piece.items for piece in old)
        piece = _Piece(first, number, len(content), items, self._owner, self._folder)
        self._objects.put(piece.name, content)
        self._number = number
        return piece

    def _forget(self, pieces: Sequence[_Piece]) -> None:
        """Delete what others cover; if that fails, it still counts for nothing."""
        with suppress(StoppedEarly):
            self._objects.delete(*(piece.name for piece in pieces))

    def _listed(self) -> list[_Piece]:
        with _os_errors():
            return list(filter(None, map(_Piece.of, self._objects.list(self._folder))))

    def _pieces(self) -> list[_Piece]:
        return _sorted_out(self._listed())[0]

    def _copy(
        self, last_bytes: int | None = None, *, may_be_new: bool = False
    ) -> tuple[BinaryIO, list[_Piece]]:
        """Return a local file, without a name, of what the objects hold, and these.

        Raises FileNotFoundError if there are none, unless it may be a new one.
        """
        pieces = self._pieces()
        if not (pieces or may_be_new):
            raise FileNotFoundError(2, "No such file", self.place)
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - returned
        try:
            held = self._filled(file, pieces, last_bytes)
            file.flush()
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file, held

    def _filled(
        self, file: BinaryIO, pieces: Sequence[_Piece], last_bytes: int | None
    ) -> list[_Piece]:
        """Make a file hold pieces, or what these have been joined to meanwhile; return which."""
        held: list[_Piece] = []
        for _ in range(_READ_ATTEMPTS):
            if self._fill(file, held, _last(pieces, last_bytes)):
                return held
            pieces = self._pieces()
        raise OSError(errno.ESTALE, "objects that were listed in it are missing", self.place)

    def _fill(self, file: BinaryIO, held: list[_Piece], pieces: Sequence[_Piece]) -> bool:
        """Make a file, which holds some pieces, hold these. Return False if one is gone."""
        same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(held, pieces)))  # noqa: B905 - one may be longer
        del held[same:]
        file.seek(sum(piece.size_bytes for piece in held))
        file.truncate()
        with ThreadPoolExecutor(_READERS, "answers") as readers, _os_errors():
            for at in range(same, len(pieces), 2 * _READERS):
                some = pieces[at : at + 2 * _READERS]
                names = [piece.name for piece in some]
                for piece, content in zip(some, readers.map(self._objects.get, names), strict=True):
                    if content is None:
                        return False
                    file.write(content)
                    held.append(piece)
        return True


def _sorted_out(found: Sequence[_Piece]) -> tuple[list[_Piece], list[_Piece]]:
    """Return the pieces of a file in their order, and those that others of their owner cover."""
    kept: list[_Piece] = []
    covered: list[_Piece] = []
    last: dict[str, int] = {}  # by owner
    for piece in sorted(found, key=lambda each: (each.first, -each.last, -each.size_bytes, each)):
        if piece.last <= last.get(piece.owner, 0):
            covered.append(piece)
        else:
            kept.append(piece)
            last[piece.owner] = piece.last
    return kept, covered


def _last(pieces: Sequence[_Piece], size_bytes: int | None) -> Sequence[_Piece]:
    """Return the last pieces, which have more bytes than that together, or all."""
    if size_bytes is None:
        return pieces
    for at in range(len(pieces) - 1, -1, -1):
        size_bytes -= pieces[at].size_bytes
        if size_bytes < 0:
            return pieces[at:]
    return pieces


@contextmanager
def _os_errors() -> Iterator[None]:
    """Raise what the storage said, as any file does."""
    try:
        yield
    except StoppedEarly as failure:
        if isinstance(failure.__cause__, OSError):
            raise failure.__cause__ from None
        raise
