"""Write pipeline/library.py: the functions of the library with a keyword for each setting.

Part of `make docs`, since it is generated from RunConfig too. Written out, a signature is shown by
help(), by Tab in a notebook, by editors, and checked by mypy; what takes `**settings` is not.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline import config_values as values
from pipeline.config import RunConfig, takes

LIBRARY = Path(__file__).parent.parent / "pipeline" / "library.py"
PATHS = "str | Path"
# What may be given for a kind of setting, where that is more than what it becomes.
GIVEN = {
    values.Seconds: "float | str",
    values.MaxErrors: "int | str",
    values.Endpoints: "str | Sequence[str]",
    values.HeaderPlaces: "Mapping[str, str] | None",
    values.LabelMap: "Mapping[str, str] | None",
    values.Labels: "str | Sequence[str] | None",
    values.PromFile: PATHS,
}
# What the type says.
OBVIOUS = (values.SWITCH, values.COLUMN.words, values.PATH.words)
FIRST = ("input", "output", "text")

HEAD = '''"""The functions of the library, each setting a keyword.

Written by `make docs`, not by hand. What they do is in `api`; what settings are, in `config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline import api

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.result import RunResult

'''

CLASSIFY = '''@api.checked
{kind} {name}(
    table: Any,
    text: str = "text",
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
{parameters}
) -> Any:
    """Label a table in memory and return the same kind of table, with the result columns.

    `table` is a pandas or polars DataFrame, a polars LazyFrame, a pyarrow Table, a DuckDB relation,
    a datasets.Dataset, or anything else that offers the Arrow PyCapsule interface; a list of
    dicts; or texts alone, as a list or a Series: these give a table of label, score and error.
{more}
    Args:
        table: The table, or the texts.
        text: The column to classify.
        checkpoint: A directory that keeps what was done if the call is interrupted; the same call
            continues it. With another `threshold`, `label_map` or column name, or a higher `limit`,
            its answers are used again. Without, what was answered is kept in a temporary
            directory, which the error names.
        progress: Show how far the call is; left out, in a notebook only.
{arguments}

    Returns:
        The table with the columns `label`, `score` and `error` appended.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do.
    """
    __tracebackhide__ = True
    settings = api.settings_of(locals())
    return {call}(table, settings, checkpoint=checkpoint, progress=progress)
'''

RUN = '''@api.checked
def run(
    input: RunConfig | {paths} | Sequence[{paths}],  # noqa: A002 - the name of the setting
    output: {paths} | None = None,
    text: str = "text",
    *,
    progress: bool | None = None,
    observers: Sequence[Observer] = (),
    restart: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    ask_again: bool = False,
    update: bool = False,
{parameters}
) -> RunResult:
    """Label a table of files, as `classify run` does; the same call continues.

    Runs inside a running event loop too, in a thread of its own.

    Args:
{places}
        text: The column to classify.
        progress: Show how far the run is: a line below the cell in a notebook, elsewhere a bar or
            lines on stderr. Left out, it is shown in a notebook only.
        observers: Functions that get each event of the run (`pipeline.events`).
        restart: Discard an unfinished run but for its stored answers.
        overwrite: Replace a complete output.
        retry_failed: Ask again for the rows with an error, and for nothing else.
        ask_again: Discard stored answers, too.
        update: Label an input that has changed since: replace a complete output, and ask only for
            texts that it does not have.
{arguments}

    Returns:
        What came of it; shows itself in a notebook, and is a table to polars and DuckDB.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do. What was
            committed by then is kept.
    """
    __tracebackhide__ = True
    config = api.config_of(locals())
    return api.run(
        config,
        progress=progress,
        observers=observers,
        restart=restart,
        overwrite=overwrite,
        retry_failed=retry_failed,
        ask_again=ask_again,
        update=update,
    )
'''


FREE = """
    It does not block the event loop. The table is read in a thread: leave it as it is until this
    returns. An interrupt in a notebook is a cancellation, which does not wait for what is in
    flight: what was answered is kept.
"""


def given(annotation: Any) -> str:
    """Return what may be given for a setting, as source."""
    if annotation in GIVEN:
        return GIVEN[annotation]
    if get_origin(annotation) is Annotated:
        return given(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        found = {part: None for each in get_args(annotation) for part in given(each).split(" | ")}
        return " | ".join(sorted(found, key=lambda each: each == "None"))
    if get_origin(annotation) is Literal:
        return f"Literal[{', '.join(map(repr, get_args(annotation)))}]"
    if annotation is Path:
        return PATHS
    return "None" if annotation is type(None) else annotation.__name__


def parameters() -> str:
    """Return the keywords of all settings but the first ones."""
    hints = get_type_hints(RunConfig, include_extras=True)
    lines = []
    for name, field in RunConfig.model_fields.items():
        if name not in FIRST:
            lines.append(f"    {name}: {given(hints[name])} = {field.default!r},")
    return "\n".join(lines)


def sentence(name: str) -> str:
    """Return what a setting means."""
    meaning = RunConfig.model_fields[name].description or ""
    return meaning[0].upper() + meaning[1:]


def arguments() -> str:
    """Return a line on each of these keywords."""
    lines = []
    for name in RunConfig.model_fields:
        if name not in FIRST:
            words = f"{name}: {sentence(name)}."
            if takes(name).words not in OBVIOUS:
                words += f" Takes {takes(name).words}."
            lines += argument(words)
    return "\n".join(lines)


def argument(words: str) -> list[str]:
    """Return the lines of a docstring on one argument."""
    return textwrap.wrap(words, 100, initial_indent=" " * 8, subsequent_indent=" " * 12)


def library() -> str:
    """Return the module."""
    same = {"parameters": parameters(), "arguments": arguments()}
    blocking = CLASSIFY.format(kind="def", name="classify", more="", call="api.classify", **same)
    waiting = CLASSIFY.format(
        kind="async def", name="aclassify", more=FREE, call="await api.aclassify", **same
    )
    places = "\n".join(
        [
            *argument(f"input: {sentence('input')}. Or a RunConfig, which then has all settings."),
            *argument(f"output: {sentence('output')}."),
        ]
    )
    of_files = RUN.format(paths=PATHS, places=places, **same)
    source = f"{HEAD}\n\n{blocking}\n\n{waiting}\n\n{of_files}"
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(LIBRARY), "-"]
    done = subprocess.run(  # noqa: S603 - our own formatter
        command, input=source, capture_output=True, text=True, check=True
    )
    return done.stdout
