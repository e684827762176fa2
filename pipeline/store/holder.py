"""Who holds a lease."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass

from pipeline.errors import OutputBusy

_FIX = "Wait for it, stop it, or choose another output."


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as far as is known; `since` is in seconds since the epoch."""

    pid: int | None = None
    host: str | None = None
    since: float | None = None

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(os.getpid(), socket.gethostname(), round(time.time(), 3))

    @classmethod
    def parsed(cls, content: bytes) -> Holder | None:
        """Read it from what a lease tells; None if that tells of nobody."""
        try:
            found = json.loads(content)
            return cls(int(found["pid"]), str(found["host"]), float(found["since"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None

    def __str__(self) -> str:
        if self.pid is None:
            return "its process is not known"
        return f"process {self.pid} on {self.host}"


def busy(place: object, holder: Holder, how: str = "") -> OutputBusy:
    """Return the error of an output that another run works on; `how`, if not by a lock."""
    return OutputBusy(f"{place}: another run holds this output ({holder}{how}).", _FIX)


def taken_over(place: object, how: object) -> OutputBusy:
    """Return the error of a run that lost its output to another one; `how` is known."""
    return OutputBusy(
        f"{place}: another run took this output over ({how}).",
        "Wait for it, or stop it; then run the same command again.",
    )
