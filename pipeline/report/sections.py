"""The sections of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.observers.words import against_plan, duration
from pipeline.report import charts
from pipeline.report.blocks import as_table, chart, clock, heading, section, table
from pipeline.report.html import element
from pipeline.report.rows import OTHERS
from pipeline.report.timeline import over_time

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from xml.etree import ElementTree as ET

    from pipeline.report.facts import Facts
    from pipeline.report.rows import ErrorGroup, Label, LabelledRows, Row

MOST_HISTOGRAMS = 12
MOST_CAUSES = 50
_SHORT_S = 10.0
_STATES = {"complete": "good", "running": "warn", "stopped": "bad"}


def head(facts: Facts, output: Path, now: float) -> ET.Element:
    """What the run was and what came of it."""
    status = facts.status
    state = _STATES[status.state]
    if status.state == "complete" and status.exit_code:
        state = "warn"
    return element(
        "header",
        element(
            "div",
            element("h1", output.name),
            element("span", status.state, class_=f"state {state}"),
            class_="title",
        ),
        *_lead(facts, now),
        *(element("p", note, class_="notice warn") for note in facts.notes),
        _tiles(facts),
        _facts(facts),
    )


def body(facts: Facts) -> Iterator[ET.Element]:
    """Yield the sections that have something to say."""
    plan = _plan(facts)
    if plan is not None:
        yield plan
    found = facts.found
    if found is None or not found.rows:
        words = "The table has no rows." if found is not None and facts.status.rows == 0 else (
            "No rows yet."
        )  # fmt: skip
        yield section("Labels", element("p", words, class_="note"), id_="labels")
    else:
        yield _labels(found)
        if found.labels:
            yield _scores(found)
            yield _least_certain(found, facts)
        yield _errors(found, facts)
    if facts.history.attempts:
        yield over_time(facts.history, facts)


def _lead(facts: Facts, now: float) -> Iterator[ET.Element]:
    status = facts.status
    if status.state == "complete":
        words = f"All {status.rows:,} rows are labelled."
        if status.errors:
            words = (
                f"{status.labelled:,} of {status.rows:,} rows are labelled, {status.errors:,} "
                f"{_carry(status.errors)} an error instead."
            )
        yield element("p", f"The run is complete. {words}", class_="lead")
        return
    if status.state == "running":
        words = (
            f"This run is not complete: it works right now ({status.doing}), and this page shows "
            f"what was there at {clock(now)}."
        )
    else:
        words = f"This run is not complete: it was stopped. {status.message or ''} "
        if not (status.message or "").endswith(status.next):
            words += status.next
    yield element("p", words.strip(), class_="notice warn", role="note")
    if status.rows is not None:
        again = " in a retry of rows with an error" if status.retry else ""
        yield element(
            "p",
            f"{status.committed_rows:,} of {status.rows:,} rows are committed{again}. "
            + ("Labels, scores and errors are of these only." if status.committed_rows else ""),
            class_="lead",
        )


def _carry(rows: int) -> str:
    return "carries" if rows == 1 else "carry"


def _tiles(facts: Facts) -> ET.Element:
    status, seconds = facts.status, facts.total("seconds")
    tiles = [
        ("rows", f"{status.rows:,}" if status.rows is not None else "not known yet"),
        ("labelled", f"{status.labelled:,}"),
        ("with an error", f"{status.errors:,}"),
        ("requests", f"{facts.total('requests'):,.0f}"),
        ("retries", f"{facts.total('retries'):,.0f}"),
        ("time", duration(seconds) if seconds >= _SHORT_S else f"{seconds:.1f} s"),
    ]
    if facts.rows_per_second:
        tiles.append(("rows a second", f"{facts.rows_per_second:,.0f}"))
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", words)) for name, words in tiles),
        class_="tiles",
    )


def _facts(facts: Facts) -> ET.Element:
    status, attempts = facts.status, facts.history.attempts
    told: list[tuple[str, str | None]] = [
        ("output", status.output),
        ("model", status.model),
        ("revision", status.model_revision),
        # The page is sent around; a query may hold a key.
        ("endpoint", status.endpoint and status.endpoint.partition("?")[0]),
    ]
    if attempts:
        first, last = clock(attempts[0].began), clock(attempts[-1].last)
        day = first.partition(" ")[0]
        span = f"{first} to {last.removeprefix(day).strip()}"
        many = f", in {len(attempts)} attempts" if len(attempts) > 1 else ""
        told.append(("when", span + many))
    if facts.columns is not None:
        pair = f" and {facts.columns.text_pair}" if facts.columns.text_pair else ""
        told.append(("text", f"column {facts.columns.text}{pair}"))
    if status.exit_code is not None:
        told.append(("exit code", str(status.exit_code)))
    told.append(("software", facts.software))
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", element("bdi", words)))
            for name, words in told
            if words
        ),
        class_="facts",
    )


def _plan(facts: Facts) -> ET.Element | None:
    if not isinstance(facts.summary.get("plan"), dict):
        return None
    rows = against_plan(facts.summary)
    return section(
        "Plan and run", table("Plan and run", ["", "planned", "in the run"], rows, numbers=(1, 2))
    )


def _labels(found: LabelledRows) -> ET.Element:
    if not found.labels:
        none = element("p", "No row has a label.", class_="note")
        return section("Labels", none, id_="labels")
    labelled = sum(label.rows for label in found.labels)
    first = found.labels[0]
    says = (
        f"Rows by label, {len(found.labels):,} labels. The most frequent is {first.name}, with "
        f"{first.rows / labelled:.1%} of {labelled:,} labelled rows."
    )
    rows = [(each.name, f"{each.rows:,}", f"{each.rows / labelled:.2%}") for each in found.labels]
    return section(
        "Labels",
        element("p", says, class_="note"),
        element(
            "div",
            element("figure", chart(charts.labels_chart(found.labels), says)),
            table("Rows by label", ["label", "rows", "share"], rows, numbers=(1, 2)),
            class_="columns",
        ),
        id_="labels",
    )


def _scores(found: LabelledRows) -> ET.Element:
    shown = found.labels[:MOST_HISTOGRAMS]
    figures = []
    for i, label in enumerate(shown):
        says = f"Scores of {label.rows:,} rows with the label {label.name}. {_most(label, found)}"
        figures.append(
            element(
                "figure",
                element("h3", element("bdi", label.name)),
                chart(charts.scores_chart(label, found.edges, charts.color(i)), says),
            )
        )
    rest = len(found.labels) - len(shown)
    left_out = f" The {rest:,} least frequent labels are left out." if rest else ""
    rows = [
        (_bin(low, high), *(f"{label.bins[i]:,}" for label in shown))
        for i, (low, high) in enumerate(zip(found.edges, found.edges[1:], strict=False))
    ]
    names = ["score", *(label.name for label in shown)]
    return section(
        "Scores",
        element(
            "p",
            "How many rows have which score, label by label: the same bins for all, each with its "
            f"own height.{left_out}",
            class_="note",
        ),
        element("div", *figures, class_="grid"),
        as_table("Rows by score", names, rows, numbers=range(1, len(names))),
    )


def _most(label: Label, found: LabelledRows) -> str:
    top = max(range(len(label.bins)), key=label.bins.__getitem__)
    return f"Most of them lie in {_bin(found.edges[top], found.edges[top + 1])}."


def _bin(low: float, high: float) -> str:
    return f"{low:g} to {high:g}"


def _least_certain(found: LabelledRows, facts: Facts) -> ET.Element:
    columns = facts.columns
    assert columns is not None, "rows have columns"
    places = {label.name: str(i) for i, label in enumerate(found.labels)}
    options = [element("option", "all labels", value="")]
    sampled = {row.label for row in found.least_certain}
    options += [
        element("option", name, value=place) for name, place in places.items() if name in sampled
    ]
    texts = [columns.text, *([columns.text_pair] if columns.text_pair else [])]
    headings = [
        element("th", element("button", "row", type="button"), scope="col", aria_sort="none",
                class_="number"),
        *(element("th", element("bdi", name), scope="col") for name in texts),
        element("th", element("button", "label", type="button"), scope="col", aria_sort="none"),
        element("th", element("button", "score", type="button"), scope="col",
                aria_sort="ascending", class_="number"),
    ]  # fmt: skip
    rows = [
        element(
            "tr",
            element("td", f"{row.number:,}", class_="number", data_value=row.number),
            *_texts(row),
            element("td", element("bdi", row.label), class_="label"),
            element("td", f"{row.score:.4f}", class_="number", data_value=repr(row.score)),
            data_label=places[row.label or OTHERS],
        )
        for row in found.least_certain
    ]
    made = section(
        "Least certain rows",
        element(
            "p",
            f"The {len(rows):,} labelled rows with the lowest scores, the same number of each "
            "label at most. Review these first. Rows count from 0.",
            class_="note",
        ),
        element(
            "div",
            element("label", "Label", element("select", *options)),
            element(
                "label",
                "Search in these rows",
                element("input", type="search", autocomplete="off", spellcheck="false"),
            ),
            element("output", f"{len(rows)} of {len(rows)} rows shown", aria_live="polite"),
            class_="tools",
        ),
        element(
            "div",
            element(
                "table",
                element("thead", element("tr", *headings)),
                element("tbody", *rows),
            ),
            class_="table tall",
            tabindex=0,
            role="region",
            aria_label="Least certain rows",
        ),
        element("p", "No row fits.", class_="note none", hidden=True),
    )
    made.set("class", "rows")
    return made


def _texts(row: Row) -> Iterator[ET.Element]:
    for text, characters in zip(row.texts, row.characters, strict=True):
        if text is None:
            yield element("td", element("span", "null", class_="null"), class_="text")
            continue
        cut = None
        if characters > len(text):
            cut = element("span", f" … {characters:,} characters", class_="cut")
        yield element("td", text, cut, class_="text", dir="auto")


def _errors(found: LabelledRows, facts: Facts) -> ET.Element:
    columns = facts.columns
    assert columns is not None, "rows have columns"
    if not found.causes:
        none = element("p", "No row carries an error.", class_="note")
        return section("Errors", none)
    total = sum(cause.rows for cause in found.causes)
    rows = [_cause(cause, total) for cause in found.causes[:MOST_CAUSES]]
    rest = found.causes[MOST_CAUSES:]
    left_out = f" The {len(rest):,} rarest causes are left out." if rest else ""
    return section(
        "Errors",
        element(
            "p",
            f"{total:,} of {found.rows:,} rows {_carry(total)} an error instead of a label, by "
            f"cause; # stands for any number.{left_out}",
            class_="note",
        ),
        element(
            "div",
            element(
                "table",
                heading(["cause", "rows", "share"], (1, 2)),
                element("tbody", *rows),
            ),
            class_="table",
        ),
    )


def _cause(cause: ErrorGroup, total: int) -> ET.Element:
    examples = [
        element(
            "tr",
            element("td", f"{row.number:,}", class_="number"),
            *_texts(row),
            element("td", row.error, class_="text"),
        )
        for row in cause.examples
    ]
    texts = len(cause.examples[0].texts) if cause.examples else 0
    names = ["row", "text", "text pair"][: 1 + texts]
    return element(
        "tr",
        element(
            "td",
            element("bdi", cause.words),
            element(
                "details",
                element("summary", "Examples"),
                element(
                    "div",
                    element("table", heading([*names, "error"], (0,)), element("tbody", *examples)),
                    class_="table",
                ),
            ),
        ),
        element("td", f"{cause.rows:,}", class_="number"),
        element("td", f"{cause.rows / total:.1%}", class_="number"),
    )
