"""The page: one HTML file that loads nothing. All that its charts show is also there as text."""

from __future__ import annotations

import base64
import hashlib
import time
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError, UsageError
from pipeline.evaluation.words import summary
from pipeline.foreign import visible
from pipeline.observers.words import against_plan, clock, duration, stored
from pipeline.report import charts, quality
from pipeline.report.facts import gather
from pipeline.report.history import MOST_WAITS
from pipeline.report.quality import interval, percent
from pipeline.report.text import number
from pipeline.store.disk import replace_file
from pipeline.store.ownership import may_replace
from pipeline.version import __version__
from pipeline.wording import counted, with_extra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment

    from pipeline.job.status import Status
    from pipeline.report.facts import Facts

# How a report begins, and no other page.
_MARK = b"""<!doctype html>
<html lang="en">
<head>
<meta name="generator" content="classify-pipeline">"""
_SUFFIXES = (".html", ".htm")


def write_report(
    output: Path | str,
    page: Path | None = None,
    run_dir: Path | str | None = None,
    columns: Sequence[str] = (),
    gold: str | None = None,
    label_map: Mapping[str, str] | None = None,
) -> Path:
    """Write the report on the run of `output`, to `OUTPUT.html` by default, and return its path.

    That of an output at an address is in the current directory. `output` may also be a run
    directory, such as the checkpoint of a notebook. `columns` are shown beside the text of rows.
    Against the true labels of the column `gold` the labels of a complete run are measured, as by
    `evaluate`, to which `label_map` is given. The page appears by one rename. Raises UsageError if
    the extra `report` is not installed, there is no run, its rows cannot be read, it has no such
    column, or the page cannot be written.
    """
    content, _ = draw(output, run_dir, columns, gold, label_map)
    if page is None:
        path = Path(output)
        page = path.with_name(path.name + ".html") if path == output else Path(path.name + ".html")
    if page.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{page}: the report is a page.", "Give a path that ends with .html.")
    if page.is_dir():
        raise OutputError(f"{page}: is a directory.", "Give the path of a file for the report.")
    if not may_replace(page, _MARK):
        raise OutputError(
            f"{page} is not replaced, since it is not a report.",
            "Move it away, or give another path.",
        )
    try:
        replace_file(page, content)
    except OSError as error:
        raise OutputError(
            f"{page}: cannot write the report: {error.strerror}.", "Choose another place."
        ) from None
    return page


def draw(
    output: Path | str,
    run_dir: Path | str | None = None,
    columns: Sequence[str] = (),
    gold: str | None = None,
    label_map: Mapping[str, str] | None = None,
) -> tuple[bytes, Status]:
    """Return the page that `write_report` writes, and how far the run is."""
    _check_installed()
    facts = gather(output, run_dir, columns, gold, label_map)
    content = _render(facts, output)
    assert content.startswith(_MARK), "the report would not be known as one"
    return content, facts.status


def _check_installed() -> None:
    try:
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "classify report needs packages that are not installed.", with_extra("report")
        ) from error


def _render(facts: Facts, output: Path | str) -> bytes:
    from markupsafe import Markup

    files = resources.files("pipeline.report")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    found = facts.found
    page = _environment().get_template("page.html.jinja")
    rendered = page.render(
        facts=facts,
        name=Path(output).name,
        bins=[f"{low:g} to {high:g}" for low, high in pairwise(found.edges)] if found else [],
        places={label.name: i for i, label in enumerate(found.labels)} if found else {},
        charts=charts,
        quality=facts.quality,
        charts_of_quality=quality,
        most_waits=MOST_WAITS,
        now=time.time(),
        version=__version__,
        # Files of our own, which stand as they are: the policy allows them by their digests.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'",
    )
    # On the whole page, so that no text can be forgotten.
    return visible(rendered).encode() + b"\n"


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (against_plan, clock, counted, duration, interval, number, percent, stored, summary)
    made.filters.update({each.__name__: each for each in words})
    return made


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
