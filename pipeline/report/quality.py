"""Labels against true ones, as the page shows them: two charts and a matrix."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from pipeline.report.drawing import QUIET, SAYS, Spec, draw, layer, quantity
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from pipeline.evaluation import Evaluation
    from pipeline.evaluation.quality import Mistake, Share
    from pipeline.report.rows import Row

MOST_LABELS = 12
REST = "(other labels)"
# Shades of a cell, from none to the strongest.
SHADES = 5
_SIZE = 260
_LINE = {"type": "line", "strokeWidth": 1.5, "aria": False, "color": "var(--series-0)"}
_DOT = {"type": "circle", "size": 40, "opacity": 1, "color": "var(--series-0)"}


class Quality(NamedTuple):
    """How good the labels of a run are, and the rows of the most confident mistakes."""

    found: Evaluation
    mistakes: list[tuple[Mistake, Row]]


class Cell(NamedTuple):
    """Rows with one true label and one given, and the shade for their share of the true one."""

    rows: int
    shade: int


def percent(share: float | None) -> str:
    """Word a share."""
    return "" if share is None else f"{share:.1%}"


def interval(share: Share) -> str:
    """Word the interval of a share."""
    return "" if share.low is None else f"{percent(share.low)[:-1]} to {percent(share.high)}"


def matrix(found: Evaluation) -> tuple[list[str], list[list[Cell]]]:
    """Return the most frequent labels, and for each as a true one the rows by the given one."""
    names = [each.label for each in found.labels[:MOST_LABELS]]
    if len(found.labels) > MOST_LABELS:
        names.append(REST)
    known = set(names)
    counts: Counter[tuple[str, str]] = Counter()
    for gold, label, rows in found.confusion:
        counts[gold if gold in known else REST, label if label in known else REST] += rows
    cells = []
    for gold in names:
        total = max(sum(counts[gold, label] for label in names), 1)
        cells.append(
            [
                Cell(counts[gold, label], -(-SHADES * counts[gold, label] // total))
                for label in names
            ]
        )
    return names, cells


def thresholds_chart(found: Evaluation) -> Markup:
    """Draw how many rows are kept and how good they are, threshold by threshold."""
    values: list[Spec] = []
    for at in found.thresholds:
        if at.accuracy.value is None:
            continue
        says = (
            f"score at least {at.threshold:g}: {at.coverage:.1%} of the rows, "
            f"{at.accuracy.value:.1%} of them right"
        )
        values.append({"x": at.coverage, "y": at.accuracy.value, "says": says})
    return _square(values, "rows kept", "accuracy", low=min(value["y"] for value in values))


def calibration_chart(found: Evaluation) -> Markup:
    """Draw the share that is right by score; where scores tell the truth it is the diagonal."""
    values: list[Spec] = []
    for bin_ in found.calibration:
        right = bin_.accuracy.value or 0.0
        says = f"score {bin_.score:.2f}: {right:.1%} of {counted(bin_.rows, 'row')} right"
        values.append({"x": bin_.score, "y": right, "says": says})
    lowest = min(min(value["x"], value["y"]) for value in values)
    diagonal = [{"x": at, "y": at} for at in (0.1 * int(10 * lowest), 1.0)]
    dashes = {"type": "line", "strokeDash": [3, 3], "color": QUIET, "aria": False}
    return _square(values, "score", "accuracy", lowest, (diagonal, dashes), x_low=lowest)


def _square(
    values: Sequence[Spec],
    x_title: str,
    y_title: str,
    low: float,
    *below: tuple[Sequence[Spec], Spec],
    x_low: float = 0.0,
) -> Markup:
    axis = {"tickCount": 5, "labelExpr": "format(datum.value, '.0%')"}
    lows = [min(0.1 * int(10 * each), 0.9) for each in (x_low, low)]
    x, y = (
        quantity(field, title, (least, max(1.0, *(value[field] for value in values))), **axis)
        for field, title, least in zip("xy", (x_title, y_title), lows, strict=True)
    )
    layers = [layer(each, mark, x=x, y=y) for each, mark in below]
    layers += [layer(values, _LINE, x=x, y=y), layer(values, _DOT, x=x, y=y, description=SAYS)]
    return draw(_SIZE, 170, *layers)
