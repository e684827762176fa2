"""Failpoints: named places where a test ends the process at once, as a kill would.

`PIPELINE_FAILPOINT=parts.renamed` ends it the first time that this place is passed,
`PIPELINE_FAILPOINT=parts.renamed:3` the third time. Nothing is flushed, closed or cleaned up, and
one line on stderr tells which place it was and when. Without the variable a failpoint costs one
comparison; there is one at each step of each commit, and none inside a loop over rows.
"""

from __future__ import annotations

import os
import time

VARIABLE = "PIPELINE_FAILPOINT"
EXIT_CODE = 137  # what a shell shows for SIGKILL

# The steps of the verbs `create` and `put` on a disk, and of a growing file.
CREATE_STEPS = ("written", "fsynced", "linked", "created")
PUT_STEPS = ("written", "fsynced", "renamed", "put")
APPEND_STEPS = ("made", "before", "torn", "written", "synced")

NAMES = frozenset(
    [
        *(f"log.{step}" for step in CREATE_STEPS),
        *(f"{what}.{step}" for what in ("parts", "summary") for step in PUT_STEPS),
        *(f"journal.{step}" for step in APPEND_STEPS),
        "parts.forgotten",
        "parts.orphan removed",
        "begin.abandoned",
        "begin.cleared",
        "renew.begun",
        "draft.begun",
        "draft.part taken",
        "assembly.begun",
        "assembly.row group",
        "assembly.written",
        "output.fsynced",
        "output.renamed",
        "output.durable",
        "output.directory fsynced",
        "output.moved aside",
        "output.directory renamed",
        "output.directory durable",
        "finish.identified",
        "finish.assembled",
        "finish.complete",
        "clear.parts removed",
        "finish.cleared",
    ]
)

_wanted, _, _passes = os.environ.get(VARIABLE, "").partition(":")
_left = int(_passes or 1)
if _wanted and _wanted not in NAMES:
    raise SystemExit(f"{VARIABLE}: there is no failpoint {_wanted!r}.")


def reached(name: str) -> bool:
    """Return True if the process is to end here; for a place that spoils something first."""
    global _left  # noqa: PLW0603 - counts the passes of this process
    if not _wanted:
        return False
    assert name in NAMES, name
    _left -= name == _wanted
    return name == _wanted and _left == 0


def end(name: str) -> None:
    """End the process without any clean-up."""
    os.write(2, f"failpoint {name} at {time.monotonic():.6f}\n".encode())
    os._exit(EXIT_CODE)


def failpoint(name: str) -> None:
    """End the process here, if `name` is the failpoint that is set."""
    if _wanted and reached(name):
        end(name)
