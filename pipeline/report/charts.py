"""The charts of labels and of work over time, as SVG, so that the page needs no library.

Colours are variables of the page's style, so that one drawing serves light mode, dark mode and
print. Each mark has a description in words, which the page shows under the mouse and reads out.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.foreign import visible
from pipeline.observers.words import duration
from pipeline.report.drawing import COLOR, INK, NUMBER, QUIET, SAYS, draw, layer, quantity, rects
from pipeline.report.rows import OTHERS
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from markupsafe import Markup

    from pipeline.report.drawing import Spec
    from pipeline.report.history import History, Span
    from pipeline.report.rows import Label

MOST_BARS = 15
LOG_FROM = 10
PALETTE = 8
WIDE, NARROW = 940, 300
# Hues that people expect, far from each other: red, amber, green, blue, violet.
_HUES = {"negative": 25, "mixed": 75, "positive": 150, "neutral": 250}
_HUES |= {"neg": 25, "pos": 150, "neu": 250, "very negative": 0, "very positive": 175}
_HUES |= {"1 star": 25, "2 stars": 60, "3 stars": 95, "4 stars": 150, "5 stars": 200}

WAITS = {"model loading": "loading", "endpoint down": "outage", "throttled": "throttled"}
LATENCIES = {"median": "var(--series-0)", "95 %": "var(--series-1)", "slowest": "var(--faint)"}
CAUSES = (
    *("throttled", "server error", "overloaded", "timeout"),
    *("connection lost", "unreadable answer", "loading", "row refused"),
)


def color(place: int) -> str:
    """Return the colour of the cause in this place; those at the end share the last."""
    return f"var(--series-{min(place, PALETTE - 1)})"


def label_color(name: str) -> str:
    """Return the colour of a label, which is the same in every report: it comes from its name."""
    if name == OTHERS:
        return "var(--faint)"
    hue = _HUES.get(name.casefold())
    if hue is None:
        digest = hashlib.blake2b(name.encode(errors="replace"), digest_size=4).digest()
        hue = int.from_bytes(digest) % 360
    # Of this lightness all hues are as legible, which hsl would not give.
    return f"oklch(var(--tone) 0.13 {hue})"


def failed(history: History) -> Counter[str]:
    """Return how many requests failed, by cause, in the order of the causes."""
    ended = sum((span.ended for span in history.spans), Counter[str]())
    return Counter({cause: ended[cause] for cause in _failures(ended)})


def cause_colors(causes: Iterable[str]) -> dict[str, str]:
    """Return the colour of each cause."""
    return {cause: color(_place(cause)) for cause in causes}


def labels_chart(labels: Sequence[Label], one: str = "row") -> Markup:
    """Draw rows (or what else `one` of them is) by label; the smallest of many share one bar."""
    shown = [(visible(label.name), label.rows, label_color(label.name)) for label in labels]
    if len(shown) > MOST_BARS:
        rest = shown[MOST_BARS - 1 :]
        others = (counted(len(rest), "other"), sum(rows for _, rows, _ in rest), "var(--faint)")
        shown = [*shown[: MOST_BARS - 1], others]
    total = max(sum(rows for _, rows, _ in shown), 1)
    values = [
        {
            "place": place,
            "rows": rows,
            "color": shade,
            "share": f"{rows / total:.1%}",
            "says": f"{name}: {counted(rows, one)}, {rows / total:.1%}",
        }
        for place, (name, rows, shade) in enumerate(shown)
    ]
    # Room for the words behind the longest bar.
    x = quantity("rows", domain=(0, 1.25 * max((rows for _, rows, _ in shown), default=1)))
    extent = min(190, max(_width(name) for name, _, _ in shown))
    axis = {"labelLimit": 190, "labelFontSize": 13, "labelColor": INK, "minExtent": extent}
    # Vega takes a name by itself for the key of an object, which has a `constructor` already.
    names = json.dumps([f" {name}" for name, _, _ in shown])
    axis["labelExpr"] = f"slice({names}[datum.value], 1)"
    y = {"field": "place", "type": "nominal", "sort": None, "title": None, "axis": axis}
    bar = {"type": "bar", "height": {"band": 0.72}, "cornerRadiusEnd": 3}
    share = {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "color": INK}
    return draw(
        300,
        {"step": 32},
        layer(values, bar, x=x, y=y, color=COLOR, description=SAYS),
        layer(values, {**share, "aria": False}, x=x, y=y, text={"field": "share"}),
    )


def _width(name: str) -> int:
    """Room for a name, whatever font the reader has; ideographs take twice as much."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in name)
    return 8 * (len(name) + wide) + 10


def scores_chart(label: Label, edges: Sequence[float], shade: str) -> Markup:
    """Draw rows of a label by score, in bins that are the same for all labels."""
    step = edges[1] - edges[0]
    digits = max(0, len(f"{step:.10f}".rstrip("0").partition(".")[2]))
    values = [
        {
            "from": low + step * 0.06,
            "to": high - step * 0.06,
            "value": rows,
            "color": shade,
            "says": f"score {low:.{digits}f} to {high:.{digits}f}: {counted(rows, 'row')}",
        }
        for low, high, rows in zip(edges, edges[1:], label.bins, strict=False)
    ]
    x = quantity("from", "score", domain=(edges[0], edges[-1]), grid=False, tickCount=5)
    y = quantity("value", tickCount=3, tickMinStep=1, minExtent=40, labelExpr=NUMBER)
    return draw(240, 110, rects(values, x, y))


