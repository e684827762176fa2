"""Input files at an address: on object storage, or behind a web server."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.addresses import names_secret, without_secrets
from pipeline.errors import InputError
from pipeline.producer import files, folders
from pipeline.producer.input_table import Signature
from pipeline.system import globs, remote

if TYPE_CHECKING:
    from collections.abc import Sequence

_WEB = ("http", "https")
_AZURE = ("abfs", "abfss")


def signature(address: str) -> Signature:
    """Return what its storage says of an object. Raises InputError."""
    try:
        return _signature(remote.facts(address))
    except OSError as error:
        raise files.unreadable(address, error) from error


def open_object(address: str, known: Signature | None) -> pa.NativeFile:
    """Open an object, of which nothing is read but what is known of it. Raises OSError."""
    return pa.PythonFile(remote.open_object(address, known and _facts(known)), "r")


def content_etag(signature: Signature) -> str | None:
    """Return the ETag if no other content can have it."""
    found = _facts(signature)
    return found.etag if found.is_certain else None


def _signature(found: remote.Facts) -> Signature:
    return Signature(found.size_bytes, 1_000 * found.modified_us, 0, 0, found.etag)


def _facts(of: Signature) -> remote.Facts:
    return remote.Facts(of.size_bytes, of.mtime_ns // 1_000, of.etag)


def expand(name: str) -> tuple[Path, dict[str, Signature]]:
    """Return the folder in which folders begin, and the tables that are named.

    As on disk, the name is that of an object, or of a folder; only if there is neither, a glob.
    What is passed over in a directory is here, too. Raises InputError, also for an address that
    holds a secret: addresses are recorded with the run.
    """
    scheme, _, rest = name.partition("://")
    name = f"{scheme.lower()}://{rest}"
    _check(name)
    is_web = scheme.lower() in _WEB
    missing = None
    try:
        if files.is_table_name(name):
            try:
                return Path(name), {name: _signature(remote.facts(name))}
            except FileNotFoundError as error:
                missing = error
        if is_web:  # it cannot be asked what it has
            raise missing or files.unknown_kind(name)
        pattern = name.rstrip("/").split("/")
        magic, fixed = globs.fixed_parts(pattern), len(pattern)
        found = remote.listed("/".join(pattern))
        if magic < fixed and not found:
            fixed = magic
            found = remote.listed("/".join(pattern[:fixed]))
        if not found and magic == len(pattern) and missing:
            raise missing
    except OSError as error:
        raise files.unreadable(name, error) from error
    tables = {
        each: _signature(facts)
        for each, facts in found.items()
        if _is_named(each.split("/"), pattern, fixed)
    }
    if not tables:
        raise files.no_table(name)
    folders.check_marks(list(tables), list(found))
    return Path(*pattern[:fixed]), tables


def _check(name: str) -> None:
    """Raise InputError for what is no whole address, or holds a secret."""
    scheme, _, rest = name.partition("://")
    place, _, key = rest.partition("/")
    is_web = scheme in _WEB
    # A password may hold a slash, so that it seems to be of the path.
    user_in = rest if is_web else place if scheme not in _AZURE else ""
    if "@" in user_in or (":" in place and not is_web):
        raise InputError(
            f"The input {without_secrets(name)} is given with a user name or a password, and "
            "addresses are recorded with the run.",
            "Leave them out: credentials belong in the environment. Write an @ in the path of a "
            "web address as %40.",
        )
    # The key of an object may hold a question mark, as that of a page that was stored.
    if "?" in (rest if is_web else place) or names_secret(key.partition("?")[2]):
        raise InputError(
            f"The input {without_secrets(name)} is given with a query (?...), which may hold a "
            "key, and addresses are recorded with the run.",
            "Give the object's own address, with the credentials in the environment, or download "
            "it first.",
        )
    if not place or (glob.has_magic(place) and not is_web):
        raise InputError(
            f"{name} names no bucket or host.", "Write it as s3://bucket/key or https://host/path."
        )
    if "//" in f"/{key}":
        raise InputError(
            f"{name} has two slashes in a row, and no object with such a name can be read.",
            "Leave one out, or rename the object.",
        )


def _is_named(parts: Sequence[str], pattern: Sequence[str], fixed: int) -> bool:
    """Return True for a table that a glob matches, or that lies below what it matches."""
    return files.is_table_name(parts[-1]) and globs.is_named(parts, pattern, fixed)
