"""How the page words what it shows."""

from __future__ import annotations

from datetime import datetime


def number(value: float | None, form: str = ",") -> str:
    """Return `value` in the given format, by default with commas; empty for None."""
    return "" if value is None else format(value, form)


def clock(at: float) -> str:
    """Return an instant (seconds since the epoch) in the time zone of this machine."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
