"""How the command line speaks: JSON and results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click
import orjson

from pipeline.errors import UsageError
from pipeline.observers.progress import PlainProgress, TerminalProgress

if TYPE_CHECKING:
    from pipeline.errors import ClassifyError

# So many counts are worded one by one.
MOST_COUNTS = 10


def progress_for(stream: IO[str]) -> PlainProgress | TerminalProgress:
    """A bar where somebody looks on, plain lines elsewhere."""
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    click.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())


def fail(error: ClassifyError, *, as_json: bool) -> NoReturn:
    """Say what went wrong, and end with the exit code of the error."""
    click.secho(str(error), fg="red", err=True)
    if as_json:
        state = "refused" if isinstance(error, UsageError) else "stopped"
        unbegun = {"state": state, "exit_code": error.exit_code, "message": str(error)}
        print_json(error.summary or unbegun)
    sys.exit(error.exit_code)


def counts(found: dict[str, int]) -> str:
    """Word counts by name, the largest first and the smallest of many together."""
    ordered = sorted(found.items(), key=lambda entry: -entry[1])
    words = [f"{name} {count:,}" for name, count in ordered[:MOST_COUNTS]]
    if rest := ordered[MOST_COUNTS:]:
        words.append(f"{len(rest):,} others {sum(count for _, count in rest):,}")
    return ", ".join(words)
