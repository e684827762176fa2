"""The charts, drawn as SVG by Vega-Lite in this process, so that the page needs no library.

Colours are variables of the page's style, which makes one drawing do for light, dark and paper.
Each mark says in words what it shows; the page reads that out and shows it under the mouse.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from pipeline.errors import UsageError
from pipeline.observers.words import duration
from pipeline.report.html import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.report.history import History, Span
    from pipeline.report.rows import Label

MOST_BARS = 15
LOG_FROM = 10
PALETTE = 8
WIDE = 940
_VEGA_LITE = "5.20"
# What a chart is made of. All else that a drawing might hold is left out of the page.
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
_NUMBER = "format(datum.value, datum.value >= 10000 ? '.3~s' : ',.6~r')"
_LONG_NUMBER = re.compile(r"\d+\.\d{3,}(?:e-\d+)?")

WAITS = {"model loading": "loading", "endpoint down": "outage", "throttled": "throttled"}
CAUSES = (
    *("throttled", "server error", "overloaded", "timeout"),
    *("connection lost", "unreadable answer", "loading", "row refused"),
)


def color(place: int) -> str:
    """The colour of the label or cause in this place; those at the end share the last one."""
    return f"var(--series-{min(place, PALETTE - 1)})"


def check_installed() -> None:
    """Raise UsageError if the charting library is not installed."""
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "classify report needs the charting library, which is not installed.",
            "Install it with pip install 'classify-pipeline[report]' ('.[report]' in a checkout).",
        ) from error


def labels_chart(labels: Sequence[Label]) -> ET.Element:
    """Rows by label: a bar each, the smallest of many together."""
    total = max(sum(label.rows for label in labels), 1)
    shown = [(visible(label.name), label.rows, color(i)) for i, label in enumerate(labels)]
    if len(shown) > MOST_BARS:
        rest = shown[MOST_BARS - 1 :]
        count = sum(rows for _, rows, _ in rest)
        shown = [*shown[: MOST_BARS - 1], (f"{len(rest):,} others", count, "var(--faint)")]
    values = [
        {
            "place": i,
            "name": name,
            "rows": rows,
            "color": shade,
            "words": f"{rows / total:.1%}",
            "says": f"{name}: {rows:,} rows, {rows / total:.1%}",
        }
        for i, (name, rows, shade) in enumerate(shown)
    ]
    most = max((rows for _, rows, _ in shown), default=1)
    y = {
        "field": "name",
        "type": "nominal",
        "sort": {"field": "place"},
        "title": None,
        "axis": {
            "labelLimit": 190,
            "labelFontSize": 13,
            "labelColor": "var(--ink)",
            "minExtent": min(190, max(map(_width, (name for name, _, _ in shown)))),
        },
    }
    x = {
        "field": "rows",
        "type": "quantitative",
        "axis": None,
        # Room for the words behind the longest bar.
        "scale": {"domain": [0, most * 1.25], "nice": False},
    }
    bar = {
        "mark": {"type": "bar", "height": {"band": 0.72}, "cornerRadiusEnd": 3},
        "encoding": {
            "x": x,
            "color": {"field": "color", "type": "nominal", "scale": None},
            "description": {"field": "says"},
        },
    }
    words = {
        "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "aria": False,
                 "color": "var(--ink)"},
        "encoding": {"x": x, "text": {"field": "words"}},
    }  # fmt: skip
    return _draw(values, 300, {"step": 32}, {"encoding": {"y": y}, "layer": [bar, words]})


def _width(name: str) -> int:
    """Room for a name, whatever font the reader has; ideographs take twice as much."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)
    return 8 * (len(name) + wide) + 10


