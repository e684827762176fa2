"""Input files at an address: on object storage, or behind a web server."""

from __future__ import annotations

import glob
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.addresses import without_query
from pipeline.errors import InputError
from pipeline.producer import files, folders
from pipeline.producer.input_table import Signature
from pipeline.system import remote

if TYPE_CHECKING:
    from collections.abc import Sequence

_WEB = ("http://", "https://")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def signature(address: str) -> Signature:
    """Return what its storage says of an object. Raises InputError."""
    try:
        return _signature(remote.facts(address))
    except OSError as error:
        raise files.unreadable(address, error) from error


def open_object(address: str, settled: Signature | None) -> pa.NativeFile:
    """Open an object for reading, if it is still the one that was settled. Raises OSError."""
    file = remote.open_object(address)
    if settled is not None and _signature(file.facts) != settled:
        raise remote.ChangedError(f"{address} is another object by now")
    return pa.PythonFile(file, "r")


def _signature(found: remote.Facts) -> Signature:
    modified_us = (found.modified - _EPOCH) // (datetime.resolution)
    return Signature(found.size_bytes, 1_000 * modified_us, 0, 0, found.etag)


def expand(name: str) -> list[str]:
    """Return the addresses of the tables that are named: an object, a glob, or all below a prefix.

    What is passed over in a directory is here, too. Raises InputError, also for an address that
    holds a secret: addresses are recorded with the run.
    """
    if "@" in name.partition("://")[2].partition("/")[0] and not name.startswith("abfs"):
        raise InputError(
            "An address of the input holds a user name or a password.",
            "Leave them out: credentials belong in the environment.",
        )
    if "?" in name.partition("://")[2].partition("/")[2] and name.startswith(_WEB):
        raise InputError(
            f"The input {without_query(name)} is given with a query (?...), which may hold a key, "
            "and addresses are recorded with the run.",
            "Give the object's own address, with the credentials in the environment, or download "
            "it first.",
        )
    if name.startswith(_WEB) or not (glob.has_magic(name) or _is_prefix(name)):
        # A web server cannot be asked what it has.
        if not files.is_table_name(name):
            raise files.unknown_kind(name)
        return [name]
    pattern = name.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(pattern) if glob.has_magic(part)), len(pattern))
    try:
        found = remote.listed("/".join(pattern[:fixed]))
    except OSError as error:
        raise files.unreadable(name, error) from error
    tables = [each for each in found if _is_named(each.split("/"), pattern, fixed)]
    if not tables:
        raise files.no_table(name)
    folders.check_marks(tables, found)
    return tables


def _is_prefix(name: str) -> bool:
    return name.endswith("/") or not files.is_table_name(name)


def _is_named(parts: Sequence[str], pattern: Sequence[str], fixed: int) -> bool:
    """Return True for a table that a glob matches, or that lies below what it matches."""
    if not files.is_table_name(parts[-1]):
        return False
    named = {part for part in pattern if not glob.has_magic(part)}
    below = [part for part in parts[fixed:] if part not in named]
    if any(part.startswith((".", "_")) for part in below):
        return False
    if any(part.endswith(files.RUN_SUFFIX) for part in below[:-1]):
        return False
    wanted = [part for part in pattern[fixed:] if part]
    return any(_matches(parts[fixed:end], wanted) for end in range(fixed, len(parts) + 1))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
