"""Real tables, labelled by the embedded endpoint from the command line."""

import csv
from pathlib import Path

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "sample" / "reviews.csv"
# Larger real files may lie beside the checkout; a clone alone has the sample.
SHARED = ROOT.parent / "shared" / "data"


def _beside(name, *parameters):
    path = SHARED / name
    return [pytest.param(path, *parameters, id=name)] if path.exists() else []


def _sample_gold(row):
    """The label that the stars of a review suggest; none for a lukewarm one."""
    return {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}.get(row["rating"])


def _cells(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("source", "text", "gold", "at_least"),
    [
        # Many reviews of the sample are not in English, for which the model is made.
        pytest.param(SAMPLE, "review", _sample_gold, 0.55, id="reviews.csv"),
        *_beside("sentences.csv", "text", lambda row: row["gold"], 0.75),
    ],
)
def test_labels_every_row_in_order_and_sensibly(cli, tmp_path, source, text, gold, at_least):
    output = tmp_path / "labelled.parquet"
    ended = cli(
        "run", source, "--text", text, "--endpoint", "local", "--model", "sentiment", "-o", output,
        "--max-errors", 1,
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    rows, labelled = _cells(source), pq.read_table(output)
    assert labelled["id"].cast("string").to_pylist() == [row["id"] for row in rows]
    pairs = [
        (gold(row), label)
        for row, label in zip(rows, labelled["label"].to_pylist(), strict=True)
        if gold(row) is not None and label is not None
    ]
    assert len(pairs) > 0.7 * len(rows)
    assert sum(wanted == label for wanted, label in pairs) / len(pairs) >= at_least


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param(SAMPLE, "review", id="reviews.csv"),
        *_beside("banking77.csv", "text"),
        *_beside("sentences.csv", "text"),
    ],
)
def test_every_cell_comes_back_unchanged(cli, tmp_path, source, text):
    """Line breaks, quotes, zeros in front: Python's csv module reads what the output holds.

    An empty cell is null; a column of whole numbers prints back to the same digits.
    """
    output = tmp_path / "labelled.parquet"
    ended = cli(
        "run", source, "--text", text, "--endpoint", "local", "-o", output, "--max-errors", 1
    )
    assert ended.code == 0, ended.stderr
    rows, labelled = _cells(source), pq.read_table(output)
    assert labelled.column_names == [*rows[0], "label", "score", "error"]
    for name in rows[0]:
        found = ["" if cell is None else str(cell) for cell in labelled[name].to_pylist()]
        assert found == [row[name] for row in rows], name
    for row, label, error in zip(
        rows, labelled["label"].to_pylist(), labelled["error"].to_pylist(), strict=True
    ):
        assert (label is None) == (row[text] == "") == (error == "null text")