def scores_chart(label: Label, edges: Sequence[float], shade: str) -> ET.Element:
    """Rows of a label by score, in bins that are the same for all labels."""
    step = edges[1] - edges[0]
    digits = max(0, len(f"{step:.10f}".rstrip("0").partition(".")[2]))
    values = [
        {
            "from": low + step * 0.06,
            "to": high - step * 0.06,
            "rows": rows,
            "says": f"score {low:.{digits}f} to {high:.{digits}f}: {rows:,} rows",
        }
        for low, high, rows in zip(edges, edges[1:], label.bins, strict=False)
    ]
    x = {
        "field": "from",
        "type": "quantitative",
        "title": "score",
        "scale": {"domain": [edges[0], edges[-1]], "nice": False},
        "axis": {"grid": False, "tickCount": 5},
    }
    spec = {
        "mark": {"type": "rect", "color": shade},
        "encoding": {
            "x": x,
            "x2": {"field": "to"},
            "y": {
                "field": "rows",
                "type": "quantitative",
                "title": None,
                "scale": {"zero": True},
                "axis": {
                    "tickCount": 3,
                    "tickMinStep": 1,
                    "minExtent": 40,
                    "labelExpr": _NUMBER,
                },
            },
            "y2": {"datum": 0},
            "description": {"field": "says"},
        },
    }
    return _draw(values, 240, 110, spec)


@dataclass(frozen=True)
class _Clock:
    """The axis of time: seconds that the run worked, in a unit that suits how long that was."""

    unit: str
    unit_s: float
    total_s: float

    @classmethod
    def of(cls, history: History) -> _Clock:
        total_s = max(history.seconds, 1.0)
        for unit, unit_s in (("seconds", 1), ("minutes", 60)):
            if total_s <= 120 * unit_s:
                return cls(unit, unit_s, total_s)
        return cls("hours", 3_600, total_s)

    def axis(self, field: str) -> dict[str, Any]:
        return {
            "field": field,
            "type": "quantitative",
            "title": f"{self.unit} at work",
            "scale": {"domain": [0, self.total_s / self.unit_s], "nice": False},
            "axis": {"grid": False, "tickCount": 10},
        }

    def __call__(self, seconds: float) -> float:
        return round(seconds / self.unit_s, 4)


def throughput_chart(history: History) -> ET.Element:
    """Texts that got their answer, a second."""
    clock = _Clock.of(history)
    values = [
        {**_span(clock, span), "value": round(span.inputs_per_second, 2),
         "says": f"{_when(span)}: {span.inputs_per_second:,.1f} texts a second"}
        for span in history.spans
    ]  # fmt: skip
    bars = _bars(clock, values, _y("texts/s"), {"value": "var(--series-0)"})
    return _draw(None, WIDE, 150, {"layer": [*_background(clock, history), bars]})


def latency_chart(history: History) -> ET.Element:
    """Latency of requests: the median, the slowest of twenty, and the slowest of all."""
    clock = _Clock.of(history)
    values: list[dict[str, Any]] = []
    for span in history.spans:
        if span.median_s is None:
            continue
        middle = {"at": clock((span.from_s + span.to_s) / 2)}
        for name, shade, value in (
            ("slowest", "var(--faint)", span.slowest_s),
            ("95 %", "var(--series-1)", span.p95_s),
            ("median", "var(--series-0)", span.median_s),
        ):
            if value is not None:
                says = f"{_when(span)}: {name} {_latency(value)}"
                values.append({**middle, "name": name, "color": shade, "value": value,
                               "says": says})  # fmt: skip
    colors = {"field": "color", "type": "nominal", "scale": None}
    y = _y("seconds")
    least = min((each["value"] for each in values), default=1.0)
    if max((each["value"] for each in values), default=1.0) > LOG_FROM * least > 0:
        # Else a cold start leaves a flat line of all others.
        ticks = [10.0**power for power in range(-4, 5)]
        axis = {**y["axis"], "values": ticks, "labelExpr": "format(datum.value, '~r')"}
        y = {**y, "title": "seconds, log", "scale": {"type": "log", "nice": False}, "axis": axis}
    encoding = {"x": clock.axis("at"), "y": y, "color": colors}
    data = {"data": {"values": values}, "encoding": encoding}
    line = {**data, "mark": {"type": "line", "strokeWidth": 1.5, "aria": False}}
    dots = {
        **data,
        "mark": {"type": "circle", "size": 18, "opacity": 1},
        "encoding": {**encoding, "description": {"field": "says"}},
    }
    return _draw(None, WIDE, 150, {"layer": [*_background(clock, history), line, dots]})


