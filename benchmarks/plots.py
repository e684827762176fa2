"""Plots and tables of the simulation's page: SVG by vl-convert, Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import vl_convert

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Seen on a white page and on a dark one.
_GREY = "#777777"
_COLOURS = ["#3b82c4", "#d9822b", "#3f9c56", "#b04a5a", "#7a63b8"]
_CONFIG = {
    "axis": {"labelColor": _GREY, "titleColor": _GREY, "gridColor": "#88888844"},
    "legend": {"labelColor": _GREY, "titleColor": _GREY},
    "title": {"color": _GREY, "fontWeight": "normal"},
    "view": {"stroke": None},
    "range": {"category": _COLOURS},
    "font": "system-ui,sans-serif",
}
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def _draw(path: Path, title: str, values: list[dict[str, Any]], **spec: Any) -> None:
    whole = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": 520,
        "background": None,
        "title": title,
        "data": {"values": values},
        "config": _CONFIG,
        **spec,
    }
    drawn = vl_convert.vegalite_to_svg(whole, vl_version="5.20", allowed_base_urls=[])
    short = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", drawn)
    path.write_text(short + "\n", encoding="utf-8")


def bars(
    path: Path, title: str, x: str, values: dict[str, float], target: float | None = None
) -> None:
    """Draw a bar for each value, and a line where the target is."""
    found = [{"name": name, "value": value} for name, value in values.items()]
    y = {"field": "name", "type": "nominal", "sort": None, "title": None}
    y |= {"axis": {"labelLimit": 260}}
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "bar", "color": _COLOURS[0]},
            "encoding": {"y": y, "x": {"field": "value", "type": "quantitative", "title": x}},
        }
    ]
    if target is not None:
        line = {"mark": {"type": "rule", "color": _COLOURS[1], "strokeWidth": 2}}
        layers.append({**line, "encoding": {"x": {"datum": target}}})
    _draw(path, title, found, height={"step": 26}, layer=layers)


def lines(
    path: Path,
    title: str,
    x: str,
    y: str,
    series: dict[str, Sequence[tuple[float, float]]],
    *,
    logarithmic: bool = False,
    points: bool = False,
) -> None:
    """Draw a line for each series of points."""
    found = [
        {"series": name, "x": at, "y": value} for name, of in series.items() for at, value in of
    ]
    scale = {"scale": {"type": "log"}} if logarithmic else {}
    _draw(
        path,
        title,
        found,
        height=220,
        mark={"type": "line", "point": points, "strokeWidth": 1.5},
        encoding={
            "x": {"field": "x", "type": "quantitative", "title": x, **scale},
            "y": {"field": "y", "type": "quantitative", "title": y},
            "color": {"field": "series", "type": "nominal", "title": None, "sort": None},
        },
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines_of = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines_of)
