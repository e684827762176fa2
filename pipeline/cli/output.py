"""How the command line speaks: JSON and results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
import orjson

from pipeline.errors import ClassifyError
from pipeline.events import RunEnded, Waiting
from pipeline.foreign import safe, safe_json
from pipeline.observers.progress import JsonProgress
from pipeline.observers.words import EMPTY_LABEL, Wait
from pipeline.system import means
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.events import Event
    from pipeline.observers.progress import Progress

# So many counts are worded one by one.
MOST_COUNTS = 10


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    click.echo(safe_json(orjson.dumps(content, option=orjson.OPT_INDENT_2)))


def say(text: str, colour: str | None = None, *, err: bool = False) -> None:
    """Print text that may repeat what a server or a file says; it does nothing to a terminal."""
    click.secho(safe(text), fg=colour, err=err)


@contextmanager
def failing(*, as_json: bool = False, progress: Progress | None = None) -> Iterator[None]:
    """Say what went wrong, as `progress` speaks, and end with the exit code of the error."""
    try:
        with means.told():
            yield
    except ClassifyError as error:
        ended = RunEnded.unbegun(error)
        if isinstance(progress, JsonProgress):
            progress(ended)
        else:
            say(str(error), "red", err=True)
        if as_json:
            print_json(error.summary or asdict(ended))
        sys.exit(error.exit_code)


class WaitPrinter:
    """Says on stderr what a probe waits for."""

    def __init__(self) -> None:
        self._wait: Wait | None = None

    def __call__(self, event: Event) -> None:
        """Print a line each time that the endpoint says so."""
        if isinstance(event, Waiting):
            now = time.monotonic()
            self._wait = Wait.of(event, now, self._wait)
            say(f"waiting: {self._wait.announcement(now)}", err=True)


def shares(found: dict[str, int]) -> str:
    """Word counts by name with their shares, the largest first."""
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda entry: -entry[1])[:MOST_COUNTS]
    words = [f"{name or EMPTY_LABEL} {count:,} ({count / total:.0%})" for name, count in ordered]
    if (rest := len(found) - len(ordered)) > 0:
        words.append(counted(rest, "other"))
    return ", ".join(words)


def counts(found: dict[str, int]) -> str:
    """Word counts by name, the largest first; the smallest of many are summed up."""
    ordered = sorted(found.items(), key=lambda entry: -entry[1])
    words = [f"{name or EMPTY_LABEL} {count:,}" for name, count in ordered[:MOST_COUNTS]]
    if rest := ordered[MOST_COUNTS:]:
        words.append(f"{counted(len(rest), 'other')} {sum(count for _, count in rest):,}")
    return ", ".join(words)
