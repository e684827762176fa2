"""The section on what happened when: speed, latency, failures, waits and attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.observers.words import duration
from pipeline.report import charts
from pipeline.report.blocks import behind, clock, figure, section, swatch, table
from pipeline.report.history import MOST_WAITS
from pipeline.report.html import element

if TYPE_CHECKING:
    from collections.abc import Iterator
    from xml.etree import ElementTree as ET

    from pipeline.report.facts import Facts
    from pipeline.report.history import History

MOST_SHOWN = 100
FEWEST_SPANS = 3
_REFUSED = " What is refused for a row is halved until that row stands alone."


def over_time(history: History, facts: Facts) -> ET.Element:
    """Tell what the attempts at a run did over the time that they worked."""
    parts: list[ET.Element] = []
    kinds = {wait.reason for wait in history.waits}
    keys = [
        element("li", swatch(f"var(--wait-{name})"), reason)
        for reason, name in charts.WAITS.items()
        if reason in kinds
    ]
    if len(history.attempts) > 1:
        keys.append(element("li", "┆ an attempt continued the one before"))
    if keys:
        parts.append(element("ul", *keys, class_="key", aria_label="What the background means"))
    if len(history.spans) >= FEWEST_SPANS:
        parts += _charts_over_time(history)
    elif history.spans:
        parts.append(element("p", "The run was too short for charts over time.", class_="note"))
    else:
        parts.append(element("p", "No request was sent.", class_="note"))
    if history.spans:
        parts.append(_work_table(history, is_open=len(history.spans) < FEWEST_SPANS))
    responses = facts.summary.get("responses")
    if responses and facts.one_attempt:
        told = ", ".join(f"{count:,} with {status}" for status, count in responses.items())
        parts.append(element("p", f"Answers by HTTP status: {told}.", class_="note"))
    if history.waits:
        parts.append(_waits(history))
    if len(history.attempts) > 1:
        parts.append(_attempts(history, works=facts.status.state == "running"))
    return section("Over time", *parts)


def _charts_over_time(history: History) -> Iterator[ET.Element]:
    spans = history.spans
    answered = round(sum(span.inputs for span in spans))
    fastest = max(span.inputs_per_second for span in spans)
    says = f"{answered:,} texts were answered, at most {fastest:,.0f} a second."
    yield figure("Throughput", says, charts.throughput_chart(history))
    timed = [span for span in spans if span.median_s is not None]
    if timed:
        slowest_s = max(span.slowest_s or 0.0 for span in timed)
        says = (
            "How long requests took: the median, the slowest of twenty (95 %) and the slowest; "
            f"at most {slowest_s:,.2f} s."
        )
        key = [("median", "var(--series-0)"), ("95 %", "var(--series-1)"),
               ("slowest", "var(--faint)")]  # fmt: skip
        yield figure("Latency", says, charts.latency_chart(history), key)
    failed: dict[str, int] = {}
    for span in spans:
        for cause, count in span.ended.items():
            if cause != "ok":
                failed[cause] = failed.get(cause, 0) + count
    if failed:
        retries = sum(attempt.retries for attempt in history.attempts)
        says = (
            f"Requests that failed: {sum(failed.values()):,}; retries: {retries:,}. By cause: "
            + ", ".join(f"{cause} {count:,}" for cause, count in sorted(failed.items()))
            + "."
            + (_REFUSED if "row refused" in failed else "")
        )
        key = [
            (cause, charts.color(charts.cause_place(cause)))
            for cause in sorted(failed, key=charts.cause_place)
        ]
        yield figure("Failed requests", says, charts.failures_chart(history), key)
    else:
        yield element("h3", "Failed requests")
        yield element("p", "None: every request was answered the first time.", class_="note")


def _work_table(history: History, *, is_open: bool) -> ET.Element:
    rows = [
        (
            clock(span.at),
            f"{span.inputs_per_second:,.1f}",
            *("" if each is None else f"{each:.3f}"
              for each in (span.median_s, span.p95_s, span.slowest_s)),
            f"{span.ended['ok']:,}",
            f"{span.ended.total() - span.ended['ok']:,}",
            f"{span.retries:,}",
        )
        for span in history.spans
    ]  # fmt: skip
    names = ["time", "texts/s", "median s", "95 % s", "slowest s", "answered", "failed", "retries"]
    worked = table("Work over time", names, rows, numbers=range(1, len(names)), stamped=True)
    return worked if is_open else behind(worked)


def _waits(history: History) -> ET.Element:
    waits = history.waits
    total_s = sum(wait.to_s - wait.from_s for wait in waits)
    words = f"The run waited {len(waits):,} times, {duration(total_s)} in all."
    if len(waits) == 1:
        words = f"The run waited once, {duration(total_s)}."
    rows = [
        (clock(wait.at), wait.reason, duration(wait.to_s - wait.from_s), wait.detail)
        for wait in waits[:MOST_SHOWN]
    ]
    if len(waits) == MOST_WAITS:
        words = f"The run waited at least {len(waits):,} times, {duration(total_s)} in these."
    names = ["since", "for", "how long", "in the endpoint's words"]
    if len(waits) > MOST_SHOWN:
        words += f" These are the first {MOST_SHOWN}."
    return element(
        "figure",
        element("h3", "Waits"),
        element("p", words, class_="note"),
        table("Waits", names, rows, numbers=(), stamped=True),
    )


def _attempts(history: History, *, works: bool) -> ET.Element:
    rows = []
    for attempt in history.attempts:
        on = works and attempt is history.attempts[-1]
        ended = attempt.message or attempt.state or ("it works" if on else "killed")
        code = "" if attempt.exit_code is None else str(attempt.exit_code)
        rows.append(
            (clock(attempt.began), duration(attempt.seconds), f"{attempt.committed_rows:,}",
             f"{attempt.requests:,}", f"{attempt.retries:,}", code, ended)
        )  # fmt: skip
    names = ["began", "took", "rows", "requests", "retries", "exit code", "how it ended"]
    return element(
        "figure",
        element("h3", "Attempts"),
        table("Attempts", names, rows, numbers=(2, 3, 4, 5), stamped=True),
    )
