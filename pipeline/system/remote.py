"""Objects at an address.

`s3://`, `gs://`, `abfs://` and `https://` are read by obstore, `hf://` by the Hub's own library. No
other module knows obstore, which is not at its first stable version. What they raise becomes an
OSError, as a file system would raise it. Credentials are what they find: in the environment, in the
role of the machine, in a login; none is a setting.
"""

from __future__ import annotations

import errno
import io
import re
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from pipeline.errors import SettingsError
from pipeline.wording import with_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCHEMES = ("s3", "gs", "abfs", "abfss", "https", "http", "hf")
_HUB = "hf://"
_FORBIDDEN = (401, 403)
_STATUS = re.compile(r"status code: (\d{3})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Where a machine in a cloud asks for the rights of its role, if it finds no other credentials.
_ROLES = ("/latest/api/token", "/latest/meta-data/", "/computeMetadata/", "/metadata/identity/")
_LOOKED_FOR = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "abfs": "AZURE_STORAGE_ACCOUNT_KEY",
    "abfss": "AZURE_STORAGE_ACCOUNT_KEY",
}
# What one request reads at least: a request takes tens of milliseconds, whatever it reads.
READ_BYTES = 1 << 20


class Facts(NamedTuple):
    """What a storage says of an object, alike for the same content however it is asked.

    The ETag decides. Only without one, or with one that is weak, does the time tell a change.
    """

    size_bytes: int
    modified_us: int
    etag: str | None

    @property
    def is_certain(self) -> bool:
        """True if another content always has another ETag."""
        return self.etag is not None and not self.etag.startswith("W/")


class ChangedError(OSError):
    """The object is no longer the one that was opened."""

    def __init__(self, address: str) -> None:
        super().__init__(errno.ESTALE, "it changed while it was being read", address)


def is_address(name: str) -> bool:
    """Return True for an address that can be read, if it is right; case does not matter."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def parts_of(address: str) -> tuple[str, str]:
    """Return the address of the bucket or host, and the key in it.

    The address of a web server is quoted; a key of a storage is what it is.
    """
    scheme, _, rest = address.partition("://")
    place, _, key = rest.partition("/")
    return f"{scheme}://{place}", unquote(key) if scheme.startswith("http") else key


def facts(address: str) -> Facts:
    """Ask what an object is. Raises OSError."""
    if address.startswith(_HUB):
        return _facts_on_hub(address)
    place, key = parts_of(address)
    with as_os_error(address):
        return _facts_of(store_at(place).head(key))


def listed(address: str) -> dict[str, Facts]:
    """Return the addresses of all objects below a prefix, in order. Raises OSError."""
    if address.startswith(_HUB):
        with of_hub(address):
            infos = _hub().find(address, refresh=True, detail=True)
            return {f"{_HUB}{path}": _facts_in(infos[path]) for path in sorted(infos)}
    place, prefix = parts_of(address)
    with as_os_error(address):
        found = [each for batch in store_at(place).list(prefix or None) for each in batch]
    return {f"{place}/{each['path']}": _facts_of(each) for each in sorted(found, key=_key)}


def delete(address: str) -> None:
    """Delete an object; a missing one is fine. Raises OSError.

    A request of which no answer came is repeated, and Azure and Google then tell that it is gone.
    """
    place, key = parts_of(address)
    with suppress(FileNotFoundError), as_os_error(address):
        store_at(place).delete(key)


def open_object(address: str, known: Facts | None = None) -> RemoteFile:
    """Open an object for reading, without asking what it is if that is `known`. Raises OSError.

    All that is read is of the object that is known, or was opened: each request asks for it, and
    what comes is compared, since many web servers ignore the condition.
    """
    if address.startswith(_HUB):
        file = _open_on_hub(address)
        if known not in (None, file.facts):
            raise ChangedError(address)
        return file
    found = known or facts(address)
    place, key = parts_of(address)
    # A condition never holds for a weak ETag (RFC 9110, 13.1.1).
    options = {"if_match": found.etag} if found.is_certain else {}

    def read(start: int, end: int) -> Any:
        try:
            with as_os_error(address):
                got = store_at(place).get(key, options={**options, "range": (start, end)})
                if _facts_of(got.meta) == found:
                    return got.bytes()
        except FileNotFoundError as error:
            raise ChangedError(address) from error
        raise ChangedError(address)

    return RemoteFile(found, read)


def _key(meta: Any) -> str:
    return str(meta["path"])


def _facts_of(meta: Any) -> Facts:
    etag = meta["e_tag"]
    if etag is not None and not etag.startswith(('"', "W/")):
        etag = f'"{etag}"'  # Azure lists them without quotes
    found = Facts(meta["size"], 0, etag)
    if found.is_certain:
        # Lists tell the time more precisely than the head of an object does.
        return found
    return found._replace(modified_us=(meta["last_modified"] - _EPOCH) // timedelta.resolution)


class RemoteFile(io.RawIOBase):
    """An object, read in ranges; all of them are of the object that was opened.

    `read` reads one, from one byte to before another; it raises OSError, and ChangedError if the
    object is another one by now.
    """

    def __init__(self, facts: Facts, read: Callable[[int, int], Any]) -> None:
        super().__init__()
        self.facts = facts
        self._read = read
        self._at = self._held_at = 0
        self._held = memoryview(b"")

    def readable(self) -> bool:  # noqa: D102 - of RawIOBase
        return True

    def seekable(self) -> bool:  # noqa: D102 - of RawIOBase
        return True

    def tell(self) -> int:  # noqa: D102 - of RawIOBase
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:  # noqa: D102 - of RawIOBase
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.facts.size_bytes}
        self._at = base[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:  # noqa: D102 - of RawIOBase
        wanted = min(len(buffer), self.facts.size_bytes - self._at)
        if wanted <= 0:
            return 0
        if not self._held_at <= self._at <= self._at + wanted <= self._held_at + len(self._held):
            self._fetch(max(wanted, READ_BYTES))
        start = self._at - self._held_at
        piece = self._held[start : start + wanted]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _fetch(self, length: int) -> None:
        end = min(self._at + length, self.facts.size_bytes)
        self._held, self._held_at = memoryview(self._read(self._at, end)), self._at


@lru_cache(64)
def store_at(place: str) -> Any:
    """Return obstore's store of a bucket or host. Raises what `as_os_error` makes an OSError of."""
    from obstore.store import from_url

    options: dict[str, Any] = {}
    if place.startswith("http://"):
        options["client_options"] = {"allow_http": True}
    return from_url(place, **options)


