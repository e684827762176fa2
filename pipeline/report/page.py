"""The page: one HTML file that loads nothing, and says all in text that the charts show."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from contextlib import suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError
from pipeline.report import sections
from pipeline.report.charts import check_installed
from pipeline.report.facts import gather
from pipeline.report.html import document, element, raw
from pipeline.version import __version__

if TYPE_CHECKING:
    from xml.etree import ElementTree as ET

    from pipeline.report.facts import Facts

_SUFFIXES = (".html", ".htm")


def write_report(output: Path, page: Path | None = None) -> Path:
    """Write the report on the run of `output` and return its path, by default `OUTPUT.html`.

    `output` may also be a run directory, such as the checkpoint of a notebook. The page appears by
    one rename. Raises UsageError if the charting library is missing, there is no run, its rows
    cannot be read, or the page cannot be written.
    """
    check_installed()
    facts = gather(output)
    page = page or output.with_name(output.name + ".html")
    if page.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{page}: the report is a page.", "Give a path that ends with .html.")
    if page.is_dir():
        raise OutputError(f"{page}: is a directory.", "Give the path of a file for the report.")
    content = document(_page(facts, Path(output)))
    temp = page.with_name(f".{page.name}.{os.getpid()}.tmp")
    try:
        temp.write_bytes(content)
        temp.replace(page)
    except OSError as error:
        with suppress(OSError):
            temp.unlink()
        raise OutputError(
            f"{page}: cannot write the report: {error.strerror}.", "Choose another place."
        ) from None
    return page


def _page(facts: Facts, output: Path) -> ET.Element:
    files = resources.files("pipeline.report")
    style = files.joinpath("page.css").read_text(encoding="utf-8")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    now = time.time()
    return element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("title", f"{output.name}: report"),
            raw("style", style),
        ),
        element(
            "body",
            element("a", "To the labels", class_="skip", href="#labels"),
            sections.head(facts, output, now),
            element("main", *sections.body(facts)),
            element(
                "footer",
                f"Made {datetime.fromtimestamp(now).astimezone():%Y-%m-%d %H:%M} by "
                f"classify-pipeline {__version__}. Everything is in this file: it loads "
                "nothing, and sends nothing.",
            ),
            element("div", id="tip", class_="tip", role="status", aria_live="polite", hidden=True),
            raw("script", script),
        ),
        lang="en",
    )


def _hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
