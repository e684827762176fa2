"""What a kind of storage offers; all else of a run store is built on it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Protocol

import pyarrow as pa

from pipeline.errors import OutputBusy, StoppedEarly
from pipeline.system import means
from pipeline.system.remote import is_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pipeline.store.holder import Holder
    from pipeline.store.records import Identity

    OnLost = Callable[[OutputBusy], None]

TEMP_SUFFIX = ".tmp"


class Objects(Protocol):
    """Small objects under names such as `log/00000001.json`; each is whole or not there.

    What `create` and `put` did is durable when they return. All raise StoppedEarly if the storage
    refuses. `place` is where the objects are, for messages.
    """

    place: str

    def create(self, name: str, content: bytes) -> bool:
        """Store an object unless its name is taken. Return False if it is."""

    def put(self, name: str, content: bytes) -> str | None:
        """Store an object, replacing what has its name. Return its stamp: see `stamps`."""

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, None if there is none."""

    def list(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder (`log/`; "" for the top)."""

    def stamps(self, folder: str) -> dict[str, str | None]:
        """Do what `list` does, and tell of each object what another content would change.

        None if only reading tells.
        """

    def free_bytes(self) -> int | None:
        """Return how much room there is for more; None if nobody knows."""

    def delete(self, *names: str) -> None:
        """Delete objects, or empty folders (`log/`), in this order; a missing one is fine."""

    def check(self) -> None:
        """Refuse a storage that cannot keep the state of a run. Raises OutputError."""


class GrowingFile(Protocol):
    """A file that is only appended to, also by several processes.

    All methods raise OSError; only `exists`, `size`, `reader` and `delete` can be used without
    `open`. `place` is where it is, for messages.
    """

    place: str

    @property
    def is_ours(self) -> bool:
        """False if only its content can tell whose it is."""

    @property
    def scratch(self) -> Path | None:
        """A directory for what is derived from it; None if there is none to write in."""

    def exists(self) -> bool:
        """Return True if there is a file."""

    def size(self) -> int:
        """Return its size in bytes."""

    def items(self) -> int | None:
        """Return how many items were appended to it; None if only reading tells."""

    def reader(self, last_bytes: int | None = None) -> BinaryIO:
        """Open it for reading apart from this object.

        With `last_bytes`, what comes before these may be left out, but not all of it.
        """

    def open(self, *, read_only: bool = False) -> None:
        """Open it; it stays closed if that fails."""

    def read(self, length: int, at: int) -> bytes:
        """Return up to so many bytes from a position on."""

    def append(self, content: bytes, items: int = 0) -> int:
        """Append bytes, all or none of them, that hold so many items. Return where they begin."""

    def sync(self) -> None:
        """Make what was appended durable."""

    def cut(self, size: int) -> None:
        """Drop what follows the first `size` bytes, durably."""

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from appending."""

    def close(self) -> None:
        """Close it; harmless if it is closed."""

    def delete(self) -> None:
        """Delete it; a missing one is fine."""


def ignored(_: OutputBusy) -> None:
    """Do nothing about a lease that was lost: the log fences whatever is written after that."""


class Lease(Protocol):
    """One run at a time works on an output."""

    @property
    def is_lock(self) -> bool:
        """False if an owner that was frozen may go on without knowing that it lost the lease."""

    def acquire(self, *, create: bool, on_lost: OnLost = ignored) -> bool:
        """Take the lease. If the run has no place yet, make one (`create`) or return False.

        `on_lost` is called, in any thread, if another run takes a lease that is no lock.

        Raises OutputBusy if it is held, OutputError if no place can be made.
        """

    def is_held(self) -> bool:
        """Return False if another run has taken the lease since this one did."""

    def release(self) -> None:
        """Release the lease; harmless if it is not held."""

    def holder(self) -> Holder | None:
        """Return who holds the lease, None if nobody does. Nothing is written."""


class Output(Protocol):
    """The output: drafted, then put in its place as a whole."""

    is_file: bool  # or a directory of files
    place: str  # for messages

    @property
    def name(self) -> str | None:
        """What an input is named that is this output; None if it can be none."""

    def exists(self) -> bool:
        """Return True if something is in the output's place."""

    def is_torn(self) -> bool:
        """Return True if it is put in its place file by file, and a kill came in between."""

    def files(self) -> list[ByteSource]:
        """Return the Parquet files of the output, in order. Raises OSError."""

    def identity(self) -> Identity | None:
        """Return what the output is; None if there is none, or it cannot be read."""

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:
        """Refuse an output that cannot be written, or would take rows of the input with it.

        Raises OutputError.
        """

    def replaces(self, inputs: Sequence[str]) -> bool:
        """Return True if the output takes the place of the input."""

    def check_replaceable(self) -> None:
        """Refuse to replace a directory that is no output of a run. Raises OutputError."""

    def check_rename(self) -> None:
        """Refuse an output that cannot be put in its place at the end. Raises OutputError."""

    def check_holds_only(self, files: Sequence[str]) -> None:
        """Refuse to replace a directory that holds other files, too. Raises OutputError."""

    def begin_draft(self) -> None:
        """Begin an empty draft. Raises OSError, as the next two do."""

    def open_draft(self) -> pa.NativeFile:
        """Open the draft of an output that is one file, for writing."""

    def take_part(self, part: str, name: str) -> None:
        """Make an object of the run a file of the draft, without reading it; it stays an object."""

    def draft_identity(self) -> Identity:
        """Return what the output will be."""

    def publish(self) -> None:
        """Put the draft in the output's place."""

    def clear(self) -> None:
        """Remove what is left of a draft, and of an output that was replaced."""


@dataclass(frozen=True)
class ByteSource:
    """Bytes that can be opened for reading, as often as needed.

    `open` returns a pyarrow NativeFile. It raises FileNotFoundError if the bytes are gone.
    `first_row` is where the rows in them begin; None if that is where those before them end.
    """

    name: str
    size_bytes: int
    open: Callable[[], pa.NativeFile]
    first_row: int | None = None

    @classmethod
    def of(cls, path: Path) -> ByteSource:
        """Return the bytes of a file. Raises OSError."""
        return cls(str(path), path.stat().st_size, partial(pa.OSFile, str(path)))


# "The name is taken" and "nothing is there" may both be said of one name by a storage far away.
_CLAIM_ATTEMPTS, _CLAIM_PAUSE_S = 5, 0.02


def claim(objects: Objects, name: str, content: bytes) -> bool:
    """Create an object. Return False if its name is taken by other content.

    The content must be one that nobody else writes: it tells an object that an earlier try has
    made, of which no answer came, from one of somebody else. Raises StoppedEarly.
    """
    for attempt in range(_CLAIM_ATTEMPTS):
        if attempt:
            time.sleep(_CLAIM_PAUSE_S * 2**attempt)
        if objects.create(name, content):
            return True
        found = objects.get(name)
        if found is not None:
            return found == content
    raise StoppedEarly(
        f"{objects.place}: cannot create {name}: the storage says both that it is there and that "
        "it is not.",
        "Run the same command again to continue.",
    )


_FIXES = {
    "write": "What was committed is kept; fix the disk (or free some space) and run the same "
    "command again.",
    "read": "Fix that, then run the same command again.",
}
_FAR = "What was committed is kept; once the storage can be reached, run the same command again."


@contextmanager
def _stopping(doing: str, place: object) -> Iterator[None]:
    """Turn an OSError into StoppedEarly that names the place."""
    try:
        yield
    except OSError as error:
        if (short := means.ran_out(error)) is not None:
            raise short from error
        reason = error.strerror or error
        fix = _FAR if is_address(str(place)) else _FIXES[doing]
        raise StoppedEarly(f"{place}: cannot {doing}: {reason}. {fix}") from error


writing = partial(_stopping, "write")
reading = partial(_stopping, "read")
