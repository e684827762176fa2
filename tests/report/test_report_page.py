"""The page in a real browser: it shows, filters, works by keyboard and in the dark."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.api import run
from pipeline.config import RunConfig
from pipeline.report import write_report

ROWS = 300


@pytest.fixture(scope="module")
def output(lasting_server, tmp_path_factory):
    """A complete run over 300 rows with two failures, a cold start and three refused rows."""
    work = tmp_path_factory.mktemp("page")
    texts = [f"review number {i}" for i in range(ROWS)]
    texts[7:10] = ["poison 1", "poison 22", None]
    pq.write_table(pa.table({"text": texts}), work / "in.parquet")

    def script(request):
        reply = lasting_server.reply
        if request.number == 0:
            return reply(503, {"error": "Model m is currently loading", "estimated_time": 0.2})
        if request.number in (4, 5):
            return reply(500, {"error": "internal"})
        if any(text.startswith("poison") for text in request.texts):
            return reply(400, {"error": f"too long: {len(request.texts[0])}"})
        # So that the run has several seconds to show.
        return reply(delay_s=0.35)

    lasting_server.reset()
    lasting_server.script = script
    places = {"input": str(work / "in.parquet"), "output": work / "labelled.parquet"}
    limits = {"batch_size": 16, "concurrency": 2, "max_errors": 3}
    run(RunConfig(**places, **limits, endpoint=lasting_server.url, dialect="hf", model="org/m"))
    lasting_server.reset()
    return work / "labelled.parquet"


@pytest.fixture(scope="module")
def page(output):
    """The report on it."""
    return write_report(output)


def rows_shown(browser):
    return browser.eval(
        "Array.from(document.querySelectorAll('.rows tbody tr:not([hidden])'),"
        "(row) => Array.from(row.cells, (cell) => cell.textContent))"
    )


def count(browser):
    return browser.eval("document.querySelector('.rows output').value")


def test_it_shows_what_the_run_did(shown, page, output, words, tiles):
    shown(page)
    told, numbers = words(), tiles()
    summary = json.loads((output.parent / "labelled.parquet.run/summary.json").read_text())
    assert "The run is complete. 297 of 300 rows are labelled, 3 carry an error" in told
    assert (numbers["rows"], numbers["labelled"], numbers["with an error"]) == ("300", "297", "3")
    assert numbers["requests"] == str(summary["requests"])
    assert numbers["retries"] == str(summary["retries"])
    for label, rows in summary["labels"].items():
        assert f"{label}\t{rows}\t{rows / 297:.2%}" in told
    assert "400 too long: #\nExamples\n\t2\t66.7%" in told
    assert "null text" in told
    for name in ("org/m", "Throughput", "Latency", "server error 2", "model loading"):
        assert name in told


def test_charts_are_drawn_in_full(shown, page):
    """Labels, a histogram for each, three over time; nothing of them is cut off at the left."""
    browser = shown(page)
    charts = browser.eval(
        "Array.from(document.querySelectorAll('.chart'), (chart) =>"
        " [chart.querySelectorAll('.mark').length,"
        " Math.min(...Array.from(chart.querySelectorAll('svg:first-child :is(text, .mark)'),"
        " (it) => it.getBoundingClientRect().left - chart.getBoundingClientRect().left))])"
    )
    assert len(charts) == 1 + 3 + 3
    assert min(charts)[0] > 0, charts
    for _, left in charts:
        assert left >= 0


def test_a_label_is_picked(shown, page, right_answer):
    browser = shown(page)
    everything = rows_shown(browser)
    scores = [float(row[3]) for row in everything]
    assert scores == sorted(scores)
    browser.click("select")
    browser.press("ArrowDown")
    browser.press("Enter")
    all_shown = f"{len(everything)} of {len(everything)} texts shown"
    browser.wait_for(lambda: count(browser) != all_shown)
    shown_rows = rows_shown(browser)
    (label,) = {row[2] for row in shown_rows}
    assert shown_rows == [row for row in everything if row[2] == label]
    for _, text, _, score in shown_rows:
        best = right_answer(text)[0]
        assert (best["label"], f"{best['score']:.4f}") == (label, score)
    assert count(browser) == f"{len(shown_rows)} of {len(everything)} texts shown"


def test_rows_are_searched(shown, page):
    browser = shown(page)
    everything = rows_shown(browser)
    browser.click("input")
    browser.type("NUMBER 12")
    found = [row for row in everything if "number 12" in row[1]]
    assert 0 < len(found) < len(everything)
    assert rows_shown(browser) == found
    browser.type("x")
    assert rows_shown(browser) == []
    assert browser.eval("document.querySelector('.none').hidden") is False
    browser.press("Escape")
    assert rows_shown(browser) == everything


def test_rows_are_sorted(shown, page):
    browser = shown(page)
    everything = rows_shown(browser)
    browser.click(".rows thead th:first-child button")
    numbers = [int(row[0]) for row in rows_shown(browser)]
    assert numbers == sorted(int(row[0]) for row in everything)
    browser.click(".rows thead th:first-child button")
    assert [int(row[0]) for row in rows_shown(browser)] == numbers[::-1]
    sorts = "document.querySelector('.rows thead th:first-child').getAttribute('aria-sort')"
    assert browser.eval(sorts) == "descending"


def focused(browser):
    return browser.eval(
        "(() => { const it = document.activeElement; const style = getComputedStyle(it);"
        " return [it.tagName, it.className, it.getAttribute('aria-label') || it.textContent,"
        " style.outlineStyle, parseFloat(style.outlineWidth)]; })()"
    )


def test_the_keyboard_reaches_everything(shown, page):
    """From the top to the end by Tab alone, with a focus that is seen at each stop."""
    browser = shown(page)
    stops = []
    for _ in range(60):
        browser.press("Tab")
        stop = focused(browser)
        if stop[0] == "BODY":
            break
        assert stop[3] != "none", stop
        assert stop[4] >= 1, stop
        stops.append(stop)
    kinds = [stop[0] for stop in stops]
    assert stops[0][2] == "Skip to the labels"
    assert len([stop for stop in stops if stop[1].startswith("chart")]) == 7
    assert {"SELECT", "INPUT", "BUTTON", "SUMMARY"} <= set(kinds)
    for tag, _, name, *_ in stops:
        assert name or tag in ("SELECT", "INPUT"), tag


def test_the_keyboard_goes_through_the_values_of_a_chart(shown, page):
    browser = shown(page)
    for _ in range(2):
        browser.press("Tab")
    assert focused(browser)[1] == "chart"
    tip = (
        "(() => { const it = document.querySelector('#tip'); return it.hidden || it.textContent })"
    )
    browser.press("ArrowRight")
    first = browser.eval(tip + "()")
    assert "rows" in first
    browser.press("ArrowRight")
    assert browser.eval(tip + "()") not in (True, first)
    browser.press("Home")
    assert browser.eval(tip + "()") == first
    browser.press("Escape")
    assert browser.eval(tip + "()") is True


def test_the_mouse_shows_values(shown, page):
    browser = shown(page)
    browser.point_at(".chart .mark")
    assert "rows" in browser.eval("document.querySelector('#tip').textContent")
    assert browser.eval("document.querySelector('#tip').hidden") is False


def test_details_open_by_keyboard(shown, page):
    """A chart's numbers are there as a table, and an error's rows as examples."""
    browser = shown(page)
    browser.eval("document.querySelector('td summary').focus()")
    browser.press("Enter", "\r")
    assert "too long: 8" in browser.eval("document.querySelector('td details').innerText")
    browser.eval("document.querySelector('section > details > summary').focus()")
    browser.press("Enter", "\r")
    table = browser.eval("document.querySelector('section > details').innerText")
    assert "score\t" in table


COLORS = """
Array.from(document.querySelectorAll('body, .note, .lead, th, td, a, summary, .chart text, .state'),
  (it) => { const style = getComputedStyle(it); let back = it;
    while (getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)' && back.parentElement)
      back = back.parentElement;
    return [it.closest('svg') && it.tagName === 'text' ? style.fill : style.color,
      getComputedStyle(back).backgroundColor]; })
