"""How the page words what it shows."""

from __future__ import annotations


def number(value: float | None, form: str = ",") -> str:
    """Return `value` in the given format, by default with commas; empty for None."""
    return "" if value is None else format(value, form)
