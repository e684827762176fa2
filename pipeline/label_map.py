"""`label_map` and `score_labels`: what labels are called, as people write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parsed(given: Any) -> dict[str, str] | None:
    """Read the names of labels: a mapping, or texts such as `LABEL_0=negative`.

    A single text may hold several, with commas between them; in a list each is one. Raises
    ValueError for anything else, and for a label that is given two names.
    """
    names: dict[str, str] = {}
    for pair in given.items() if isinstance(given, Mapping) else map(_pair, _texts(given)):
        label, name = map(_word, pair)
        if names.setdefault(label, name) != name:
            raise ValueError(f"{label} is given two names")
    return names or None


def labels(given: Any) -> tuple[str, ...] | None:
    """Read labels: a list, or a text with commas between them. Raises ValueError."""
    return tuple(dict.fromkeys(map(_word, _texts(given)))) or None


def _texts(given: Any) -> list[Any]:
    if given is None:
        return []
    if isinstance(given, str):  # as a flag or an environment variable, which holds no list
        return [text.strip() for text in given.split(",")]
    if not isinstance(given, list | tuple):
        raise ValueError("neither a text nor a list")  # noqa: TRY004 - pydantic words this kind
    return list(given)


def _pair(text: Any) -> tuple[str, str]:
    label, _, name = _word(text).partition("=")
    return label, name


def _word(value: Any) -> str:
    """Return a text; numbers are what YAML makes of labels such as 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError("neither a text nor a whole number")
    return str(value)
