"""What the sections of the page are built of: charts, and the same as tables."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.report.html import element

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree import ElementTree as ET


def figure(
    title: str, says: str, drawn: ET.Element, key: Sequence[tuple[str, str]] = ()
) -> ET.Element:
    """Return a chart under its title, with what it says in words and a key of its colours."""
    keys = [element("li", swatch(shade), name) for name, shade in key]
    return element(
        "figure",
        element("h3", title),
        element("p", says, class_="note"),
        element("ul", *keys, class_="key") if keys else None,
        chart(drawn, f"{title}. {says}", wide=True),
    )


def swatch(shade: str) -> ET.Element:
    """Return a small square of a colour, for a key."""
    square = element("rect", width=10, height=10, rx=2, fill=shade)
    return element("svg", square, viewBox="0 0 10 10", aria_hidden="true")


def chart(drawn: ET.Element, says: str, *, wide: bool = False) -> ET.Element:
    """Return a chart that the keyboard reaches; `says` stands for it where it is not seen."""
    return element(
        "div",
        drawn,
        class_="chart wide" if wide else "chart",
        role="img",
        tabindex=0,
        aria_label=f"{says} Arrow keys go through the values.",
    )


def as_table(
    caption: str, names: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]
) -> ET.Element:
    """Return the same as a chart, for those who read or copy it."""
    return behind(table(caption, names, rows, numbers=numbers))


def behind(table: ET.Element) -> ET.Element:
    """Return a table that is there when it is asked for."""
    return element("details", element("summary", "Show as a table"), table)


def table(
    caption: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Sequence[int],
    stamped: bool = False,
) -> ET.Element:
    """Return a table; `numbers` are the columns that hold numbers, counted from 0.

    Where it is `stamped`, the first column holds times.
    """
    lines = []
    for row in rows:
        cells: list[Any] = [element("th", element("bdi", row[0]), scope="row")]
        for i, words in enumerate(row[1:], start=1):
            kind = "number" if i in numbers else "text"
            cells.append(element("td", words, class_=kind))
        lines.append(element("tr", *cells))
    table = element("table", heading(names, numbers), element("tbody", *lines), aria_label=caption)
    return element(
        "div",
        table,
        class_="table stamped" if stamped else "table",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def heading(names: Sequence[str], numbers: Sequence[int]) -> ET.Element:
    """Return the head of a table."""
    cells = [
        element("th", element("bdi", name), scope="col", class_="number" if i in numbers else None)
        for i, name in enumerate(names)
    ]
    return element("thead", element("tr", *cells))


def section(title: str, *children: ET.Element, id_: str | None = None) -> ET.Element:
    """Return a section of the page."""
    return element("section", element("h2", title), *children, id=id_, aria_label=title)


def clock(at: float) -> str:
    """Word an instant (seconds since the epoch) in the time zone of this machine."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"
