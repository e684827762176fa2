"""Options from settings: every field of RunConfig is a flag, so that none can be forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import complete
from pipeline.config import RunConfig, takes

if TYPE_CHECKING:
    from collections.abc import Callable

# Given as an argument and as -o.
_ELSEWHERE = {"input", "output"}


def table_arguments(
    output: str = "A .parquet file, or a directory of them.",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the argument INPUT and the option -o; `output` is the help of the latter."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        option = click.option(
            "-o", "--output", metavar="PATH", shell_complete=complete.files, help=output
        )
        return click.argument(
            "inputs", nargs=-1, metavar="[INPUT]...", shell_complete=complete.files
        )(option(command))

    return add


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
                flag, metavar=takes(key).metavar, help=meaning, shell_complete=complete.values
            )
        command = option(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="YAML file of settings, named as the flags are.",
    )(command)


def load_config(
    config_file: Path | None, flags: dict[str, Any], defaults: dict[str, Any] | None = None
) -> RunConfig:
    """Build the settings from flags, environment and file. Raises SettingsError.

    `defaults` stand for settings that have none.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    return RunConfig.load(given, file=config_file, environ=os.environ, defaults=defaults)


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "default: none" if value is None else f"default: {value}"
