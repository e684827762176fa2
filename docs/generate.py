"""Write the tables of docs/reference from the code: `make docs`.

What stands between `<!-- name -->` and `<!-- /name -->` in a file there is written by the
function of that name; the rest of the file is written by hand. A test fails if a file differs from
what the code gives.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import click
from pydantic_core import PydanticUndefined

from pipeline import config_values as values
from pipeline import errors
from pipeline.cli import main
from pipeline.cli.settings import GROUPS, SettingsCommand
from pipeline.client.dialects import REGISTRY
from pipeline.config import RunConfig, takes
from pipeline.errors import ClassifyError, Interrupted
from pipeline.evaluation import Facts
from pipeline.job.status import Status
from pipeline.job.summary import Origin, Summary
from pipeline.meanings import Unit
from pipeline.plan.forecast import Forecast
from pipeline.probing import Estimate, Probe
from pipeline.rows import result_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pipeline.client.dialects.base import Limit

sys.path.insert(0, str(Path(__file__).parent))
from signatures import LIBRARY, library

REFERENCE = Path(__file__).parent / "reference"
# What most settings take: settings.md explains these by hand.
KINDS = {
    values.COUNT.words: "count",
    values.DURATION.words: "duration",
    values.COLUMN.words: "column",
    values.PATH.words: "path",
    values.PLACE.words: "path or address",
    values.SWITCH: "switch",
    ", ".join(("auto", *values.DIALECTS)): "auto, or a [dialect](dialects.md)",
}
# Options that mean the same for every command: commands.md has them once, by hand.
SHARED = ("output", "config_file", "as_json", "run_dir")


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Return a table; the cells of `head` are separated by ` | `."""
    lines = [f"| {head} |", "|" + "---|" * (head.count(" | ") + 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def settings() -> str:
    """Every setting, in the groups of the help."""
    groups: dict[str, Sequence[str]] = {"Input and output": ("input", "output"), **GROUPS}
    grouped = {name for names in groups.values() for name in names}
    groups["Others"] = [name for name in RunConfig.model_fields if name not in grouped]
    lists = {
        group: "\n".join(_setting(name) for name in names if name in RunConfig.model_fields)
        for group, names in groups.items()
    }
    return "\n\n".join(f"### {group}\n\n{lines}" for group, lines in lists.items() if lines)


def _setting(name: str) -> str:
    field = RunConfig.model_fields[name]
    told = ", ".join(filter(None, (_takes(name), _default(field.default))))
    return f"- `{name}` ({told}): {field.description}"


def _takes(name: str) -> str:
    words = takes(name).words
    return KINDS.get(words, words)


def decides() -> str:
    """Every setting that decides results."""
    names = ", ".join(f"`{name}`" for name in RunConfig.RESULT_SETTINGS)
    return textwrap.fill(f"{names}.", 100)


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"default `{value}`".lower()
    return f"default `{value:g}`" if isinstance(value, float) else f"default `{value}`"


def dialects() -> str:
    """Every dialect, with what can be asked in it."""
    asked = ("text_pair", "top_k", "function_to_apply", "truncate")
    rows = (
        (
            f"`{name}`",
            dialect.server,
            *(_honoured(dialect.limits.get(key)) for key in asked),
            "any number" if dialect.most_texts is None else f"{dialect.most_texts:,}",
        )
        for name, dialect in REGISTRY.items()
    )
    settings = " | ".join(f"`{key}`" for key in asked)
    return table(f"dialect | server | {settings} | texts in a request", rows)


def _honoured(limit: Limit | None) -> str:
    if limit is None:
        return "yes"
    values = [value for value in limit.honoured if value not in (None, False)]
    if values and values[0] is True:
        return "always"
    return " or ".join(f"`{value}`" for value in values) + " only" if values else "no"


def commands() -> str:
    """Every command with its options; the flags of settings are left to settings.md."""
    return "\n\n".join(_command(name) for name in main.list_commands(click.Context(main)))


def _command(name: str) -> str:
    command = main.get_command(click.Context(main, info_name="classify"), name)
    assert command is not None
    parts = [f"## classify {name}", *_prose(command.help or "")]
    settings = isinstance(command, SettingsCommand)
    left_out = {*SHARED, *(RunConfig.model_fields if settings else ())}
    options = [param for param in command.params if isinstance(param, click.Option)]
    if own := [option for option in options if option.name not in left_out]:
        # Options with the same help share a line.
        rows: dict[str, list[str]] = {}
        for names, does in map(_option, own):
            rows.setdefault(does, []).append(names)
        parts.append("\n".join(f"- {', '.join(rows[does])}: {does}" for does in rows))
    parts += _prose(command.epilog or "")
    return "\n\n".join(parts)


def _prose(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text, with lists of commands in fences.

    Exit codes are left out: exit-codes.md has them.
    """
    for paragraph in filter(None, inspect.cleandoc(text).split("\n\n")):
        kept = paragraph.startswith("\b")
        lines = paragraph.removeprefix("\b\n").splitlines()
        if lines[0].startswith("Exit codes: "):
            continue
        if kept and any(line.startswith("  ") for line in lines):
            if lines[0] != "Examples:":
                yield lines[0]
            code = inspect.cleandoc("\n".join(["", *lines[1:]]))
            yield f"```bash\n{code}\n```"
        else:
            words = " ".join(line.strip() for line in lines)
            yield textwrap.fill(words, 100, break_long_words=False, break_on_hyphens=False)


def _option(option: click.Option) -> tuple[str, str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if isinstance(option.type, click.Choice):
        names += " " + ", ".join(f"`{choice}`" for choice in option.type.choices)
    elif not option.is_flag:
        names += f" {option.make_metavar(click.Context(main))}"
    default = option.default
    if option.multiple and isinstance(default, (tuple, list)):
        default = " ".join(map(str, default))
    shown = f" Default: `{default}`." if option.show_default and default is not None else ""
    words = option.help or ""
    return names, words + ("" if words.endswith(".") or not shown else ".") + shown


def codes() -> str:
    """Every exit code, by the error of the tree that has it."""
    rows = {
        errors.EXIT_COMPLETE: (
            "",
            "Complete: every row has a label, or `max_errors` allows the rest.",
        )
    }
    rows[1] = ("", "A bug: please report it, with standard error.")
    found = [each for each in vars(errors).values() if inspect.isclass(each)]
    tree = [each for each in found if issubclass(each, ClassifyError) and each.exit_code > 1]
    for error in sorted(tree, key=lambda each: len(each.mro()), reverse=True):
        # The one nearest to the root stands for its kinds.
        rows[error.exit_code] = (_name(error), _summary(error))
    for number in (signal.SIGINT, signal.SIGTERM):
        words = f"Stopped by {number.name}; resumable."
        rows[Interrupted("", signal_number=number).exit_code] = (_name(Interrupted), words)
    return table("code | in Python | meaning", ((str(code), *rows[code]) for code in sorted(rows)))


def _name(error: type[ClassifyError]) -> str:
    return f"`{error.__name__}`"


def _summary(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def usage() -> str:
    """The kinds of wrong usage."""
    kinds = errors.UsageError.__subclasses__()
    return "\n".join(f"- {_name(kind)}: {_summary(kind)}" for kind in kinds)


def columns() -> str:
    """The columns that a run appends."""
    config = RunConfig(
        input="t.csv", output="t.parquet", endpoint="local", top_k="all", score_labels="LABEL"
    )
    holds = {
        "label": "the best label as `label_map` names it, `unsure` below the `threshold`, or null",
        "score": "its score, as the endpoint gave it, or null",
        "error": "why there is no label, or null",
        "score_LABEL": "score of that label, or null; one for each of `score_labels`",
        "predictions": "labels, best first; only with `top_k` over 1 or `all`",
    }
    settings = {name: f"{name}_column" for name in holds} | {"score_LABEL": "score_column"}
    fields = [(field.name, str(field.type)) for field in result_fields(config)]
    return table(
        "column | type | holds | renamed by",
        ((f"`{name}`", f"`{kind}`", holds[name], f"`{settings[name]}`") for name, kind in fields),
    )


def metadata() -> str:
    """What the output says of its origin."""
    return "\n".join(f"- `{name}`: {text}" for name, (_, text) in meanings_of(Origin).items())


def common() -> str:
    """The keys that several objects have."""
    return _listed(_common())


def summary() -> str:
    """The keys of a summary."""
    return _keys(Summary)


def evaluation() -> str:
    """The keys of the evaluation in a summary."""
    return _keys(Facts)


def plan() -> str:
    """The keys of a plan."""
    return _keys(Forecast)


def status() -> str:
    """The keys of a status."""
    return _keys(Status)


def probe() -> str:
    """The keys of a probe."""
    return _keys(Probe)


def estimate() -> str:
    """The keys of an estimate."""
    return _keys(Estimate)


def _common() -> dict[str, tuple[str, str]]:
    """Return the keys that mean the same in several objects."""
    found = [each for made in OBJECTS for each in meanings_of(made).items()]
    return dict(each for each in found if found.count(each) > 1)


def _keys(made: type) -> str:
    told = _common().items()
    return _listed(dict(each for each in meanings_of(made).items() if each not in told))


def _listed(meanings: dict[str, tuple[str, str]]) -> str:
    told = ((name, kind.replace(" or null", "?"), text) for name, (kind, text) in meanings.items())
    kinds = ((name, "" if kind == "count" else f" ({kind})", text) for name, kind, text in told)
    return "\n".join(f"- `{name}`{kind}: {text}" for name, kind, text in kinds)


def meanings_of(made: type) -> dict[str, tuple[str, str]]:
    """Return the kind and the meaning of each field of a dataclass that `repr` shows.

    Raises SystemExit if one has no meaning.
    """
    hints = get_type_hints(made, include_extras=True)
    found = {}
    for field in dataclasses.fields(made):
        if field.repr:
            words = [word for word in get_args(hints[field.name])[1:] if type(word) is str]
            if not words:
                raise SystemExit(f"{made}: say what {field.name} means, as the others do")
            found[field.name] = (_kind(hints[field.name]), words[0])
    return found


def _kind(hint: Any) -> str:
    """Word the kind of a JSON value by its type."""
    if get_origin(hint) is Annotated:
        units = [word for word in get_args(hint) if isinstance(word, Unit)]
        return units[0] if units else _kind(get_args(hint)[0])
    kinds = get_args(hint)
    if type(None) in kinds:
        return f"{_kind(next(kind for kind in kinds if kind is not type(None)))} or null"
    if hint == dict[str, int]:
        return "counts"
    names = {
        int: "count",
        str: "text",
        bool: "true or false",
        tuple: "list",
        list: "list",
        float: "number",
    }
    return names.get(get_origin(hint) or hint, "object")


OBJECTS = (Summary, Forecast, Probe, Estimate, Status)
MADE: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        settings,
        decides,
        dialects,
        commands,
        codes,
        usage,
        columns,
        metadata,
        common,
        summary,
        evaluation,
        plan,
        probe,
        estimate,
        status,
    )
}


def renewed(text: str) -> str:
    """Return a page with new tables. Raises KeyError for a mark that nothing makes."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n{MADE[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- (\w+) -->)\n.*?(<!-- /\2 -->)", block, text, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page of the reference, and the functions of the library, as they should be."""
    found = sorted(REFERENCE.glob("*.md"))
    made = {page: renewed(page.read_text(encoding="utf-8")) for page in found}
    return {**made, LIBRARY: library()}


if __name__ == "__main__":
    for page, text in pages().items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(REFERENCE.parents[1])} is new")
