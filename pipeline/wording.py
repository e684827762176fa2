"""How a setting is named to its reader: `--label-column` in a terminal, `label_column=` in Python.

Errors and notices are written once, with `setting(...)` where they name one; they are shown in
the words of this process's reader. The command line says, for as long as it runs, that this is
somebody at a terminal; anywhere else it is somebody who writes Python.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
import unicodedata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

from pipeline.foreign import safe

_MARKED = re.compile("\u27e6(\\w+)(?:=([^\u27e7]*))?\u27e7")
_LONGEST_NAME, _MOST_NAMES = 60, 20
_SAME_COMMAND = re.compile("[Rr]un the same command again( later|)( to continue|)")

_reader: Literal["python", "terminal"] = "python"


def setting(name: str, value: str | None = None) -> str:
    """Mark a setting, with a value to give it, inside the words of an error or a notice."""
    return f"\u27e6{name}\u27e7" if value is None else f"\u27e6{name}={value}\u27e7"


def counted(count: float, one: str, more: str | None = None) -> str:
    """Word a number of things: "1 request", "2,000 requests"."""
    return f"{count:,.0f} {one if count == 1 else more or one + 's'}"


def sentence(words: str) -> str:
    """End words with one full stop."""
    return words.rstrip(". ") + "."


def reason(error: Exception) -> str:
    """Return why something failed: without the number and the path that an OSError has before."""
    words = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def short(name: str) -> str:
    """Return a name, or its beginning: where a header is missing, a row's text is taken for one."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def listed(names: Sequence[str]) -> str:
    """List names, the first of many."""
    more = len(names) - _MOST_NAMES
    rest = [counted(more, "other")] if more > 0 else []
    return ", ".join([*map(short, names[:_MOST_NAMES]), *rest])


def with_extra(extra: str) -> str:
    """Say how an extra of this package is installed.

    The package is installed already, from wherever, so pip looks for the additions alone. Which
    `pip` a shell would find is unknown, so this names the interpreter.
    """
    python = shlex.quote(sys.executable or "python")
    return f"Install it with: {python} -m pip install 'classify-pipeline[{extra}]'"


def is_uri(path: str) -> bool:
    """Return True for an address such as `s3://bucket/key`, also as pathlib writes it (`s3:/`)."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path) is not None


def alike(name: str, names: Iterable[str]) -> str:
    """Say which of `names` is meant: one that only looks the same, or the nearest; "" if none."""
    looks = {other: _look(other) for other in names if other != name}
    found = next((other for other, look in looks.items() if look == _look(name)), None)
    if found is not None:
        return f" It has {short(found)!a}, which looks alike and is not {short(name)!a}."
    folded = {look.casefold(): other for other, look in looks.items()}
    near = difflib.get_close_matches(_look(name).casefold(), folded, 1)
    return f" Did you mean {short(folded[near[0]])!r}?" if near else ""


def _look(name: str) -> str:
    # NFKC makes a no-break space a space, too.
    return " ".join(unicodedata.normalize("NFKC", name).replace("\u200b", "").split())


def shown(words: str) -> str:
    """Return the words with each marked setting as the reader of this process writes it.

    Whatever they repeat of a server or a file, they hold no secret and do nothing to a terminal.
    """
    marked = _flag if _reader == "terminal" else _keyword
    return safe(_MARKED.sub(marked, words))


def as_call(fix: str, checkpoint: str, *, kept: bool) -> str:
    """Return the fix of a run as that of `pipeline.classify`, which is no command to run again.

    `checkpoint` is one that the call has to be given; empty if it was. Without anything `kept` it
    has nothing to continue.
    """
    place = f" with {setting('checkpoint', checkpoint)}" if checkpoint and kept else ""

    def call(found: re.Match[str]) -> str:
        make = "Make" if found[0].startswith("Run") else "make"
        return f"{make} the same call again{place}{found[1]}{found[2] if kept else ''}"

    fix, count = _SAME_COMMAND.subn(call, fix)
    if place and not count:
        fix += f" What was answered is kept: the same call{place} continues."
    return fix.strip()


def speak_to(reader: Literal["python", "terminal"]) -> None:
    """Choose the reader of this process; the command line does, and takes it back at its end."""
    global _reader  # noqa: PLW0603 - one process has one reader
    _reader = reader


def _flag(marked: re.Match[str]) -> str:
    name, value = marked.groups()
    flag = "--" + name.replace("_", "-")
    return flag if value in (None, "True") else f"{flag} {value}"


def _keyword(marked: re.Match[str]) -> str:
    name, value = marked.groups()
    if value is None:
        return f"`{name}`"
    plain = value in ("True", "False", "None") or value.replace(".", "", 1).isdigit()
    return f"`{name}={value}`" if plain else f'`{name}="{value}"`'
