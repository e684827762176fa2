"""`gold`: a run measures its labels at the end, against a column of true ones."""

import json
import re

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import classify_pipeline as cp
from pipeline.errors import InputError, SettingsError
from pipeline.store import output_at
from pipeline.system import remote
from tests.storage import S3Server

TEXTS = [f"text {i}" for i in range(200)]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def true(right_answer):
    """The labels of the texts, of which every fifth is wrong and every seventh is missing."""
    found = []
    for i, text in enumerate(TEXTS):
        answer = right_answer(text)
        found.append(None if i % 7 == 0 else answer[1 if i % 5 == 0 else 0]["label"])
    return found


@pytest.fixture
def source(tmp_path, true):
    pq.write_table(pa.table({"text": TEXTS, "label": true}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


KNOWN = [i for i in range(200) if i % 7]
RIGHT = sum(i % 5 != 0 for i in KNOWN) / len(KNOWN)


def test_the_summary_says_how_good_the_labels_are(label, source, output, tmp_path):
    summary = label(source, output, gold="label")
    names = ["text", "label", "predicted_label", "predicted_score", "predicted_error"]
    assert pq.read_table(output).column_names == names
    found = summary["evaluation"]
    assert (found["gold"], found["rows"], found["without_gold"]) == ("label", len(KNOWN), 29)
    assert found["accuracy"]["value"] == pytest.approx(RIGHT)
    assert found["accuracy"]["low"] < RIGHT < found["accuracy"]["high"]
    assert found["macro_f1"] == cp.evaluate(output, "label").macro_f1
    assert {each["label"] for each in found["labels"]} == {"negative", "neutral", "positive"}
    kept = json.loads((tmp_path / "out.parquet.run" / "summary.json").read_text())
    assert kept["evaluation"] == json.loads(json.dumps(found))
    assert not any(text in json.dumps(kept) for text in TEXTS)  # it may be sent anywhere


def test_the_same_without_sending_anything_once_it_is_complete(label, server, source, output):
    label(source, output, gold="label")
    server.reset()
    again = label(source, output, gold="label")
    assert again["evaluation"]["accuracy"]["value"] == pytest.approx(RIGHT)
    assert server.requests == []


def test_true_labels_may_be_named_later(label, server, tmp_path, output, true):
    pq.write_table(pa.table({"text": TEXTS, "truth": true}), tmp_path / "in.parquet")
    assert label(tmp_path / "in.parquet", output)["evaluation"] is None
    server.reset()
    found = label(tmp_path / "in.parquet", output, gold="truth")["evaluation"]
    assert found["accuracy"]["value"] == pytest.approx(RIGHT)
    assert server.requests == []


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_rows_with_errors_and_unsure_ones_are_told_apart(
    label, server, source, tmp_path, name, true, right_answer, small_chunks
):
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if "text 3" in each.texts else None
    )
    found = label(source, tmp_path / name, gold="label", threshold=0.75)["evaluation"]
    low = [i for i in KNOWN if i != 3 and right_answer(TEXTS[i])[0]["score"] < 0.75]
    high = [i for i in KNOWN if i != 3 and i not in low]
    assert (found["unlabelled"], found["unsure"]) == (1, len(low))
    right = sum(true[i] == right_answer(TEXTS[i])[0]["label"] for i in high)
    assert found["accuracy"]["value"] == pytest.approx(right / len(high))
    assert {each["label"] for each in found["labels"]} <= {"negative", "neutral", "positive"}
    server.reset()
    server.script = lambda _: None
    retried = label(source, tmp_path / name, gold="label", threshold=0.75, retry_failed=True)
    assert retried["evaluation"]["unlabelled"] == 0


def test_labels_are_measured_by_their_names(label, tmp_path, output, true):
    names = {"negative": "bad", "neutral": "so so", "positive": "good"}
    gold = [names.get(each) for each in true]
    pq.write_table(pa.table({"text": TEXTS, "truth": gold}), tmp_path / "in.parquet")
    found = label(tmp_path / "in.parquet", output, gold="truth", label_map=names)["evaluation"]
    assert found["accuracy"]["value"] == pytest.approx(RIGHT)
    assert found["notes"] == []


def test_the_command_ends_with_how_good_they_are_and_what_to_look_at(cli, server, source):
    command = ("run", source, "-o", "out.parquet", "--endpoint", server.url, "--gold", "label")
    done = cli(*command)
    assert done.code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(re.match(r"Accuracy \d+\.\d% \(.* to .*%\) on 171 labelled rows", x) for x in lines)
    assert any("macro F1" in line for line in lines)
    assert any("29 rows without a true label" in line for line in lines)
    assert any("in the column 'predicted_label'" in line for line in lines)
    (evaluate,) = [line for line in lines if line.startswith("Next: classify evaluate")]
    shown = cli(*evaluate.removeprefix("Next: classify ").split())
    assert shown.code == 0, shown.stderr
    assert shown.stdout.splitlines()[0] in lines


def test_what_cannot_be_is_refused_before_anything_is_sent(cli, server, tmp_path):
    table = pa.table({"text": ["a"], "lists": [["a"]], "label": ["b"], "labels": ["b"]})
    pq.write_table(table, tmp_path / "in.parquet")
    command = ("in.parquet", "-o", "out.parquet", "--endpoint", server.url)
    for gold, words in (("lable", "--gold: the input has no column 'lable'"),
                        ("lists", "which is no label"),
                        ("labels", "column 'label' already")):  # fmt: skip
        for verb in ("run", "plan"):
            refused = cli(verb, *command, "--gold", gold)
            assert (refused.code, server.requests) == (2, []), (verb, gold)
            assert words in refused.stderr
    assert "say so: --gold label" in cli("run", *command).stderr
    assert cli("plan", *command, "--gold", "label").code == 0
    assert cli("run", *command, "--gold", "label", "--limit", "1").code == 0


def test_rows_that_are_only_shown_are_measured_too(cli, server, source):
    command = ("run", source, "--endpoint", server.url, "--limit", "20", "--gold")
    shown = cli(*command, "label")
    assert shown.code == 0, shown.stderr
    lines = shown.stdout.splitlines()
    known = [i for i in KNOWN if i < 20]
    right = sum(i % 5 != 0 for i in known) / len(known)
    assert lines[20].startswith(f"Accuracy {100 * right:.1f}% (")
    assert f"on {len(known)} labelled rows with a true label in 'label'" in lines[20]
    assert "3 rows without a true label: not counted." in lines[21:]
    server.reset()
    refused = cli(*command, "truth")
    assert refused.code == 2
    assert "--gold: the input has no column 'truth'" in refused.stderr
    assert server.requests == []


def test_shown_rows_without_a_true_label_say_so(cli, server, source):
    shown = cli("run", source, "--endpoint", server.url, "--gold", "label", "--limit", "1")
    assert shown.code == 0, shown.stderr
    assert "Not measured: No row has a value in the column 'label'." in shown.stdout


def test_a_run_that_cannot_be_measured_is_complete_all_the_same(cli, server, tmp_path):
    table = pa.table({"text": ["a", "b"], "truth": pa.array([None, None], pa.string())})
    pq.write_table(table, tmp_path / "in.parquet")
    command = ("run", "in.parquet", "-o", "out.parquet", "--endpoint", server.url)
    done = cli(*command, "--gold", "truth")
    assert done.code == 0, done.stderr
    assert "Not measured: No row has a value in the column 'truth'." in done.stdout
    found = cli(*command, "--gold", "truth", "--json").json["evaluation"]
    assert set(found) == {"gold", "message"}


def test_an_output_at_an_address(label, source, monkeypatch):
    server = S3Server()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        remote.store_at.cache_clear()
        output = f"{server.bucket().url}/out.parquet"
        found = label(source, output, gold="label")["evaluation"]
        assert found["accuracy"]["value"] == pytest.approx(RIGHT)
        assert output_at(output).exists()
    finally:
        remote.store_at.cache_clear()
        server.close()


def test_the_result_of_a_run_has_all_figures(server, source, output):
    result = cp.run(source, output, endpoint=server.url, dialect="hf", gold="label")
    assert result.evaluation.accuracy.value == pytest.approx(RIGHT)
    assert result.evaluation.mistakes
    assert "Accuracy" in result._repr_html_()
    assert cp.evaluate(output, "label").to_json() == result.evaluation.to_json()


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_a_table_in_memory(server, true, kind, capfd):
    frame = kind({"text": TEXTS, "label": true})
    call = {"endpoint": server.url, "dialect": "hf", "gold": "label"}
    labelled = cp.classify(frame, progress=True, **call)
    assert "Accuracy" in capfd.readouterr().err
    found = cp.evaluate(labelled, "label")  # finds the columns beside it
    assert found.accuracy.value == pytest.approx(RIGHT)
    with pytest.raises(SettingsError, match="`gold`: the input has no column 'x'"):
        cp.classify(frame, **{**call, "gold": "x"})
    with pytest.raises(SettingsError, match="`gold`: the input has no column 'label'"):
        cp.classify(TEXTS, **call)


async def test_a_table_in_memory_beside_other_work(server, true, capfd):
    frame = pd.DataFrame({"text": TEXTS, "label": true})
    call = {"endpoint": server.url, "dialect": "hf", "gold": "label", "progress": True}
    labelled = await cp.aclassify(frame, **call)
    assert "Accuracy" in capfd.readouterr().err
    assert "predicted_label" in labelled.columns


def test_true_labels_may_change_between_calls_with_one_checkpoint(server, true, tmp_path):
    """They are no part of what is labelled."""
    call = {"endpoint": server.url, "dialect": "hf", "gold": "truth", "checkpoint": tmp_path / "c"}
    cp.classify(pd.DataFrame({"text": TEXTS, "truth": true}), **call)
    server.reset()
    cp.classify(pd.DataFrame({"text": TEXTS, "truth": true[::-1]}), **call)
    assert server.requests == []


def test_labels_are_not_measured_against_themselves():
    frame = pd.DataFrame({"text": ["a"], "label": ["b"]})
    with pytest.raises(InputError, match="no column 'predicted_label'"):
        cp.evaluate(frame, "label")
    with pytest.raises(InputError, match="'label' is the column of labels"):
        cp.evaluate(frame, "label", label_column="label")


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_evaluate_takes_the_column_that_the_run_measured(cli, server, source, tmp_path, name):
    command = ("run", source, "-o", name, "--endpoint", server.url, "--gold", "label")
    assert cli(*command).code == 0
    shown = cli("evaluate", name)
    assert shown.code == 0, shown.stderr
    assert shown.stdout == cli("evaluate", name, "--gold", "label").stdout
    assert cp.evaluate(tmp_path / name).gold == "label"


def test_also_if_it_was_named_once_the_run_was_complete(cli, label, tmp_path, output, true):
    """What the run itself came to stays what its summary says."""
    other = true[::-1]
    pq.write_table(pa.table({"text": TEXTS, "a": true, "b": other}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", output)
    refused = cli("evaluate", output)
    assert refused.code == 2
    assert "--gold: required, since no run of" in refused.stderr
    kept = tmp_path / "out.parquet.run" / "summary.json"
    before = json.loads(kept.read_text())
    for gold in ("a", "b"):
        label(tmp_path / "in.parquet", output, gold=gold)
        assert cli("evaluate", output, "--json").json["gold"] == gold
    after = json.loads(kept.read_text())
    assert {**after, "evaluation": None} == before


def test_a_table_in_memory_has_no_run_that_names_the_column():
    with pytest.raises(SettingsError, match="`gold`: required for a table in memory"):
        cp.evaluate(pd.DataFrame({"text": ["a"], "label": ["b"]}))
