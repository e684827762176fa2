"""Labels against true ones on the page: the figures of `evaluate`, drawn and listed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import classify_pipeline as cp
from pipeline.api import run
from pipeline.config import RunConfig
from pipeline.errors import InputError, OutputError, StoppedEarly
from pipeline.report import write_report

NAMES = ["good", "bad", "fair"]


@pytest.fixture
def result(server, tmp_path):
    """A run over 300 rows; one in five is wrong, and four have no true label."""
    gold = [NAMES[i % 3] if i % 75 else None for i in range(300)]
    given = [NAMES[(i + (i % 5 == 0)) % 3].upper() for i in range(300)]

    def answer(text):
        number = int(text.split()[-1])
        return [{"label": given[number], "score": 0.4 + number / 500}]

    server.script = lambda each: server.reply(body=[answer(text) for text in each.texts])
    columns = {"id": range(1_000, 1_300), "text": [f"review {i}" for i in range(300)], "gold": gold}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    return run(
        RunConfig(input=str(tmp_path / "in.parquet"), output=tmp_path / "out.parquet",
                  endpoint=server.url, dialect="hf")
    )  # fmt: skip


MAP = {name.upper(): name for name in NAMES}
FLAGS = [part for name in NAMES for part in ("--label-map", f"{name.upper()}={name}")]


def rows_of(browser, table):
    return browser.eval(
        f'Array.from(document.querySelectorAll(\'[aria-label="{table}"] > table tr,'
        f'table[aria-label="{table}"] tr\'),'
        "(row) => Array.from(row.cells, (cell) => cell.textContent))"
    )


def test_the_figures_are_those_of_evaluate(shown, tiles, words, cli, result, tmp_path):
    told = cli("report", "out.parquet", "--gold", "gold", *FLAGS, "--columns", "id")
    assert told.code == 0, told.stderr
    browser = shown(tmp_path / "out.parquet.html")
    found = cp.evaluate(result.output, "gold", label_map=MAP)
    share = found.accuracy
    interval = f"{100 * share.low:.1f} to {share.high:.1%}"
    assert tiles()[f"accuracy ({interval})"] == f"{share.value:.1%}"
    assert tiles()["rows with a true label"] == "296"
    assert str(found).splitlines()[0] in words()

    labels = {row[0]: row[1:] for row in rows_of(browser, "Quality by label")[1:]}
    for each in found.labels:
        shares = [f"{share.value:.1%}" for share in (each.precision, each.recall, each.f1)]
        assert labels[each.label][:5] == [f"{each.rows}", f"{each.predicted}", *shares]
    (_, *heads), *matrix = rows_of(browser, "Confusion matrix")
    pairs = {(row[0], head): int(n) for row in matrix for head, n in zip(heads, row[1:])}  # noqa: B905
    assert {pair: rows for pair, rows in pairs.items() if rows} == {
        (gold, label): rows for gold, label, rows in found.confusion
    }
    kept = rows_of(browser, "Accuracy by threshold")[1:]
    assert [row[1:3] for row in kept] == [
        [f"{at.coverage:.1%}", f"{at.accuracy.value:.1%}" if at.accuracy.value is not None else ""]
        for at in found.thresholds
    ]
    assert len(rows_of(browser, "Calibration")) == 1 + len(found.calibration)
    marks = browser.eval("document.querySelectorAll('#quality .mark').length")
    known = [at for at in found.thresholds if at.accuracy.value is not None]
    assert marks == len(known) + len(found.calibration)
    heads, *mistakes = rows_of(browser, "Most confident mistakes")
    assert heads == ["row", "text", "id", "true", "given", "score"]
    assert mistakes == [
        [f"{m.row}", f"review {m.row}", f"{1_000 + m.row}", m.gold, m.label, f"{m.score:.4f}"]
        for m in found.mistakes
    ]


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1100, True)])
def test_it_fits_the_window(browser, shown, result, width, dark):
    page = result.report(gold="gold", label_map=MAP)
    shown(page, width=width, dark=dark)
    assert browser.eval("document.documentElement.scrollWidth") <= width


def test_labels_by_other_names(shown, words, result):
    """Without a map no label is right, and the page says why that may be."""
    browser = shown(result.report(gold="gold"))
    assert "Some differ only in case" in words()
    assert len(rows_of(browser, "Confusion matrix")) == 1 + 6


def test_what_is_refused(cli, result, listing, label, write_csv, tmp_path):
    before = listing()
    told = cli("report", "out.parquet", "--gold", "Gold")
    assert told.code == 2
    assert "--gold: there is no column 'Gold'" in told.stderr
    assert "Did you mean 'gold'?" in told.stderr
    assert cli("report", "out.parquet", "--gold", "gold", "--label-map", "GOOD").code == 2
    with pytest.raises(InputError, match="No row has a value in the column 'error'"):
        result.report(gold="error")
    assert listing() == before
    with pytest.raises(StoppedEarly):
        label(write_csv("b.csv", [f"{i}" for i in range(90)]), tmp_path / "b.parquet",
              batch_size=4, concurrency=1, max_requests=3)  # fmt: skip
    with pytest.raises(OutputError, match="labels are measured once the run is complete"):
        write_report(tmp_path / "b.parquet", gold="text")


def test_one_row_and_no_mistake(shown, words, server, tmp_path):
    """The smallest page there is, with scores below 0 and above 1."""
    for charts, score in ((1, -3.5), (2, 12.0)):
        server.script = lambda _, score=score: server.reply(body=[[{"label": "a", "score": score}]])
        source, output = tmp_path / "in.parquet", tmp_path / f"{charts}.parquet"
        pq.write_table(pa.table({"text": ["x"], "gold": ["a"]}), source)
        done = run(RunConfig(input=str(source), output=output, endpoint=server.url, dialect="hf"))
        browser = shown(done.report(gold="gold"))
        assert "Accuracy 100.0%" in words()
        assert "Most confident mistakes" not in words()
        assert browser.eval("document.querySelectorAll('#quality svg').length") == charts
