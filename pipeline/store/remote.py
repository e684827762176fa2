"""The five verbs on object storage, through obstore.

It repeats what fails with a 5xx, a timeout or a lost connection, for about a minute. Only a
`create` of which no answer came is not repeated there, since it is not known whether it was done:
it is repeated here, and may then find its own object, which `objects.claim` resolves.
"""

from __future__ import annotations

import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError, StoppedEarly
from pipeline.store import ownership
from pipeline.store.objects import TEMP_SUFFIX, reading, writing
from pipeline.system import remote
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where objects can be created only if they are absent.
SCHEMES = ("s3", "gs", "abfs", "abfss")
_CREATE_ATTEMPTS, _CREATE_PAUSE_S = 8, 0.1


class RemoteObjects:
    """Objects below an address such as `s3://bucket/labelled.run`."""

    def __init__(self, address: str) -> None:
        self.place = address.rstrip("/")

    def create(self, name: str, content: bytes) -> bool:
        with writing(f"{self.place}/{name}"):
            for attempt in range(1, _CREATE_ATTEMPTS + 1):
                try:
                    with self._at(name) as (store, key):
                        store.put(key, content, mode="create", use_multipart=False)
                        return True
                except FileExistsError:
                    return False
                except (PermissionError, FileNotFoundError):
                    raise
                except OSError:
                    if attempt == _CREATE_ATTEMPTS:
                        raise
                time.sleep(_CREATE_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt raises")

    def put(self, name: str, content: bytes) -> str | None:
        with writing(f"{self.place}/{name}"), self._at(name) as (store, key):
            return _stamp(store.put(key, memoryview(content).cast("B")))

    def get(self, name: str) -> bytes | None:
        try:
            with reading(f"{self.place}/{name}"), self._at(name) as (store, key):
                return bytes(store.get(key).bytes())
        except StoppedEarly as failure:
            if isinstance(failure.__cause__, FileNotFoundError):
                return None
            raise

    def list(self, folder: str) -> list[str]:
        return list(self.stamps(folder))

    def stamps(self, folder: str) -> dict[str, str | None]:
        with reading(f"{self.place}/{folder}"), self._at(folder) as (store, prefix):
            found = store.list_with_delimiter(prefix.rstrip("/"))["objects"]
        names = {folder + each["path"].rpartition("/")[2]: _stamp(each) for each in found}
        return dict(sorted(names.items()))

    def free_bytes(self) -> int | None:
        return None

    def delete(self, *names: str) -> None:
        names = tuple(name for name in names if not name.endswith("/"))
        if not names:
            return
        _, prefix = remote.parts_of(self.place)
        with writing(self.place):
            try:
                with self._at(names[0]) as (store, _):
                    store.delete([f"{prefix}/{name}" for name in names])
            except FileNotFoundError:  # one of them was missing, and the others may be there
                for name in names:
                    remote.delete(f"{self.place}/{name}")

    def check(self) -> None:
        try:
            try:
                ownership.check_objects(self)
            except StoppedEarly:
                self._refuses_second()  # of a missing bucket, only a PUT says so
                raise
            # Twice, since another run that begins may tidy up the object of the first time.
            if self._refuses_second() or self._refuses_second():
                return
        except StoppedEarly as failure:
            if isinstance(failure.__cause__, OSError):
                raise no_place(self.place, failure.__cause__) from failure
            raise
        raise OutputError(
            f"{setting('run_dir')}: the storage of {self.place} ignores that an object must be "
            "absent to be created, so two runs could overwrite each other.",
            "Choose a storage that honours conditional writes (If-None-Match), or a local "
            "directory.",
        )

    def _refuses_second(self) -> bool:
        """Create an object twice: many servers do so, whatever the condition, and tell nobody."""
        name = f"probe.{secrets.token_hex(4)}{TEMP_SUFFIX}"
        self.create(name, b"first")
        refused = not self.create(name, b"second")
        found = self.get(name)
        self.delete(name)
        return refused and found == b"first"

    @contextmanager
    def _at(self, name: str) -> Iterator[tuple[Any, str]]:
        address = f"{self.place}/{name}"
        place, key = remote.parts_of(address)
        with remote.as_os_error(address):
            yield remote.store_at(place), key


def _stamp(meta: Any) -> str | None:
    """Return the ETag, of which the storage vouches that the content is the one that was put."""
    etag: str | None = meta["e_tag"]
    # Azure lists them without quotes. A weak one stays the same for content that is only alike.
    return None if etag is None or etag.startswith("W/") else etag.strip('"')


def no_place(place: str, error: OSError) -> OutputError:
    """Return the error of an address that is out of reach, or that nobody may write to."""
    if isinstance(error, PermissionError):
        return OutputError(
            f"{place}: cannot write: permission denied.",
            "Give the credentials in the environment, as docs/how-to/object-storage.md says.",
        )
    if isinstance(error, FileNotFoundError):
        return OutputError(f"{place}: cannot write: there is no such bucket.", "Check the address.")
    return OutputError(
        f"{place}: cannot write: {error.strerror}.",
        "Nothing was sent. Once the storage can be reached, run the same command again.",
    )
