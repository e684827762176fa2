"""Which addresses a name means: an object, all below a prefix, or what a glob matches."""

from __future__ import annotations

import glob
import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# How the name of a run directory ends: below a folder or a glob of an input it is passed over.
RUN_SUFFIX = ".run"
_SECURE = {"abfss": "abfs"}  # two names of one scheme
_CLASS, _DIGIT = re.compile(r"\[[^]]+\]"), re.compile(r"\d")


def fixed_parts(pattern: Sequence[str]) -> int:
    """Return how many parts of a name come before the first with a wildcard."""
    return next((i for i, part in enumerate(pattern) if glob.has_magic(part)), len(pattern))


def is_named(parts: Sequence[str], pattern: Sequence[str], fixed: int) -> bool:
    """Return True for an address that a glob matches, or that lies below what it matches.

    Its first `fixed` parts are those of the pattern, as they are. Of the others, those are passed
    over that are hidden or of a run, unless the pattern has them.
    """
    below = parts[fixed:]
    if _has_passed_over(below, pattern):
        return False
    wanted = [part for part in pattern[fixed:] if part]
    return any(_matches(below[:end], wanted) for end in range(len(below) + 1))


def overlap(name: str, address: str, table: str) -> bool:
    """Return True if a name means a table at or below an address, or something that holds it.

    `table` is that address if it is one of a table; or else one of its tables, of which others may
    have other digits in the last part of their names.
    """
    if "://" not in name or "://" not in address:
        return False
    pattern, place, parts = (_parts(each) for each in (name, address, table))
    magic = fixed_parts(pattern)
    if pattern[:magic][: len(place)] == place:
        return True
    # An object may have exactly this name: a wildcard is a character like any other there.
    for fixed in (magic, len(pattern)):
        if parts[:fixed] == pattern[:fixed] and is_named(parts, pattern, fixed):
            return True
    if parts == place or parts[:magic] != pattern[:magic]:
        return False
    # A class of characters may stand for digits, too.
    any_digits = [*pattern[magic:-1], _DIGIT.sub("0", _CLASS.sub("?", pattern[-1]))]
    return _matches(parts[magic:], any_digits) and not _has_passed_over(parts[magic:], pattern)


def _has_passed_over(below: Sequence[str], pattern: Sequence[str]) -> bool:
    return any(
        part not in pattern and (part.startswith((".", "_")) or part.endswith(RUN_SUFFIX))
        for part in below
    )


def _parts(address: str) -> list[str]:
    scheme, _, rest = address.rstrip("/").partition("://")
    scheme = scheme.lower()
    return f"{_SECURE.get(scheme, scheme)}://{rest}".split("/")


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