def throughput_chart(history: History, width: int) -> Markup:
    """Draw texts that got their answer, per second."""
    clock = _Clock.of(history, width)
    values = [
        {
            **clock.over(span),
            "value": round(span.inputs_per_second, 2),
            "color": color(0),
            "says": f"{_when(span)}: {span.inputs_per_second:,.1f} texts per second",
        }
        for span in history.spans
    ]
    return clock.draw(150, rects(values, clock.axis("from"), _y("texts/s")))


def latency_chart(history: History, width: int) -> Markup:
    """Draw latency of requests: the median, the 95th percentile, and the slowest.

    A line ends where nothing was answered, such as at a cold start, and begins again after it.
    """
    clock = _Clock.of(history, width)
    values: list[Spec] = []
    stretch, end_s = 0, 0.0
    for span in history.spans:
        if not (span.ended["ok"] or span.ended["row refused"]):
            continue
        stretch += span.from_s > end_s
        end_s = span.to_s
        at = clock((span.from_s + span.to_s) / 2)
        # The median comes last, above the others.
        found = {"slowest": span.slowest_s, "95 %": span.p95_s, "median": span.median_s}
        for name, seconds in found.items():
            if seconds is not None:
                says = f"{_when(span)}: {name} {_latency(seconds)}"
                shade = LATENCIES[name]
                value = {"at": at, "value": seconds, "stretch": stretch}
                values.append({**value, "color": shade, "says": says})
    y = _y("seconds")
    all_s = [value["value"] for value in values]
    if max(all_s, default=1.0) > LOG_FROM * min(all_s, default=1.0) > 0:
        # Else a cold start leaves a flat line of all others.
        steps = (1, 2, 5) if max(all_s) < 100 * min(all_s) else (1,)
        ticks = [step * 10.0**power for power in range(-4, 5) for step in steps]
        axis = {**y["axis"], "values": ticks, "labelExpr": "format(datum.value, '~r')"}
        y |= {"title": "seconds (log)", "scale": {"type": "log", "nice": False}, "axis": axis}
    place = {"x": clock.axis("at"), "y": y, "color": COLOR}
    line = {"type": "line", "strokeWidth": 1.5, "aria": False}
    dots = {"type": "circle", "size": 18, "opacity": 1}
    lines = layer(values, line, **place, detail={"field": "stretch", "type": "nominal"})
    return clock.draw(150, lines, layer(values, dots, **place, description=SAYS))


def failures_chart(history: History, width: int) -> Markup:
    """Draw attempts that failed, by cause."""
    clock = _Clock.of(history, width)
    values = []
    for span in history.spans:
        low = 0
        for cause in _failures(span.ended):
            count = span.ended[cause]
            place = {**clock.over(span), "low": low, "value": low + count}
            says = f"{_when(span)}: {count:,} failed, {cause}"
            values.append({**place, "color": color(_place(cause)), "says": says})
            low += count
    bars = rects(values, clock.axis("from"), _y("requests"), {"field": "low"})
    return clock.draw(110, bars)


def _failures(ended: Counter[str]) -> list[str]:
    return sorted(ended.keys() - {"ok"}, key=lambda cause: (_place(cause), cause))


def _place(cause: str) -> int:
    """Return the place of a cause among all, which decides its colour."""
    return CAUSES.index(cause) if cause in CAUSES else PALETTE - 1


@dataclass(frozen=True)
class _Clock:
    """The axis of time: seconds that the run worked, in a unit that suits how long that was."""

    history: History
    width: int
    unit: str
    unit_s: float
    total_s: float

    @classmethod
    def of(cls, history: History, width: int) -> _Clock:
        total_s = max(history.seconds, 1.0)
        for unit, unit_s in (("seconds", 1), ("minutes", 60)):
            if total_s <= 120 * unit_s:
                return cls(history, width, unit, unit_s, total_s)
        return cls(history, width, "hours", 3_600, total_s)

    def __call__(self, seconds: float) -> float:
        return round(seconds / self.unit_s, 4)

    def over(self, span: Span) -> dict[str, float]:
        gap_s = (span.to_s - span.from_s) * 0.05
        return {"from": self(span.from_s + gap_s), "to": self(span.to_s - gap_s)}

    def axis(self, field: str) -> Spec:
        title, domain = f"running time in {self.unit}", (0, self.total_s / self.unit_s)
        return quantity(field, title, domain, grid=False, tickCount=10 if self.width == WIDE else 5)

    def draw(self, height: int, *layers: Spec) -> Markup:
        """Draw layers above where the run waited, and where an attempt continued another."""
        waits = [
            {
                "from": self(wait.from_s),
                # A wait that is too short to be seen is worth seeing too.
                "to": self(max(wait.to_s, wait.from_s + self.total_s / 400)),
                "color": f"var(--wait-{WAITS.get(wait.reason, 'outage')})",
                "says": f"{wait.reason} for {duration(wait.to_s - wait.from_s)}",
            }
            for wait in self.history.waits
        ]
        attempts = [{"at": self(each.worked_before_s)} for each in self.history.attempts[1:]]
        rule = {"type": "rule", "strokeDash": [3, 3], "color": QUIET, "aria": False}
        return draw(
            self.width,
            height,
            rects(waits, self.axis("from"), {"value": 0}, {"value": "height"}),
            layer(attempts, rule, x=self.axis("at")),
            *layers,
        )


def _when(span: Span) -> str:
    return f"after {duration(span.from_s)}"


def _latency(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _y(title: str) -> Spec:
    return quantity("value", title, tickCount=4, minExtent=44, maxExtent=44, labelExpr=NUMBER)
