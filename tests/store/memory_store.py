"""A run store in memory: the proof that nothing above the store needs a disk."""

from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa

from pipeline.errors import StoppedEarly
from pipeline.store.holder import Holder, busy
from pipeline.store.objects import ByteSource, ignored
from pipeline.store.runstore import RunStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from pipeline.store.objects import OnLost
    from pipeline.store.records import Identity

PLACE = "(memory)"


class MemoryStore(RunStore):
    """The store of a run in memory: it continues what an earlier run left in the same object."""

    def __init__(self, *, is_file: bool = True) -> None:
        objects = MemoryObjects()
        output = MemoryOutput(objects, is_file=is_file)
        super().__init__(objects, MemoryLease(), MemoryFile(), MemoryFile(), output)


class MemoryObjects:
    """The five verbs on a dict."""

    place = PLACE

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._creating = Lock()

    def create(self, name: str, content: bytes) -> bool:
        with self._creating:
            if name in self._objects:
                return False
            self._objects[name] = bytes(content)
            return True

    def put(self, name: str, content: bytes) -> str | None:
        self._objects[name] = bytes(content)
        return None

    def get(self, name: str) -> bytes | None:
        return self._objects.get(name)

    def free_bytes(self) -> int | None:
        return None

    def list(self, folder: str) -> list[str]:
        found = [name for name in list(self._objects) if name.startswith(folder)]
        return sorted(name for name in found if "/" not in name[len(folder) :])

    def stamps(self, folder: str) -> dict[str, str | None]:
        return dict.fromkeys(self.list(folder))

    def delete(self, *names: str) -> None:
        for name in names:
            self._objects.pop(name, None)

    def check(self) -> None:
        pass


class MemoryFile:
    """A growing file."""

    place = PLACE
    scratch = None
    is_ours = True

    def __init__(self) -> None:
        self._content: bytearray | None = None

    @property
    def _found(self) -> bytearray:
        if self._content is None:
            raise FileNotFoundError(2, "No such file", self.place)
        return self._content

    def exists(self) -> bool:
        return self._content is not None

    def size(self) -> int:
        return len(self._found)

    def items(self) -> int | None:
        return None

    def reader(self, last_bytes: int | None = None) -> BinaryIO:
        return io.BytesIO(self._found)

    def open(self, *, read_only: bool = False) -> None:
        self._content = self._found if read_only else self._content or bytearray()

    def read(self, length: int, at: int) -> bytes:
        return bytes(self._found[at : at + length])

    def append(self, content: bytes, items: int = 0) -> int:
        self._found.extend(content)
        return len(self._found) - len(content)

    def sync(self) -> None:
        pass

    def cut(self, size: int) -> None:
        del self._found[size:]

    def locked(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        pass

    def delete(self) -> None:
        self._content = None


class MemoryLease:
    """A lease among the runs of this process."""

    is_lock = True

    def __init__(self) -> None:
        self._holder: Holder | None = None

    def acquire(self, *, create: bool, on_lost: OnLost = ignored) -> bool:
        if self._holder is not None:
            raise busy(PLACE, self._holder)
        self._holder = Holder.here()
        return True

    def is_held(self) -> bool:
        return True

    def release(self) -> None:
        self._holder = None

    def holder(self) -> Holder | None:
        return self._holder


class MemoryOutput:
    """An output whose `content` has the bytes of each file by name; None before it is there.

    The file of an output that is only one is named by nothing.
    """

    name = None
    place = PLACE

    def __init__(self, objects: MemoryObjects, *, is_file: bool) -> None:
        self._objects = objects
        self.is_file = is_file
        self.content: dict[str, bytes] | None = None
        self._draft: dict[str, Any] = {}

    def exists(self) -> bool:
        return self.content is not None

    def is_torn(self) -> bool:
        return False

    def files(self) -> list[ByteSource]:
        return [
            ByteSource(name, len(each), partial(pa.BufferReader, each))
            for name, each in (self.content or {}).items()
        ]

    def identity(self) -> Identity | None:
        return None if self.content is None else _identity(self.content)

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:
        pass

    def replaces(self, inputs: Sequence[str]) -> bool:
        return False

    def check_replaceable(self) -> None:
        pass

    def check_rename(self) -> None:
        pass

    def check_holds_only(self, files: Sequence[str]) -> None:
        pass

    def begin_draft(self) -> None:
        self._draft = {}

    @contextmanager
    def open_draft(self) -> Iterator[pa.NativeFile]:
        with pa.BufferOutputStream() as sink:
            yield sink
            self._draft[""] = sink.getvalue()

    def take_part(self, part: str, name: str) -> None:
        content = self._objects.get(part)
        assert content is not None, part
        self._draft[name] = pa.py_buffer(content)

    def draft_identity(self) -> Identity:
        return _identity(self._draft)

    def publish(self) -> None:
        self.content = {name: each.to_pybytes() for name, each in self._draft.items()}

    def clear(self) -> None:
        self._draft = {}


def _identity(files: dict[str, Any]) -> Identity:
    return [[len(each), hashlib.sha256(each).hexdigest()] for each in files.values()]


class Refusing:
    """Objects that refuse to delete, as a storage does that is gone just then."""

    def __init__(self, objects: Any) -> None:
        self._objects = objects

    def delete(self, *names: str) -> None:
        if names:
            raise StoppedEarly("gone", "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)
