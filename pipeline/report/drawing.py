"""How a chart is drawn: by Vega-Lite in this process, as SVG of nothing but shapes and text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

Spec = dict[str, Any]

_VEGA_LITE = "5.20"
# What a chart may hold. Everything else in a drawing is left out of the page.
_ELEMENTS = frozenset(["svg", "g", "path", "line", "rect", "text", "tspan"])
_ATTRIBUTES = frozenset(
    [
        *("width", "height", "viewBox", "transform", "d", "x", "y", "x1", "x2", "y1", "y2"),
        *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray"),
        *("stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "opacity", "display"),
        *("font-family", "font-size", "font-weight", "text-anchor", "pointer-events"),
        *("role", "aria-label", "aria-hidden", "aria-roledescription"),
    ]
)
_MARKS = frozenset(["bar", "circle", "rect mark"])

# How an axis words its numbers; its own format would give 6e+2, or 0.5k.
NUMBER = "format(datum.value, datum.value >= 10000 ? '.3~s' : ',.6~r')"
_LONG_NUMBER = re.compile(r"\d+\.\d{3,}(?:e-\d+)?")
INK, QUIET, LINE = "var(--ink)", "var(--muted)", "var(--line)"
_CONFIG = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET,
        "labelFontSize": 12,
        "titleColor": QUIET,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "domainColor": LINE,
        "tickColor": LINE,
        "gridColor": LINE,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
}
# Encodings by the fields `color` and `says` of a value.
COLOR = {"field": "color", "type": "nominal", "scale": None}
SAYS = {"field": "says"}


def quantity(
    field: str, title: str | None = None, domain: Sequence[float] | None = None, **axis: Any
) -> Spec:
    """Return the encoding of numbers; without anything for the axis, there is none."""
    scale = {"zero": True} if domain is None else {"domain": domain, "nice": False}
    more = {"title": title, "scale": scale, "axis": axis or None}
    return {"field": field, "type": "quantitative", **more}


def layer(values: Sequence[Spec], mark: Spec, **encoding: Spec) -> Spec:
    """Return marks of one kind, one for each value."""
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def rects(values: Sequence[Spec], x: Spec, y: Spec, y2: Spec | None = None) -> Spec:
    """Return rectangles from the field `from` to the field `to`, by default up from zero."""
    to = {"x2": {"field": "to"}, "y2": y2 or {"datum": 0}}
    return layer(values, {"type": "rect"}, x=x, y=y, **to, color=COLOR, description=SAYS)


def draw(width: int, height: int | Spec, *layers: Spec) -> Markup:
    """Draw layers, the first one at the bottom."""
    import vl_convert
    from markupsafe import Markup

    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "padding": 2,
        "background": None,
        "layer": layers,
        "config": _CONFIG,
    }
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=_VEGA_LITE, allowed_base_urls=[])
    # The drawing is our own, and what it holds is checked.
    checked = _checked(ET.fromstring(drawn))  # noqa: S314
    return Markup(ET.tostring(checked, encoding="unicode", method="html"))  # noqa: S704


def _checked(drawn: ET.Element) -> ET.Element:
    """Copy a drawing, with nothing in it but shapes and text."""
    kept = ET.Element(_local(drawn.tag))
    for name, value in drawn.attrib.items():
        if name == "aria-label":
            kept.set(name, value)
        elif name in _ATTRIBUTES and not re.search(r"url\s*\(|javascript:", value, re.IGNORECASE):
            kept.set(name, _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value))
    if kept.get("role") == "graphics-symbol" and kept.get("aria-roledescription") in _MARKS:
        kept.set("class", "mark")
    kept.text = drawn.text
    kept.extend(_checked(child) for child in drawn if _local(child.tag) in _ELEMENTS)
    return kept


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
