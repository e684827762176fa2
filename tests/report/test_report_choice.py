"""What is chosen of the rows: columns beside the text, one line a text, samples, and colours."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.api import run
from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.report import write_report


@pytest.fixture
def output(label, server, tmp_path):
    """A run over 90 rows; one text has 30 of them, and is the least certain."""
    names = ["positive", "negative", "neutral"]
    texts = ["the same again" if i % 3 == 0 else f"review {i}" for i in range(90)]

    def answer(text):
        number = int(text.split()[-1]) if text.startswith("review") else 0
        return [{"label": names[number % 3], "score": 0.5 + number / 200}]

    server.script = lambda each: server.reply(body=[answer(text) for text in each.texts])
    columns = {"id": [f"r{i:03d}" for i in range(90)], "text": texts, "a, b": [None, 1.5, 2] * 30}
    pq.write_table(pa.table({**columns, "Country": ["DE", "<b>"] * 45}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    return tmp_path / "out.parquet"


def lines(browser, section):
    return browser.eval(
        f"Array.from(document.querySelectorAll('section[aria-label=\"{section}\"] tr'),"
        "(row) => Array.from(row.cells, (cell) => cell.textContent))"
    )


def test_columns_of_choice_stand_beside_the_text(shown, cli, output):
    told = cli("report", "out.parquet", "--columns", "id,Country", "--columns", "score")
    assert told.code == 0, told.stderr
    browser = shown(output.with_name("out.parquet.html"))
    heads, first, second, *_ = lines(browser, "Least certain rows")
    assert heads == ["row", "text", "id", "Country", "score", "rows", "label", "score"]
    assert first == ["0", "the same again", "r000", "DE", "0.5", "30", "positive", "0.5000"]
    assert second == ["1", "review 1", "r001", "<b>", "0.505", "1", "negative", "0.5050"]
    assert "Country" in lines(browser, "Samples")[0]


def test_columns_from_python(shown, server, tmp_path):
    """A name may hold a comma there, and one name alone is a name, not its letters."""
    pq.write_table(pa.table({"text": ["x"], "a, b": [None]}), tmp_path / "in.parquet")
    done = run(
        RunConfig(input=str(tmp_path / "in.parquet"), output=tmp_path / "out.parquet",
                  endpoint=server.url, dialect="hf")
    )  # fmt: skip
    for columns in (["a, b"], "a, b"):
        heads, row = lines(shown(done.report(columns=columns)), "Least certain rows")
        assert (heads[2], row[2]) == ("a, b", "null")


def test_a_column_that_is_not_there_is_refused(cli, output, listing):
    before = listing()
    told = cli("report", "out.parquet", "--columns", "id,country")
    assert told.code == 2
    assert "--columns: out.parquet has no column 'country'. It has: id, text," in told.stderr
    assert "Did you mean 'Country'?" in told.stderr
    assert listing() == before
    with pytest.raises(SettingsError, match=r"`columns`.*no column 'nothing like it'"):
        write_report(output, columns=["nothing like it"])


@pytest.mark.usefixtures("small_chunks")
def test_columns_of_a_run_that_is_not_complete(shown, label, write_csv, tmp_path):
    """Its parts are not Parquet yet."""
    with pytest.raises(Exception, match="Sent 13 requests"):
        label(write_csv("in.csv", [f"text {i}" for i in range(100)]), tmp_path / "out.parquet",
              batch_size=4, concurrency=1, max_requests=13)  # fmt: skip
    with pytest.raises(SettingsError, match="Did you mean 'score'"):
        write_report(tmp_path / "out.parquet", columns=["scores"])
    write_report(tmp_path / "out.parquet", columns=["label"])
    browser = shown(tmp_path / "out.parquet.html")
    assert lines(browser, "Least certain rows")[0] == ["row", "text", "label", "label", "score"]


def test_a_text_of_many_rows_is_one_line(shown, output, words):
    browser = shown(output)
    everything = lines(browser, "Least certain rows")[1:]
    assert len(everything) == 61
    assert [row[1] for row in everything].count("the same again") == 1
    assert "61 of 61 texts shown" in browser.eval("document.querySelector('.rows output').value")
    assert "A text of several rows is one line" in words()


def test_samples_of_each_label(shown, output):
    """A few at random and the most certain ones, the same in each report on the same rows."""
    first = lines(shown(output), "Samples")
    groups = [row[0] for row in first if len(row) == 1]
    assert sorted(groups) == ["negative", "neutral", "positive"]
    for name, last in (("negative", 88), ("neutral", 89)):
        place = first.index([name])
        rows = first[place + 1 : place + 8]
        assert [row[3] for row in rows] == ["at random"] * 4 + ["most certain"] * 3
        numbers = [int(row[0]) for row in rows]
        assert numbers[4:] == [last, last - 3, last - 6]
        assert len(set(numbers)) == 7
        assert {number % 3 for number in numbers} == {last % 3}
    assert lines(shown(output), "Samples") == first


FILLS = (
    "Object.fromEntries(Array.from(document.querySelectorAll('#labels .mark'),"
    "(bar) => [bar.getAttribute('aria-label').split(':')[0], getComputedStyle(bar).fill]))"
)


def colors(shown, label, server, source, output, counts):
    """The colour of each label's bar in a run that gives labels as often as said."""
    names = [name for name, count in counts.items() for _ in range(count)]
    server.script = lambda each: server.reply(
        body=[[{"label": names[int(text)], "score": 0.5}] for text in each.texts]
    )
    label(source("in.csv", [str(i) for i in range(len(names))]), output)
    return shown(output).eval(FILLS)


def test_a_label_has_one_color_for_ever(shown, label, server, write_csv, tmp_path):
    """Whatever its rank, and whichever other labels there are."""
    first = colors(shown, label, server, write_csv, tmp_path / "1.parquet",
                   {"positive": 5, "negative": 2, "neutral": 1, "other": 9})  # fmt: skip
    second = colors(shown, label, server, write_csv, tmp_path / "2.parquet",
                    {"NEGATIVE": 1, "negative": 7, "neutral": 3, "positive": 2})  # fmt: skip
    for name in ("positive", "negative", "neutral"):
        assert first[name] == second[name]
    assert second["NEGATIVE"] == second["negative"]
    hues = {name: float(re.findall(r"[\d.]+", fill)[2]) for name, fill in first.items()}
    usual = [hues[name] for name in ("negative", "positive", "neutral")]
    assert usual == sorted(usual)
    assert min(b - a for a, b in zip(usual, [*usual[1:], usual[0] + 360], strict=True)) > 60
