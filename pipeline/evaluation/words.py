"""How an evaluation is told: in lines for a terminal, and as HTML in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.evaluation.quality import Evaluation, Share

MOST_LABELS = 20
MOST_CONFUSED = 5
_LONGEST_LABEL = 30


def _percent(share: Share) -> str:
    return "-" if share.value is None else f"{100 * share.value:.1f}%"


def _interval(share: Share) -> str:
    if share.low is None or share.high is None:
        return ""
    return f"{100 * share.low:.1f} to {100 * share.high:.1f}%"


def summary(found: Evaluation) -> list[str]:
    """Return what matters most, in sentences."""
    given = found.rows - found.unlabelled - found.unsure
    first = (
        f"Accuracy {_percent(found.accuracy)} ({_interval(found.accuracy)}) on "
        f"{counted(given, 'labelled row')} with a true label in {found.gold!r}"
    )
    if found.macro_f1 is not None:
        first += f"; macro F1 {100 * found.macro_f1:.1f}%"
    shown = [f"{first}."]
    if found.unlabelled:
        shown.append(f"{counted(found.unlabelled, 'row')} with a true label got no label.")
    if found.unsure:
        shown.append(
            f"{counted(found.unsure, 'row')} with a true label and a score below the threshold: "
            "not counted."
        )
    if found.without_gold:
        shown.append(f"{counted(found.without_gold, 'row')} without a true label: not counted.")
    if found.calibration_error is not None:
        points = 100 * found.calibration_error
        shown.append(
            f"Calibration error: {points:.1f} percentage points (mean gap between score and "
            "accuracy)."
        )
    return [*shown, *found.notes]


def lines(found: Evaluation) -> list[str]:
    """Return it in lines for a terminal."""
    shown = summary(found)
    for title, head, rows in _tables(found):
        shown += ["", *([title] if title else [])]
        padded = [_padded(column) for column in zip(head, *rows, strict=True)]
        shown += ["  ".join(cells).rstrip() for cells in zip(*padded, strict=True)]
    return shown


def _padded(column: Sequence[str]) -> list[str]:
    """Return the cells of a column, all of one width: numbers to the right, words to the left."""
    width = max(map(len, column))
    are_numbers = all(cell[:1].isdigit() or cell in ("", "-") for cell in column[1:])
    return [cell.rjust(width) if are_numbers else cell.ljust(width) for cell in column]


def html(found: Evaluation) -> str:
    """Return it as HTML."""
    parts = [f"<p>{escape(sentence)}</p>" for sentence in summary(found)]
    for title, head, rows in _tables(found):
        parts.append(f"<p><b>{escape(title)}</b></p>" if title else "")
        cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
        )
        parts.append(f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>")
    # Both classes keep MathJax, of its second and third version, from typesetting a $.
    return f'<div class="tex2jax_ignore mathjax_ignore">{"".join(parts)}</div>'


def _tables(found: Evaluation) -> Iterable[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Return title, head and rows of each table that has rows."""
    labels = [
        (
            each.label[:_LONGEST_LABEL],
            f"{each.rows:,}",
            *(_percent(share) for share in (each.precision, each.recall, each.f1)),
            _interval(each.f1),
        )
        for each in found.labels[:MOST_LABELS]
    ]
    more = len(found.labels) - MOST_LABELS
    title = f"The {MOST_LABELS} most frequent labels of {len(found.labels)}" if more > 0 else ""
    yield title, ("label", "rows", "precision", "recall", "F1", "95% interval"), list(labels)
    wrong = [each for each in found.confusion if each[0] != each[1]]
    confused = [(gold, label, f"{rows:,}") for gold, label, rows in wrong[:MOST_CONFUSED]]
    if confused:
        yield "Most confused", ("true", "given", "rows"), list(confused)
    if found.thresholds:
        kept = [
            (f"{at.threshold:.2f}", f"{100 * at.coverage:.1f}%", _percent(at.accuracy))
            for at in found.thresholds
        ]
        yield "", ("score at least", "rows kept", "accuracy"), list(kept)
    if found.mistakes:
        mistakes = [
            (
                f"{each.row:,}",
                each.gold[:_LONGEST_LABEL],
                each.label[:_LONGEST_LABEL],
                "" if each.score is None else f"{each.score:.3f}",
                _short(each.text or ""),
            )
            for each in found.mistakes[:MOST_CONFUSED]
        ]
        yield "Most confident mistakes", ("row", "true", "given", "score", "text"), list(mistakes)


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else f"{words[:59]}…"  # noqa: PLR2004