def _open_on_hub(address: str) -> RemoteFile:
    from huggingface_hub import HfApi

    with of_hub(address):
        # What is read is of one commit, whatever is committed meanwhile.
        found = _hub().resolve_path(address)
        info = HfApi().repo_info(found.repo_id, repo_type=found.repo_type, revision=found.revision)
        pinned = f"{found.repo_type}s/{found.repo_id}@{info.sha}/{found.path_in_repo}"
        facts = _facts_on_hub(f"{_HUB}{pinned}")
        file = _hub().open(pinned, block_size=READ_BYTES, cache_type="none")

    def read(start: int, end: int) -> bytes:
        with of_hub(address):
            file.seek(start)
            content: bytes = file.read(end - start)
            return content

    return RemoteFile(facts, read)


def _facts_on_hub(address: str) -> Facts:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with of_hub(address):
        place = _hub().resolve_path(address)
        found = HfApi().get_paths_info(
            place.repo_id,
            place.path_in_repo,
            revision=place.revision,
            repo_type=place.repo_type,
        )
        if not (found and isinstance(found[0], RepoFile)):
            raise FileNotFoundError
    return _facts_in(vars(found[0]))


def _facts_in(info: dict[str, Any]) -> Facts:
    lfs = info["lfs"]
    return Facts(info["size"], 0, lfs["sha256"] if lfs else info["blob_id"])


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem()  # always the same


@contextmanager
def of_hub(address: str) -> Iterator[None]:
    """Turn what the Hub's library, and the client that it uses, raise into an OSError."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "there is no such file", address) from error
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) in _FORBIDDEN:
            raise PermissionError(13, "permission denied", address) from error
        raise _os_error(address, error) from error


@contextmanager
def as_os_error(address: str) -> Iterator[None]:
    """Turn what obstore raises into an OSError. Raises SettingsError without obstore."""
    try:
        from obstore import exceptions
    except ImportError as error:
        place = parts_of(address)[0]
        raise SettingsError(
            f"{place} needs obstore, which is not installed. {with_extra('cloud')}"
        ) from error
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(2, "there is no such object", address) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(13, "permission denied", address) from error
    except exceptions.AlreadyExistsError as error:
        raise FileExistsError(17, "there is an object already", address) from error
    except exceptions.PreconditionError as error:
        raise ChangedError(address) from error
    except (exceptions.BaseError, ValueError) as error:
        raise _os_error(address, error) from error


def _os_error(address: str, error: Exception) -> OSError:
    # The first line says what happened, the others are of the library's own code.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    looked_for = _LOOKED_FOR.get(address.partition("://")[0])
    if looked_for and any(role in reason for role in _ROLES):
        reason = (
            f"no credentials were found: neither {looked_for} in the environment, nor a role of "
            "this machine"
        )
    elif status := _STATUS.search(reason):  # of a list, which has no errors of its own
        if status[1] == "404":
            return FileNotFoundError(2, "there is no such object", address)
        if int(status[1]) in _FORBIDDEN:
            return PermissionError(13, "permission denied", address)
    return OSError(5, reason.rstrip("."), address)