def failures_chart(history: History) -> ET.Element:
    """Attempts that failed, by cause."""
    clock = _Clock.of(history)
    values = []
    for span in history.spans:
        low = 0
        for cause in sorted(span.ended.keys() - {"ok"}, key=cause_place):
            count = span.ended[cause]
            values.append({**_span(clock, span), "low": low, "value": low + count,
                           "color": color(cause_place(cause)),
                           "says": f"{_when(span)}: {count:,} failed, {cause}"})  # fmt: skip
            low += count
    shade = {"field": "color", "type": "nominal", "scale": None}
    bars = _bars(clock, values, _y("requests"), shade)
    bars["encoding"]["y2"] = {"field": "low"}
    return _draw(None, WIDE, 110, {"layer": [*_background(clock, history), bars]})


def cause_place(cause: str) -> int:
    """The place of a cause among all, which decides its colour."""
    return CAUSES.index(cause) if cause in CAUSES else PALETTE - 1


def _y(title: str) -> dict[str, Any]:
    axis = {"tickCount": 4, "minExtent": 44, "maxExtent": 44, "labelExpr": _NUMBER}
    scale = {"zero": True}
    return {"field": "value", "type": "quantitative", "title": title, "axis": axis, "scale": scale}


def _span(clock: _Clock, span: Span) -> dict[str, float]:
    gap_s = (span.to_s - span.from_s) * 0.05
    return {"from": clock(span.from_s + gap_s), "to": clock(span.to_s - gap_s)}


def _when(span: Span) -> str:
    return f"after {duration(span.from_s)}"


def _latency(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _bars(
    clock: _Clock, values: list[dict[str, Any]], y: dict[str, Any], shade: dict[str, Any]
) -> dict[str, Any]:
    return {
        "data": {"values": values},
        "mark": {"type": "rect"},
        "encoding": {
            "x": clock.axis("from"),
            "x2": {"field": "to"},
            "y": y,
            "y2": {"datum": 0},
            "color": shade,
            "description": {"field": "says"},
        },
    }


def _background(clock: _Clock, history: History) -> list[dict[str, Any]]:
    """Where the run waited, and where an attempt continued another."""
    waits = [
        {
            "from": clock(wait.from_s),
            # A wait that is too short to be seen is worth seeing too.
            "to": clock(max(wait.to_s, wait.from_s + clock.total_s / 400)),
            "color": f"var(--wait-{WAITS.get(wait.reason, 'outage')})",
            "says": f"{wait.reason} for {duration(wait.to_s - wait.from_s)}",
        }
        for wait in history.waits
    ]
    borders = [{"at": clock(each.worked_before_s)} for each in history.attempts[1:]]
    return [
        {
            "data": {"values": waits},
            "mark": {"type": "rect"},
            "encoding": {
                "x": clock.axis("from"),
                "x2": {"field": "to"},
                "y": {"value": 0},
                "y2": {"value": "height"},
                "color": {"field": "color", "type": "nominal", "scale": None},
                "description": {"field": "says"},
            },
        },
        {
            "data": {"values": borders},
            "mark": {"type": "rule", "strokeDash": [3, 3], "color": "var(--muted)", "aria": False},
            "encoding": {"x": clock.axis("at")},
        },
    ]


def _draw(values: Any, width: int, height: Any, spec: dict[str, Any]) -> ET.Element:
    import vl_convert

    line, quiet = "var(--line)", "var(--muted)"
    whole = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "background": None,
        "padding": 2,
        **({} if values is None else {"data": {"values": values}}),
        **spec,
        "config": {
            "font": "sans-serif",
            "view": {"stroke": None},
            "axis": {
                "labelColor": quiet,
                "titleColor": quiet,
                "titleFontWeight": "normal",
                "labelFontSize": 12,
                "titleFontSize": 12,
                "domainColor": line,
                "tickColor": line,
                "gridColor": line,
            },
            "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        },
    }
    drawn = vl_convert.vegalite_to_svg(whole, vl_version=_VEGA_LITE, allowed_base_urls=[])
    # It is of our own making, and what it says is checked.
    return _checked(ET.fromstring(drawn))  # noqa: S314


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
