"""The five verbs that a kind of storage offers; all else of a run store is built on them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TEMP_SUFFIX = ".tmp"


class Objects(Protocol):
    """Small objects under names such as `log/00000001.json`; each is whole or not there.

    What `create` and `put` did is durable when they return. All raise StoppedEarly if the storage
    refuses.
    """

    @property
    def place(self) -> str:
        """Where the objects are, for messages."""

    def create(self, name: str, content: bytes) -> bool:
        """Store an object unless its name is taken. Return False if it is."""

    def put(self, name: str, content: bytes) -> None:
        """Store an object, replacing what has its name."""

    def get(self, name: str) -> bytes | None:
        """Return the content of an object, None if there is none."""

    def list(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder (`log/`; "" for the top)."""

    def delete(self, name: str) -> None:
        """Delete an object, or an empty folder (`log/`); a missing one is fine."""


@dataclass(frozen=True)
class ByteSource:
    """Bytes that can be opened for reading, as often as needed.

    `open` returns a pyarrow NativeFile. It raises FileNotFoundError if the bytes are gone.
    """

    name: str
    size_bytes: int
    open: Callable[[], pa.NativeFile]

    @classmethod
    def of(cls, path: Path) -> ByteSource:
        """Return the bytes of a file. Raises OSError."""
        return cls(str(path), path.stat().st_size, partial(pa.OSFile, str(path)))


_FIXES = {
    "write": "What was committed is kept; fix the disk (or free some space) and run the same "
    "command again.",
    "read": "Fix that, then run the same command again.",
}


@contextmanager
def _stopping(doing: str, place: object) -> Iterator[None]:
    """Turn an OSError into StoppedEarly that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StoppedEarly(
            f"{place}: cannot {doing}: {reason}. {_FIXES[doing]}",
        ) from error


writing = partial(_stopping, "write")
reading = partial(_stopping, "read")
