"""Labels of any name are counted and drawn like all others."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.foreign import visible
from pipeline.observers.words import EMPTY_LABEL
from pipeline.report.rows import OTHERS

# Names that JavaScript's objects have already, that look like no name, or that look alike.
NAMES = [
    "",
    "constructor",
    "__proto__",
    "toString",
    "hasOwnProperty",
    "null",
    "NaN",
    " ",
    "2 others",
]
NAMES += ["\u200b", "[U+200B]", '"] + alert(1) + ["', "\\", "line\nline"]


@pytest.fixture
def output(label, server, tmp_path):
    """A run whose label number i has i + 1 rows."""
    texts = [f"{i} {n}" for i in range(len(NAMES)) for n in range(i + 1)]
    server.script = lambda each: server.reply(
        body=[[{"label": NAMES[int(text.split()[0])], "score": 0.5}] for text in each.texts]
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    return tmp_path / "out.parquet"


def test_a_label_of_any_name_has_its_bar_and_its_scores(shown, output):
    browser = shown(output)
    bars = browser.eval(
        "Array.from(document.querySelectorAll('#labels .chart .mark'),"
        "(bar) => [bar.getAttribute('aria-label'), bar.getBoundingClientRect().width])"
    )
    rows = [int(said.rpartition(": ")[2].split()[0]) for said, _ in bars]
    assert rows == list(range(len(NAMES), 0, -1))
    longest = bars[0][1]
    for count, (_, width) in zip(rows, bars, strict=True):
        assert width == pytest.approx(longest * count / len(NAMES), abs=1)
    drawn = browser.eval(
        "Array.from(document.querySelectorAll('#labels .chart text'), (text) => text.textContent)"
    )
    assert drawn[: len(NAMES)] == [
        (visible(name) or EMPTY_LABEL).strip(" ") for name in reversed(NAMES)
    ]
    assert browser.eval("document.querySelectorAll('section[aria-label=Scores] h3').length") == 12


def test_few_labels_are_drawn_too(shown, label, cli, server, write_csv, tmp_path):
    """An empty one alone, or names that the page gives itself."""
    for number, names in enumerate((["", ""], ["constructor", "toString"], ["", OTHERS])):
        server.script = lambda each, names=names: server.reply(
            body=[[{"label": names[int(text)], "score": 0.5}] for text in each.texts]
        )
        output = tmp_path / f"{number}.parquet"
        label(write_csv("in.csv", ["0", "1"]), output)
        browser = shown(output)
        bars = browser.eval("document.querySelectorAll('#labels .chart .mark').length")
        assert bars == len(set(names))
    assert f"labels: {EMPTY_LABEL} 2" in cli("status", tmp_path / "0.parquet").stdout
