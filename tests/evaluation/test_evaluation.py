"""How good labels are, compared with what scikit-learn and scipy say."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

import classify_pipeline as cp
from pipeline.errors import InputError
from pipeline.evaluation import quality
from pipeline.evaluation.quality import THRESHOLDS, Share

LABELS = ["bad", "fine", "good"]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(LABELS),
        st.sampled_from([*LABELS, "other"]),
        st.floats(0, 1) | st.sampled_from(THRESHOLDS),
    ),
    min_size=1,
    max_size=60,
)


def table(rows, **more):
    gold, label, score = zip(*rows, strict=True)
    columns = {"text": [f"text {i}" for i in range(len(rows))], "gold": gold, "label": label}
    return pd.DataFrame({**columns, "score": score, **more})


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(deadline=None)
@given(ROWS)
def test_figures_are_those_of_scikit_learn(rows):
    gold, label, scores = zip(*rows, strict=True)
    found = cp.evaluate(table(rows), "gold")
    assert found.accuracy.value == pytest.approx(accuracy_score(gold, label))
    names = [each.label for each in found.labels]
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, label, labels=names, zero_division=0
    )
    for at, each in enumerate(found.labels):
        assert each.rows == support[at]
        assert (each.precision.value or 0) == pytest.approx(precision[at])
        assert (each.recall.value or 0) == pytest.approx(recall[at])
        assert each.f1.value == pytest.approx(f1[at])
        assert each.f1.low - 1e-9 <= each.f1.value <= each.f1.high + 1e-9
    matrix = confusion_matrix(gold, label, labels=names)
    pairs = {(true, given): rows for true, given, rows in found.confusion}
    for i, true in enumerate(names):
        for j, given_label in enumerate(names):
            assert pairs.get((true, given_label), 0) == matrix[i, j]
    right = np.array(gold) == np.array(label)
    for at in found.thresholds:
        kept = np.array(scores) >= at.threshold
        assert at.coverage == pytest.approx(kept.mean())
        if kept.any():
            assert at.accuracy.value == pytest.approx(right[kept].mean())


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_those_of_wilson(counts):
    right, rows = counts
    found = Share.of(right, rows)
    expected = binomtest(right, rows).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_an_interval_ends_at_nothing_and_at_all():
    """And neither a rounding beside them, also in what is printed."""
    for rows in range(1, 5_000):
        assert Share.of(0, rows).low == Share.of(0, rows).as_f1().low == 0.0
        assert Share.of(rows, rows).high == Share.of(rows, rows).as_f1().high == 1.0
        assert 0 < Share.of(0, rows).high < 1
        assert 0 < Share.of(rows, rows).low < 1
    found = cp.evaluate(table([("good", "bad", 0.9)] * 6), "gold").to_json()
    ends = [found["accuracy"]["low"], *(label["f1"]["low"] for label in found["labels"])]
    assert set(ends) == {0.0}


def test_calibration():
    """Ten bins; the error is weighted by rows."""
    rows = [("good", "good", 0.95)] * 3 + [("good", "bad", 0.95)] + [("bad", "bad", 0.55)] * 4
    found = cp.evaluate(table(rows), "gold")
    assert [(each.low, each.high, each.rows) for each in found.calibration] == [
        (pytest.approx(0.5), pytest.approx(0.6), 4),
        (pytest.approx(0.9), pytest.approx(1.0), 4),
    ]
    assert [each.accuracy.value for each in found.calibration] == [1.0, 0.75]
    assert found.calibration_error == pytest.approx((0.45 + 0.20) / 2)


def test_the_most_confident_mistakes_come_first(monkeypatch):
    """Of all batches, with their texts; rows are those of the table."""
    monkeypatch.setattr(quality, "MOST_MISTAKES", 3)
    monkeypatch.setattr("pipeline.evaluation.BATCH_ROWS", 7)
    rows = [("good", "good" if i % 3 else "bad", (i * 37 % 100) / 100) for i in range(50)]
    found = cp.evaluate(table(rows), "gold")
    wrong = sorted(((rows[i][2], -i) for i in range(0, 50, 3)), reverse=True)[:3]
    assert [(each.score, -each.row) for each in found.mistakes] == wrong
    assert [each.text for each in found.mistakes] == [f"text {-i}" for _, i in wrong]


def test_rows_without_a_label_or_a_true_one_are_told_apart():
    frame = table([("good", "good", 0.9), ("bad", "good", 0.8), ("bad", "bad", 0.7)])
    frame.loc[1, ["label", "score"]] = [None, None]
    frame.loc[2, "gold"] = None
    found = cp.evaluate(frame, "gold")
    assert (found.rows, found.unlabelled, found.without_gold) == (2, 1, 1)
    assert found.accuracy.value == 1.0
    assert "1 row with a true label got no label." in str(found)
    assert "1 row without a true label: not counted." in str(found)


def test_labels_may_be_called_otherwise():
    frame = table([("bad", "LABEL_0", 0.9), ("good", "LABEL_1", 0.9), ("good", "LABEL_0", 0.6)])
    blind = cp.evaluate(frame, "gold")
    assert blind.accuracy.value == 0.0
    assert "LABEL_0=bad" in blind.notes[0]
    found = cp.evaluate(frame, "gold", label_map={"LABEL_0": "bad", "LABEL_1": "good", "L2": "x"})
    assert found.accuracy.value == pytest.approx(2 / 3)
    assert found.notes == ["The label map names labels that no row has: L2."]


def test_one_label_may_be_called_otherwise():
    rows = pd.DataFrame(
        {"truth": ["bad", "good", "good"], "label": ["bad", "great", "bad"], "score": [0.9] * 3}
    )
    (note,) = cp.evaluate(rows, "truth").notes
    assert note.startswith("Given, but never true: great. True, but never given: good.")
    assert note.endswith("such as great=good.")
    assert cp.evaluate(rows, "truth", label_map={"great": "good"}).notes == []
    assert cp.evaluate(rows.assign(label="bad"), "truth").notes == []  # one that is never given


def test_true_labels_may_be_numbers_or_categories():
    frame = table([("1", "1", 0.9), ("0", "1", 0.9)])
    for gold in (frame["gold"].astype(int), frame["gold"].astype("category")):
        assert cp.evaluate(frame.assign(gold=gold), "gold").accuracy.value == 0.5


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_tables_of_any_kind(kind):
    content = {"truth": ["a", "b"], "label": ["a", "a"]}
    found = cp.evaluate(kind(content), "truth")
    assert found.accuracy.value == 0.5
    assert (found.thresholds, found.calibration_error) == ([], None)
    assert [each.score for each in found.mistakes] == [None]


def test_scores_that_are_no_probabilities():
    """As logits are, with function_to_apply: none."""
    rows = [("good", "good", 7.5), ("bad", "bad", 3.0), ("bad", "good", -2.0)]
    found = cp.evaluate(table(rows), "gold")
    assert found.calibration[0].low == pytest.approx(-2)
    assert found.calibration[-1].high == pytest.approx(7.5)
    assert [at.coverage for at in found.thresholds] == [pytest.approx(2 / 3)] * 8


@pytest.mark.parametrize(
    "columns",
    [
        {"gold": [["a"], ["b"]]},
        {"gold": [object(), "b"]},
        {"score": ["high", "low"]},
    ],
)
def test_columns_of_other_kinds_are_refused(columns):
    frame = table([("good", "good", 0.9), ("bad", "good", 0.8)])
    with pytest.raises(InputError, match=r"cannot be measured|cannot be read|holds"):
        cp.evaluate(frame.assign(**columns), "gold")


def test_what_cannot_be_measured_is_refused():
    frame = table([("good", "good", 0.9)])
    with pytest.raises(InputError, match=r"`gold`: there is no column 'truth'. There are: text, g"):
        cp.evaluate(frame, "truth")
    with pytest.raises(InputError, match="No row has a value in the column 'gold'"):
        cp.evaluate(frame.assign(gold=None), "gold")
    with pytest.raises(InputError, match="`label_column`: there is no column 'label'"):
        cp.evaluate(frame.drop(columns="label"), "gold")
    for columns, setting in (
        ({"gold": "Gold"}, "gold"),
        ({"gold": "gold", "label_column": "lable"}, "label_column"),
        ({"gold": "gold", "score_column": "scores"}, "score_column"),
        ({"gold": "gold", "text": "texts"}, "text"),
    ):
        with pytest.raises(InputError, match=rf"`{setting}`: there is no .* Did you mean '"):
            cp.evaluate(frame, **columns)


@pytest.fixture
def labelled(label, tmp_path):
    """An output with columns of other names, and what is true of it."""
    frame = pd.DataFrame({"review": ["good", "bad", "fine", ""], "truth": ["x", "y", None, "y"]})
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    label(tmp_path / "in.parquet", output, text="review", label_column="sentiment")
    return output


def test_the_command_knows_the_columns_of_the_run(cli, labelled, monkeypatch):
    done = cli("evaluate", str(labelled), "--gold", "truth", "--json")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    expected = cp.evaluate(labelled, "truth").to_json()
    assert found == json.loads(json.dumps(expected))
    assert found["mistakes"][0]["text"] == "good"
    assert set(found["accuracy"]) == {"value", "low", "high"}
    shown = cli("evaluate", str(labelled), "--gold", "truth")
    assert shown.stdout.startswith("Accuracy ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gold", "nothing"], "--gold: there is no column 'nothing'"),
        (["--gold", "truth", "--label-map", "x"], "--label-map: 'x' is not allowed"),
    ],
)
def test_the_command_says_what_is_wrong(cli, labelled, options, words):
    done = cli("evaluate", str(labelled), *options)
    assert done.code == 2
    assert words in done.stderr


def test_no_output(cli, tmp_path):
    done = cli("evaluate", str(tmp_path / "none.parquet"), "--gold", "x")
    assert done.code == 2
    assert "none.parquet cannot be read as a labelled table: it does not exist." in done.stderr


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl", "out"])
@pytest.mark.parametrize("options", [(), ("--gold", "text")])
def test_the_output_of_a_run_that_is_not_complete(cli, server, tmp_path, name, options):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "in.parquet")
    command = ("run", "in.parquet", "-o", name, "--endpoint", server.url, "--batch-size", "1")
    assert cli(*command, "--max-requests", "1").code == 75
    done = cli("evaluate", name, *options)
    assert done.code == 2
    assert done.stderr == (
        f"{name} does not exist yet: its run is not complete. Run the same `classify run` again "
        "to complete it, then evaluate it.\n"
    )


def test_it_shows_itself_in_a_notebook():
    found = cp.evaluate(table([("<b>", "<b>", 0.9), ("bad", "<b>", 0.8)]), "gold")
    shown = found._repr_html_()
    assert "<td>&lt;b&gt;</td>" in shown
    assert "<b>&lt;" not in shown
    assert "Most confident mistakes" in shown


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_a_blank_true_label_is_none(kind):
    """As in a sheet where somebody has not come to that row yet."""
    frame = table([("good", "good", 0.9)] * 4 + [("bad", "good", 0.8)])
    frame["gold"] = pd.Series(["good", "", " \t\u00a0", None, "bad"]).astype(kind)
    found = cp.evaluate(frame, "gold")
    assert (found.rows, found.without_gold) == (2, 3)
    assert {each.label for each in found.labels} == {"good", "bad"}
    assert "3 rows without a true label: not counted." in str(found)


def test_a_true_label_that_is_not_a_number_is_none(tmp_path):
    """Parquet keeps one where pandas had nothing."""
    gold = pa.array([1.0, float("nan"), None, 2.0])
    pq.write_table(pa.table({"gold": gold, "label": ["1", "1", "1", "1"]}), tmp_path / "t.parquet")
    found = cp.evaluate(tmp_path / "t.parquet", "gold")
    assert (found.rows, found.without_gold) == (2, 2)


def test_a_column_of_texts_is_not_taken_for_labels():
    names = [f"text {i}" for i in range(10_001)]
    with pytest.raises(InputError, match="too many values to be labels"):
        cp.evaluate(pd.DataFrame({"gold": names, "label": ["a"] * 10_001}), "gold")
    few = pd.DataFrame({"gold": names[:10_000], "label": names[:10_000]})
    assert cp.evaluate(few, "gold").accuracy.value == 1


def test_rows_that_are_unsure_are_set_aside():
    rows = [("good", "good", 0.9), ("bad", "unsure", 0.4), ("bad", "good", 0.8)]
    found = cp.evaluate(table(rows), "gold", unsure_label="unsure")
    assert (found.rows, found.unsure, found.accuracy.value) == (3, 1, 0.5)
    assert "1 row with a true label and a score below the threshold: not counted." in str(found)
    assert cp.evaluate(table(rows), "gold").accuracy.value == pytest.approx(1 / 3)


def test_an_output_says_which_label_is_unsure(label, tmp_path):
    """Even if its run is gone."""
    table = pa.table({"text": [f"text {i}" for i in range(50)], "truth": ["positive"] * 50})
    pq.write_table(table, tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    label(tmp_path / "in.parquet", output, threshold=0.75, unsure_label="perhaps")
    shutil.rmtree(tmp_path / "out.parquet.run")
    found = cp.evaluate(output, "truth")
    assert found.unsure == pq.read_table(output)["label"].to_pylist().count("perhaps")
    assert 0 < found.unsure < 50


def test_an_output_is_enough(cli, labelled, tmp_path):
    """Its run may be damaged, or gone; then columns have their usual names or are named."""
    (entry, *_) = sorted((tmp_path / "out.parquet.run" / "log").glob("*.json"))
    whole = cp.evaluate(labelled, "truth", label_column="sentiment")
    assert len(whole.notes) == 1
    entry.write_bytes(entry.read_bytes()[:-20])
    refused = cli("evaluate", str(labelled), "--gold", "truth")
    assert refused.code == 2
    assert "--label-column: there is no column 'label'" in refused.stderr
    assert str(entry.parent) in refused.stderr
    done = cli("evaluate", str(labelled), "--gold", "truth", "--label-column", "sentiment")
    assert done.code == 0, done.stderr
    assert "The columns are taken to have their usual names." in done.stdout
    assert str(entry.parent) in done.stdout
    found = cp.evaluate(labelled, "truth", label_column="sentiment")
    assert (found.accuracy, found.confusion) == (whole.accuracy, whole.confusion)
