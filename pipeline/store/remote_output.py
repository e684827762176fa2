"""The output at an address: drafted in a local file, then put in its place.

An object appears when its upload is complete. A directory cannot appear at once: its files get
their names one by one, and `_SUCCESS` is the last object that is put and the first that is deleted.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import OutputError, StoppedEarly
from pipeline.store.forms import check_form, form_of
from pipeline.store.objects import TEMP_SUFFIX, ByteSource, reading, writing
from pipeline.store.remote import no_place
from pipeline.system import globs, remote
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.objects import Objects
    from pipeline.store.records import Identity

MARK = "_SUCCESS"
_A_FILE = "part-00000.parquet"
_READ_BYTES = 8 << 20
# A part of a multipart upload; storages allow 10,000 of them.
_UPLOAD_BYTES = 16 << 20
_UPLOADS = 4


class RemoteOutput:
    """An output at an address; `objects` hold the parts of the run."""

    has_mark = True  # a directory of it

    def __init__(self, address: str, objects: Objects) -> None:
        self.place = address.rstrip("/")
        self.name = self.place
        self.is_file = form_of(self.place) is not None
        self._objects = objects
        self._draft: Any = None  # a local file without a name
        self._parts: list[tuple[str, str]] = []  # the object of the run, and its name in here

    def exists(self) -> bool:
        with reading(self.place):
            return bool(self._names())

    def is_torn(self) -> bool:
        if self.is_file or not self.has_mark:
            return False
        with reading(self.place):
            names = self._names()
        return bool(names) and MARK not in names

    def files(self) -> list[ByteSource]:
        return [self._source(name) for name in self._names() if name != MARK]

    def identity(self) -> Identity | None:
        try:
            names = self._names()
            if not names or (self.has_mark and not self.is_file and MARK not in names):
                return None
            found = []
            for name in names:
                if name != MARK:
                    with remote.open_object(self._address(name)) as file:
                        found.append(_measured(file))
        except OSError:
            return None
        return found

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:  # noqa: ARG002
        check_form(self.place)
        try:
            self._names()
        except OSError:
            self.check_rename()  # of a missing bucket, only a PUT says so
        table = self.place if self.is_file else f"{self.place}/{_A_FILE}"
        for name in inputs:
            if globs.overlap(name, self.place, table):
                raise OutputError(
                    f"{setting('output')}: {self.place} and the input {name} are the same, or one "
                    "is inside the other.",
                    "Choose another output.",
                )

    def replaces(self, inputs: Sequence[str]) -> bool:  # noqa: ARG002
        return False

    def check_replaceable(self) -> None:
        if self.is_file:
            return
        for name in self._names():
            if name != MARK and not self._is_labelled(name):
                raise OutputError(
                    f"{setting('output')}: {self.place} is not replaced, since no run wrote all of "
                    f"it: it holds {name}.",
                    "Move it away, or choose another output.",
                )

    def check_rename(self) -> None:
        probe = f"{self.place}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
        place, key = remote.parts_of(probe)
        try:
            with writing(self.place), remote.as_os_error(probe):
                remote.store_at(place).put(key, b"")
                remote.delete(probe)
        except StoppedEarly as failure:
            if isinstance(failure.__cause__, OSError):
                raise no_place(self.place, failure.__cause__) from failure
            raise

    def check_holds_only(self, files: Sequence[str]) -> None:
        known = set(files)
        for name in self._names():
            if name != MARK and self._address(name) not in known:
                raise OutputError(
                    f"{setting('output')}: {self.place} would be replaced, but holds {name} too, "
                    "which would be lost.",
                    "Move it away, or choose another output.",
                )

    def begin_draft(self) -> None:
        self.clear()
        self._draft = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `clear`

    def open_draft(self) -> pa.NativeFile:
        return pa.PythonFile(os.fdopen(os.dup(self._draft.fileno()), "wb"), "w")

    def take_part(self, part: str, name: str) -> None:
        self._parts.append((part, name))

    def draft_identity(self) -> Identity:
        with writing(self.place):
            self._draft.seek(0)
            return [_measured(self._draft)]

    def publish(self) -> None:
        with writing(self.place):
            if self.is_file:
                self._draft.seek(0)
                self._put("", self._draft)
                return
            names = {name for _, name in self._parts}
            old = self._names()
            if MARK in old:
                remote.delete(self._address(MARK))
            for name in old:
                if name != MARK and name not in names:
                    remote.delete(self._address(name))
            for part, name in self._parts:
                stop_point()
                self._put(name, self._part(part))
            self._put(MARK, b"")

    def clear(self) -> None:
        self._parts = []
        if self._draft is not None:
            self._draft.close()
            self._draft = None

    def _names(self) -> list[str]:
        """Return the names of what is in its place, in order: of an object, the empty one."""
        if self.is_file:
            try:
                remote.facts(self.place)
            except FileNotFoundError:
                return []
            return [""]
        below = f"{self.place}/"
        try:
            found = remote.listed(self.place)
        except FileNotFoundError:
            return []
        return sorted(each.removeprefix(below) for each in found if each.startswith(below))

    def _part(self, part: str) -> bytes:
        content = self._objects.get(part)
        if content is None:
            raise FileNotFoundError(2, "No such object", part)
        return content

    def _address(self, name: str) -> str:
        return f"{self.place}/{name}" if name else self.place

    def _source(self, name: str) -> ByteSource:
        address = self._address(name)
        opened = partial(_open, address)
        return ByteSource(address, remote.facts(address).size_bytes, opened)

    def _is_labelled(self, name: str) -> bool:
        import pyarrow.parquet as pq

        try:
            with _open(self._address(name)) as file:
                return b"classify.software" in (pq.read_schema(file).metadata or {})
        except pa.ArrowException:
            return False

    def _put(self, name: str, content: Any) -> None:
        address = self._address(name)
        place, key = remote.parts_of(address)
        with remote.as_os_error(address):
            remote.store_at(place).put(
                key, content, chunk_size=_UPLOAD_BYTES, max_concurrency=_UPLOADS
            )


def _measured(file: Any) -> list[Any]:
    """Return the size in bytes and the SHA-256 of what an open file holds."""
    digest, size_bytes = hashlib.sha256(), 0
    while piece := file.read(_READ_BYTES):
        stop_point()
        digest.update(piece)
        size_bytes += len(piece)
    return [size_bytes, digest.hexdigest()]


def _open(address: str) -> pa.NativeFile:
    return pa.PythonFile(remote.open_object(address), "r")