"""


def luminance(color):
    numbers = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    parts = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in numbers]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("look", ["light", "dark", "print"])
def test_text_is_legible(browser, shown, page, look):
    """In light, in the dark and on paper, charts too: a contrast of 4.5 to 1 at least."""
    shown(page, dark=look != "light")
    if look == "print":
        browser.look(dark=True, media="print")
    pairs = {tuple(pair) for pair in browser.eval(COLORS)}
    assert len(pairs) > 3
    for text, back in pairs:
        light, dark = sorted((luminance(text), luminance(back)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)
    back = luminance(browser.eval("getComputedStyle(document.body).backgroundColor"))
    assert (back < 0.1) is (look == "dark")


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_it_fits_the_window(shown, page, width):
    browser = shown(page, width=width)
    assert browser.eval("document.documentElement.scrollWidth") <= width


SPANS = """
Array.from(document.querySelectorAll(
  '.chart svg, td.label, .lines td, .lines th, #labels td, [aria-label="Samples"] th.group'))
  .map((it) => [it.getBoundingClientRect(), getComputedStyle(it).display])
  .filter(([box, display]) => display !== 'none').map(([box]) => [box.left, box.right, box.width])
"""


@pytest.mark.parametrize("width", [390, 1100])
def test_charts_and_labels_are_seen_without_scrolling(shown, page, width):
    """On a phone too: rows are blocks there, and charts are drawn for its width, not shrunk."""
    browser = shown(page, width=width, height=844)
    spans = browser.eval(SPANS)
    assert len(spans) > 100
    for left, right, wide in spans:
        assert 0 <= left < right <= width, (left, right)
        assert wide > 0
    drawn = browser.eval(
        "Array.from(document.querySelectorAll('.chart'), (chart) =>"
        " Array.from(chart.querySelectorAll('svg')).filter((it) => it.getClientRects().length)"
        ".length)"
    )
    assert drawn == [1] * 7
    sizes = browser.eval(
        "Array.from(document.querySelectorAll('.chart svg text'))"
        ".map((it) => it.getBoundingClientRect().height).filter((height) => height > 0)"
    )
    assert min(sizes) > 8


def test_parts_have_names(shown, page):
    """What a screen reader says of charts, tables, fields and sections."""
    browser = shown(page)
    nameless = browser.eval(
        "Array.from(document.querySelectorAll('.chart, section, [role=region]'))"
        ".filter((it) => !it.getAttribute('aria-label')).length"
    )
    assert nameless == 0
    assert browser.eval("document.querySelector('select').labels[0].textContent").startswith(
        "Label"
    )
    assert browser.eval("document.querySelector('input').labels.length") == 1
    assert browser.eval("document.documentElement.lang") == "en"


def test_without_scripts_the_page_is_read_all_the_same(browser, page):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    names = " ".join(str(node.get("name", {}).get("value")) for node in tree)
    assert "297 of 300 rows are labelled" in names
    assert "400 too long: #" in names


def test_a_page_is_small(page):
    assert page.stat().st_size < 300_000
