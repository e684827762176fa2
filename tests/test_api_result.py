"""What a run shows of itself: progress where somebody looks on, and its result."""

import re
from html.parser import HTMLParser

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline import classify
from pipeline.foreign import visible
from pipeline.observers import result_html

HOSTILE = [
    '<script>alert("label")</script>',
    '"><img src=x onerror=alert(1)>',
    "</table></div><h1>",
    "&lt;b&gt;",
    "$\\href{javascript:alert(1)}{x}$",
    "\u202eevitagen",
    "[link](javascript:alert(1))",
]
SUMMARY = {
    "exit_code": 0, "rows": 10, "labelled": 10, "errors": 0, "labels": {}, "output": "out.parquet",
    "endpoint": "local", "model": "sentiment", "requests": 2, "seconds": 0.5,
}  # fmt: skip
# All that the HTML is made of: nothing that runs, loads or links.
TAGS = {"div", "b", "code", "bdi", "table", "thead", "tbody", "tr", "th", "td", "svg", "rect"}
ATTRIBUTES = {"class", "style", "width", "height", "fill", "opacity", "aria-hidden"}


class Page(HTMLParser):
    """What a browser makes of HTML: its elements, and the foreign words that it shows."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = set(), set(), [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.open.append(tag)
        if tag == "bdi":
            self.words.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "bdi" in self.open:
            self.words[-1] += data


@pytest.fixture
def config(server, write_csv, tmp_path):
    """Settings of a run over two texts and an empty one."""
    return pipeline.RunConfig(
        input=str(write_csv("in.csv", ["good", "fine", ""])),
        output=tmp_path / "out.parquet",
        endpoint=server.url,
        dialect="hf",
    )


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_and_errors_of_a_hostile_server_are_inert(config, server, label):
    """They are shown, characters that hide spelled out in errors; nothing that they say is done."""
    server.script = lambda each: (
        server.reply(status=422, body={"error": label})
        if "fine" in each.texts
        else server.reply(body=[[{"label": label, "score": 0.9}]])
    )
    page = Page(pipeline.run(config)._repr_html_())
    assert page.tags == TAGS
    assert page.attributes == ATTRIBUTES
    assert label in page.words
    assert any(visible(label) in words and words != label for words in page.words)


@given(st.dictionaries(st.text(min_size=1, max_size=120), st.integers(1, 10**9), max_size=20))
def test_any_label_is_shown_as_it_is(labels):
    page = Page(result_html({**SUMMARY, "labels": labels}, {}))
    assert page.tags <= TAGS
    assert set(labels) <= set(page.words)


def test_the_colours_are_those_of_the_page():
    """On dark ground too: no colour is fixed, and MathJax leaves it alone."""
    html = result_html({**SUMMARY, "labels": {"a": 1}}, {"null text": 3})
    assert not re.search(r"#[0-9a-f]{3}|rgb|black|white|background|(?<!-)\bcolor:", html)
    assert 'class="tex2jax_ignore mathjax_ignore"' in html


def test_only_the_most_frequent_are_shown():
    """A model of a thousand labels does not fill the page, and no row goes uncounted."""
    labels = {f"label {i}": i for i in range(1, 1_001)}
    rows = sum(labels.values())
    page = result_html({**SUMMARY, "rows": rows, "labels": labels}, {"x" * 5_000: 3})
    assert page.index("label 1000<") < page.index("label 999<")
    shown = [int(found) for found in re.findall(r"<bdi>label (\d+)</bdi>", page)]
    assert shown == list(range(1_000, 980, -1))
    assert "980 others" in page
    assert f"{rows - sum(shown):,}" in page
    assert "x" * 200 not in page


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "complete (exit code 0)"),
        ({"errors": 1}, "complete; no more rows failed than max_errors allows (exit code 0)"),
        ({"errors": 1, "exit_code": 3}, "complete, but rows carry errors (exit code 3)"),
    ],
)
def test_the_exit_code_is_told_in_words(found, words):
    assert words in result_html({**SUMMARY, **found}, {})


def test_errors_are_counted_by_cause(config, server, write_csv):
    """The most frequent cause first, in a file and in a directory, whatever the column is named."""
    write_csv("in.csv", ["", "good", "bad", "", "fine"])
    server.script = lambda each: server.reply(status=422) if "bad" in each.texts else None
    for place in ("out.parquet", "out"):
        output = config.output.with_name(place)
        result = pipeline.run(config.model_copy(update={"output": output, "error_column": "why"}))
        causes = result.errors_by_cause()
        assert list(causes.values()) == [2, 1]
        assert next(iter(causes)) == "null text"
        assert [each for each in causes if "422" in each] == list(causes)[1:]


def test_causes_beyond_many_are_counted_together(config, server, write_csv, monkeypatch):
    """An endpoint that numbers its errors does not fill the memory."""
    monkeypatch.setattr("pipeline.result.MOST_CAUSES", 3)
    write_csv("in.csv", [f"text {i}" for i in range(10)])
    server.script = lambda each: (
        server.reply(422, {"error": f"no {each.texts[0]}"}) if "text" in each.texts[0] else None
    )
    settings = {"batch_size": 1, "max_errors": 10}
    causes = pipeline.run(config.model_copy(update=settings)).errors_by_cause()
    assert (len(causes), sum(causes.values())) == (4, 10)
    assert next(iter(causes.items())) == ("(other causes)", 7)


def test_a_result_is_a_table(config):
    """It goes wherever the Arrow PyCapsule interface goes."""
    result = pipeline.run(config)
    table = result.to_arrow()
    assert table.column_names == ["id", "text", "label", "score", "error"]
    assert result.to_pandas()["error"].tolist()[2] == "null text"
    assert pl.DataFrame(result).equals(pl.from_arrow(table))
    assert pa.table(result).equals(table)
    assert duckdb.sql("SELECT count(label) FROM result").fetchall() == [(2,)]


def test_a_result_whose_output_is_gone_still_shows_itself(config):
    result = pipeline.run(config)
    config.output.unlink()
    assert "1 with errors" in result._repr_html_()


def test_progress_is_for_those_who_ask(server, capsys):
    """A script is quiet where it does not ask, and plain lines go to stderr where it does."""
    table = pa.table({"text": ["good", "bad"]})
    classify(table, endpoint=server.url)
    classify(table, endpoint=server.url, progress=False)
    assert capsys.readouterr() == ("", "")
    classify(table, endpoint=server.url, progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err[20:].startswith(f"2 rows, endpoint {server.url}")


def test_progress_of_a_run(config, capsys):
    pipeline.run(config)
    assert capsys.readouterr() == ("", "")
    pipeline.run(config.model_copy(update={"output": config.output.with_name("2")}), progress=True)
    assert capsys.readouterr().err[20:].startswith("3 rows, ")
