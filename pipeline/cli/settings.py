"""Options from settings: every field of RunConfig is a flag, so that none can be forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import complete
from pipeline.config import RunConfig, takes
from pipeline.system.remote import is_address

if TYPE_CHECKING:
    from collections.abc import Callable

# How the help groups the settings: first those that most jobs need.
GROUPS = {
    "Common settings": (
        *("config_file", "text", "endpoint", "model", "rate", "concurrency", "batch_size"),
        *("max_errors", "deadline", "limit"),
    ),
    "Endpoint": (
        *("dialect", "top_k", "function_to_apply", "truncate", "exact_scores", "server_cache"),
        *("bill_to", "token_file", "header_from", "allow_drift"),
    ),
    "Waits and limits": (
        *("timeout_s", "max_loading_s", "max_outage_s", "max_requests", "grace_s"),
    ),
    "Columns": (
        *("text_pair", "label_column", "score_column", "error_column", "predictions_column"),
    ),
    "Labels": ("label_map", "threshold", "unsure_label", "score_labels", "gold"),
    "Files": ("run_dir", "delimiter", "encoding", "csv_escape"),
    "Answers and records": ("dedup", "cache", "metrics_file"),
    "Workers": ("engine", "workers", "ray_address"),
}
# Given as an argument and as -o.
_ELSEWHERE = {"input", "output"}
# May be given several times, and hold several values with these characters between them, as they do
# in the environment.
_REPEATED = {"endpoint": " ", "header_from": ",", "label_map": ",", "score_labels": ","}


class SettingsCommand(click.Command):
    """A command whose help shows its own options first, then the settings in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        group_of = {key: group for group, keys in GROUPS.items() for key in keys}
        groups: dict[str, list[tuple[str, str]]] = {"Options": [], **{name: [] for name in GROUPS}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[group_of.get(parameter.name or "", "Options")].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def table_arguments(
    output: str = "A .parquet, .csv or .jsonl file, or a directory of Parquet files.",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the argument INPUT and the option -o; `output` is the help of the latter."""
    complete_file: Any = {"shell_complete": complete.files}
    argument = click.argument("input", nargs=-1, metavar="[INPUT]...", **complete_file)
    option = click.option("-o", "--output", metavar="PATH", help=output, **complete_file)
    return lambda command: argument(option(command))


def _place(given: str) -> Path | str:
    """A path, or an address, which as a path would lose a slash."""
    return given if is_address(given) else Path(given)


def run_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument OUTPUT of a command on a run, and the option for its run directory."""
    option = click.option(
        "--run-dir",
        metavar="PATH",
        type=_place,
        shell_complete=complete.files,
        help="State of the run, as for `classify run`.  [default: OUTPUT.run]",
    )
    argument = click.argument("output", type=_place, shell_complete=complete.files)
    return argument(option(command))


def setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for each setting. Values stay text: RunConfig alone judges them."""
    for key, field in reversed(RunConfig.model_fields.items()):
        if key in _ELSEWHERE:
            continue
        flag = "--" + key.replace("_", "-")
        meaning = f"{field.description} [{_default(field.default)}]"
        if field.annotation is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", default=None, help=meaning)
        else:
            option = click.option(
                flag,
                metavar=takes(key).metavar,
                help=meaning,
                shell_complete=complete.values,
                multiple=key in _REPEATED,
            )
        command = option(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="YAML file of settings.",
    )(command)


_EARLIER_RUN = ("restart", "ask_again", "overwrite", "retry_failed", "update")


def earlier_run(given: dict[str, Any]) -> dict[str, bool]:
    """Take out of what a command was given what is to be done about an earlier run."""
    return {flag: given.pop(flag) for flag in _EARLIER_RUN}


def load_config(given: dict[str, Any], defaults: dict[str, Any] | None = None) -> RunConfig:
    """Build the settings from what a command was given, environment and file.

    `defaults` stand for settings that have none. Raises SettingsError.
    """
    flags = {key: value for key, value in given.items() if value not in (None, ())}
    for key, between in _REPEATED.items():
        if isinstance(several := flags.get(key), tuple):
            flags[key] = between.join(several)
    file = flags.pop("config_file", None)
    return RunConfig.load(flags, file=file, environ=os.environ, defaults=defaults)


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default: none" if value is None else f"default: {value}"
