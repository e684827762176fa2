"""How the command line speaks: JSON and results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click
import orjson

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.errors import ClassifyError


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
