"""What the shell is offered for a value: files, the words that a setting takes, columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from click.shell_completion import CompletionItem

from pipeline.config import RunConfig, takes

if TYPE_CHECKING:
    import click


def files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the name of a file or a directory."""
    return [CompletionItem(incomplete, type="file")]


def values(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer values of the setting that a flag is of."""
    key = str(param.name)
    if takes(key).metavar == "PATH":
        return files(ctx, param, incomplete)
    words = _columns(ctx) if key in ("text", "text_pair") else _words(key)
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _words(key: str) -> list[str]:
    if key == "endpoint":
        return ["local", "hf"]
    if key == "model":
        return ["sentiment", "language"]
    return list(_literals(RunConfig.model_fields[key].annotation))


def _literals(kind: Any) -> list[str]:
    """The words among the values that a type takes: those of its Literals."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for part in get_args(kind) for word in _literals(part)]


def _columns(ctx: click.Context) -> list[str]:
    """The columns of the first input that is given before, where it is a plain file."""
    # A flag that lacks its value yet ends the parsing before arguments get their names.
    inputs = [*(ctx.params.get("input") or ()), *ctx.args]
    path = Path(next(iter(inputs), ""))
    try:
        if path.suffix in (".csv", ".tsv"):
            with path.open(newline="", encoding="utf-8-sig") as file:
                delimiter = ctx.params.get("delimiter") or ("," if path.suffix == ".csv" else "\t")
                return next(csv.reader(file, delimiter=delimiter), [])
        if path.suffix in (".jsonl", ".ndjson"):
            with path.open("rb") as lines:
                return list(json.loads(lines.readline()))
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path.absolute()).names)
    except Exception:  # noqa: BLE001  (whatever is wrong with it, a completion cannot say)
        return []
    return []
