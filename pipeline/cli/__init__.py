"""The command line: parse, build a RunConfig, call the API, print. Nothing else."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

import click
from click.shell_completion import CompletionItem

from pipeline.errors import StoppedEarly
from pipeline.system import streams
from pipeline.version import __version__
from pipeline.wording import speak_to

_COMMANDS = {
    "run": "Label a table: the job.",
    "try": "Label a text, and show its label.",
    "probe": "Try the endpoint with a few requests, and suggest a fix for each problem.",
    "plan": "Estimate what a run would send, how long it takes and what it costs.",
    "status": "Show how far a run is.",
    "report": "Write a page on a run: labels, scores, errors and speed.",
    "evaluate": "Measure labels against a column of true ones.",
    "serve": "Serve the embedded models over HTTP, with faults on demand.",
    "completion": "Print a shell completion script for bash, zsh or fish.",
}


# Where a command is that cannot have the name of its module.
_HOMES = {"try": ("trying", "try_")}


class _LazyGroup(click.Group):
    """Loads a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        home, name = _HOMES.get(cmd_name, (cmd_name, cmd_name))
        command: click.Command = getattr(importlib.import_module(f"pipeline.cli.{home}"), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Offer the commands without loading them."""
        commands = [
            CompletionItem(name, help=meaning)
            for name, meaning in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="classify")
def main(**_: Any) -> None:
    """Label every row of a table with a text-classification model behind an HTTP endpoint.

    \b
    Try it without an account:
      classify try "I love it" --endpoint local
      classify run reviews.csv --text review --endpoint local -o labelled.parquet
    \b
    A job, step by step; with a model of the Hugging Face Hub, HF_TOKEN holds your token:
      classify probe reviews.csv --text review --model org/name -o labelled.parquet
      classify plan reviews.csv --text review --model org/name -o labelled.parquet
      classify run reviews.csv --text review --model org/name -o labelled.parquet
      classify status labelled.parquet     from another terminal, while it runs
      classify report labelled.parquet     afterwards: a page to look at
      classify evaluate labelled.parquet --gold COLUMN     if true labels are known

    The same `classify run` again continues what was interrupted, and does nothing once all is done.
    `classify COMMAND --help` tells more, with examples.
    """
    speak_to("terminal")
    click.get_current_context().call_on_close(partial(speak_to, "python"))


def console(prog_name: str | None = None) -> None:
    """The installed command: `main` in a process of its own, whose signals stay its own to the end.

    Restored when the command is over, a signal could still change the exit code while the
    interpreter ends.
    """
    streams.settle()
    try:
        main(prog_name=prog_name, obj=True)
    except SystemExit as ended:
        if (error := streams.lost()) is not None:
            click.echo(f"Standard output could not be written: {error.strerror}.", err=True)
            # Of a run, what counts is the output.
            if not ended.code and sys.argv[1:2] != ["run"]:
                sys.exit(StoppedEarly.exit_code)
        raise
