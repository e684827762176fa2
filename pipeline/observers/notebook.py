"""What a notebook shows: a line of progress that is updated in place, and the result of a run.

The HTML stands by itself (no script, no widget, no style sheet), takes its colours from the page,
so that it is readable on dark ground too, and keeps foreign words inert: they are escaped, are not
typeset as formulas, and cannot turn the direction of what stands beside them.
"""

from __future__ import annotations

import html
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from pipeline.errors import EXIT_COMPLETE
from pipeline.observers.progress import Progress
from pipeline.observers.words import EMPTY_LABEL
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.events import RunEnded, RunStarted

DISPLAY_EVERY_S = 0.25
# The last things that were said, below the line.
_MESSAGES = 3
# What is shown of labels and of causes, the most frequent first; the rest is counted.
_LABELS = 20
_CAUSES = 5
_WORDS = 120


def in_kernel() -> bool:
    """True if IPython's kernel runs this process, as in Jupyter, VS Code and Colab."""
    # Not imported here: a kernel has loaded it.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class NotebookProgress(Progress):
    """One line below the cell, and the last messages; stays as the sum of what was done."""

    every_s = DISPLAY_EVERY_S

    def __init__(self) -> None:
        super().__init__()
        self._said: deque[str] = deque(maxlen=_MESSAGES)
        self._display: Any = None
        self._started: float | None = None
        self._sum = ""

    def _end(self, event: RunEnded) -> None:
        """Show what was done; why the run stopped is said by the exception below."""
        if self._started is None:
            return  # nothing was begun
        metrics = self._metrics
        words = f"{counted(metrics.requests, 'request')} in {self._clock() - self._started:,.1f} s"
        # Of rows that were done before nobody has counted here how many carry an error.
        if metrics.errors and not metrics.resumed_rows:
            words += f", {metrics.errors:,} with errors"
        self._said.clear()
        self._sum = f"{event.state}: {words}"
        self._draw()

    def _begin(self, event: RunStarted) -> None:
        self._started = self._clock()
        if event.resumed_rows:
            self._said.append(f"{counted(event.resumed_rows, 'row was', 'rows were')} done before")
        self._draw()

    def _say(self, kind: str, message: str) -> None:  # noqa: ARG002
        self._said.append(message)
        self._draw()

    def _draw(self) -> None:
        rows, done = self._metrics.rows, self._metrics.estimated_rows
        words = f"{done:,} of {counted(rows, 'row')}, {self._sum or self._words(self._state())}"
        shown = {"text/plain": words, "text/html": _line(done, rows, words, self._said)}
        try:
            if self._display is None:
                from IPython.display import display

                self._display = display(shown, raw=True, display_id=True)
            else:
                self._display.update(shown, raw=True)
        except Exception:  # noqa: BLE001, S110  (a page that is gone is no reason to stop a run)
            pass


def result_html(summary: Mapping[str, Any], causes: Mapping[str, int]) -> str:
    """Show the summary of a complete run; `causes` counts its rows with an error by what it says.

    `causes` may be empty where they are not known.
    """
    rows, errors = summary["rows"], summary["errors"]
    if summary["exit_code"] != EXIT_COMPLETE:
        ended = "complete, but rows carry errors"
    elif errors:
        ended = "complete; no more rows failed than max_errors allows"
    else:
        ended = "complete"
    model = f", model {summary['model']}" if summary["model"] else ""
    lines = [
        f"<b>{counted(rows, 'row')}: {summary['labelled']:,} labelled, {errors:,} with errors</b>",
        f"{ended} (exit code {summary['exit_code']})",
        f"output: <code>{_inert(summary['output'], None)}</code>",
        f"{counted(summary['requests'], 'request')} in {summary['seconds']:,.1f} s; "
        + _inert(f"endpoint {summary['endpoint']}{model}", None),
    ]
    parts = [f"<div>{line}</div>" for line in lines]
    if summary["labels"]:
        parts.append(_table("label", summary["labels"], _LABELS))
    if causes:
        parts.append(_table("error", causes, _CAUSES))
    return _block("".join(parts))


def _line(done: int, rows: int, words: str, said: deque[str]) -> str:
    below = "".join(f'<div style="opacity:0.7">{_inert(message, None)}</div>' for message in said)
    return _block(
        f'<progress value="{done}" max="{max(rows, 1)}" style="width:16em"></progress> '
        f"{_inert(words, None)}{below}"
    )


def _table(what: str, counts: Mapping[str, int], most: int) -> str:
    """A table of counts with bars, relative to the largest one; shares are of all counts."""
    total = max(sum(counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    largest = max(ordered[0][1], 1)
    left, right = 'style="text-align:left"', 'style="text-align:right"'
    shown = [
        (_inert(name or EMPTY_LABEL), _bar(count / largest), count)
        for name, count in ordered[:most]
    ]
    if rest := ordered[most:]:
        shown.append((counted(len(rest), "other"), "", sum(count for _, count in rest)))
    body = [
        f"<tr><td {left}>{name}</td><td {left}>{bar}</td>"
        f"<td {right}>{count:,}</td><td {right}>{count / total:.1%}</td></tr>"
        for name, bar, count in shown
    ]
    head = f"<th {left}>{what}</th><th></th><th {right}>rows</th><th {right}>share</th>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _bar(share: float) -> str:
    return (
        '<svg width="160" height="10" aria-hidden="true">'
        f'<rect width="{160 * share:.1f}" height="10" fill="currentColor" opacity="0.5"/></svg>'
    )


def _block(content: str) -> str:
    # Both classes keep MathJax, of its second and third version, from typesetting a $.
    return f'<div class="tex2jax_ignore mathjax_ignore">{content}</div>'


def _inert(words: str, most: int | None = _WORDS) -> str:
    """Foreign words, cut to `most` characters, that are shown and do nothing."""
    cut = words if most is None or len(words) <= most else f"{words[: most - 1]}…"
    return f"<bdi>{html.escape(cut)}</bdi>"
