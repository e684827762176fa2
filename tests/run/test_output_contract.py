"""The output: the input unchanged, then the results, in a schema that never depends on the data."""

import datetime as dt
import decimal
import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline

TEXTS = ["good", "bad", None, "", "good", " NA ", "null", "00123", "line\r\nbreak", "🙂"]
RESULTS = [("label", pa.string()), ("score", pa.float64()), ("error", pa.string())]
PREDICTIONS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))


def _awkward_table():
    """One column of each kind that a careless reader or writer changes."""
    n = len(TEXTS)
    numbers = range(n)
    columns = {
        "id": pa.array([f"{i:05d}" for i in numbers]),
        "text": pa.array(TEXTS),
        "tiny": pa.array([i - 5 for i in numbers], pa.int8()),
        "unsigned": pa.array([2**64 - 1 - i for i in numbers], pa.uint64()),
        "half": pa.array([float("nan"), None, float("inf"), *([-0.0] * (n - 3))], pa.float32()),
        "price": pa.array([decimal.Decimal(i) / 100 for i in numbers], pa.decimal128(20, 2)),
        "day": pa.array([dt.date(1900 + i, 1, 31) for i in numbers], pa.date32()),
        "at": pa.array([i * 10**15 + i for i in numbers], pa.timestamp("us", "Europe/Berlin")),
        "nanos": pa.array([i * 10**17 + i for i in numbers], pa.timestamp("ns")),
        "country": pa.array([("DE", "NA", None)[i % 3] for i in numbers]).dictionary_encode(),
        "long": pa.array([f"cell {i}" for i in numbers], pa.large_string()),
        "bytes": pa.array([bytes([i, 0, 255]) for i in numbers], pa.binary()),
        "flag": pa.array([(True, False, None)[i % 3] for i in numbers]),
        "tags": pa.array([[], None, ["a", None], *([["b"]] * (n - 3))], pa.list_(pa.string())),
        "nested": pa.array([{"x": i, "y": [{"z": str(i)}]} for i in numbers]),
        "mapped": pa.array([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
        "empty": pa.nulls(n, pa.int32()),
    }
    schema = pa.schema(
        [
            pa.field(name, column.type, metadata={"unit": "none"} if name == "tiny" else None)
            for name, column in columns.items()
        ],
        metadata={"made by": "somebody"},
    )
    return pa.table(list(columns.values()), schema=schema)


@pytest.fixture
def awkward(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(_awkward_table(), path)
    return path


@pytest.mark.parametrize("form", ["out.parquet", "out"])
def test_every_column_of_parquet_comes_back(label, awkward, tmp_path, form):
    """Value, type and order; as one file and as a directory of files."""
    label(awkward, tmp_path / form)
    given, found = pq.read_table(awkward), pq.read_table(tmp_path / form)
    assert found.column_names == [*given.column_names, "label", "score", "error"]
    for name in given.column_names:
        assert found.schema.field(name).equals(given.schema.field(name)), name
        # Printed, since NaN is not equal to itself and -0.0 is equal to 0.0.
        assert str(found[name].to_pylist()) == str(given[name].to_pylist()), name
    assert [(field.name, field.type) for field in found.schema][-3:] == RESULTS
    assert found.schema.metadata[b"made by"] == b"somebody"


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())],
    ids=str,
)
def test_a_text_column_of_any_kind_is_labelled(label, server, right_answer, tmp_path, kind):
    texts = pa.array(TEXTS, pa.string())
    column = (
        texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts.cast(kind)
    )
    pq.write_table(pa.table({"text": column}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    for text, row in zip(TEXTS, found.select(["label", "score", "error"]).to_pylist(), strict=True):
        if text is None:
            assert row == {"label": None, "score": None, "error": "null text"}
        else:
            best = right_answer(text)[0]
            assert row == {"label": best["label"], "score": best["score"], "error": None}
    assert sorted(server.texts) == sorted({text for text in TEXTS if text is not None})


def test_a_column_of_nulls_only_costs_nothing(label, server, tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "in.parquet")
    summary = label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["error"].to_pylist() == ["null text"] * 3
    assert [(field.name, field.type) for field in found.schema][-3:] == RESULTS
    assert (server.requests, summary["labels"], summary["exit_code"]) == ([], {}, 3)


@pytest.mark.parametrize("top_k", [1, 2, 3, 7, "all"])
def test_predictions_only_where_more_than_one_is_asked_for(
    label, server, right_answer, awkward, tmp_path, top_k
):
    label(awkward, tmp_path / "out.parquet", top_k=top_k)
    found = pq.read_table(tmp_path / "out.parquet")
    assert all(
        each.parameters["top_k"] == (None if top_k == "all" else top_k) for each in server.requests
    )
    if top_k == 1:
        assert "predictions" not in found.column_names
        return
    assert found.schema.field("predictions").type == PREDICTIONS
    most = 3 if top_k == "all" else top_k
    expected = [text if text is None else right_answer(text)[:most] for text in TEXTS]
    assert found["predictions"].to_pylist() == expected


def test_pairs_are_labelled_as_pairs(label, right_answer, tmp_path):
    """A pair is another input than its text alone, and a null on either side is an error."""
    table = pa.table({"text": ["a", "a", "a", None], "second": ["b", "c", None, "d"]})
    pq.write_table(table, tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet", text_pair="second")
    found = pq.read_table(tmp_path / "out.parquet")
    best = [right_answer("a", "b")[0]["label"], right_answer("a", "c")[0]["label"], None, None]
    assert found["label"].to_pylist() == best
    assert found["error"].to_pylist() == [None, None, "null text_pair", "null text"]


def test_result_columns_take_the_names_of_the_settings(label, write_csv, tmp_path):
    label(
        write_csv("in.csv", ["good"]), tmp_path / "out.parquet", top_k=2,
        label_column="mood", score_column="how much", error_column="why", predictions_column="ø",
    )  # fmt: skip
    assert pq.read_schema(tmp_path / "out.parquet").names == [
        *("id", "text", "mood", "how much", "why", "ø"),
    ]


def test_the_rows_at_fault_carry_the_servers_words(label, server, write_csv, tmp_path):
    """One bad row never costs its neighbours, and no row is without a label or a reason."""
    texts = [f"poison {i}" if i % 10 == 3 else f"text {i}" for i in range(200)]
    words = "The size of tensor a (502) must match the size of tensor b (64)"
    server.script = lambda each: (
        server.reply(400, {"error": words})
        if any("poison" in text for text in each.texts)
        else None
    )
    summary = label(write_csv("in.csv", texts), tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    for text, name, error in zip(
        texts, found["label"].to_pylist(), found["error"].to_pylist(), strict=True
    ):
        assert (name is None) == ("poison" in text)
        assert error == (f"400 {words}" if "poison" in text else None)
    assert (summary["errors"], summary["labelled"], summary["exit_code"]) == (20, 180, 3)
    assert sum(summary["labels"].values()) == 180


def test_metadata_tells_where_the_labels_come_from(label, server, write_csv, tmp_path):
    server.script = lambda _: server.reply(headers={"x-sha": "0123abcd"})
    source = write_csv("in.csv", ["good"])
    summary = label(source, tmp_path / "out.parquet", model="org/name", top_k=2, truncate=True)
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    told = {
        key.decode().removeprefix("classify."): value.decode()
        for key, value in metadata.items()
        if key.startswith(b"classify.")
    }
    assert told["model"] == "org/name"
    assert told["model_revision"] == summary["model_revision"] == "0123abcd"
    assert told["endpoint"] == server.url.removeprefix("http://")
    assert told["software"] == f"classify-pipeline {pipeline.__version__}"
    assert (told["top_k"], told["truncate"]) == ("2", "true")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["out.parquet", "out"])
def test_equal_runs_give_equal_bytes(label, server, awkward, tmp_path, form):
    """Whatever the order in which the answers came, how many at a time, and in which batches."""
    outputs = []
    for number, settings in enumerate(
        ({}, {"batch_size": 1, "concurrency": 7}, {"dedup": False, "rate": 500})
    ):
        server.script = lambda each, n=number: server.reply(delay_s=((each.number + n) % 3) / 100)
        output = tmp_path / str(number) / form
        output.parent.mkdir()
        label(awkward, output, **settings)
        files = sorted(output.iterdir()) if output.is_dir() else [output]
        outputs.append([(file.name, file.read_bytes()) for file in files])
    for one, other in itertools.pairwise(outputs):
        assert one == other


def test_what_is_kept_after_success(label, write_csv, tmp_path):
    """A small summary and the event log stay; parts and store go."""
    output = tmp_path / "out.parquet"
    summary = label(write_csv("in.csv", ["good", "bad"]), output)
    kept = {path.name for path in (tmp_path / "out.parquet.run").iterdir()}
    assert kept == {"log", "summary.json", "events.jsonl", "lock"}
    written = json.loads((tmp_path / "out.parquet.run" / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    events = [
        json.loads(line)
        for line in (tmp_path / "out.parquet.run" / "events.jsonl").read_text().splitlines()
    ]
    assert events[0]["event"] == "RunStarted"
    assert (events[-1]["event"], events[-1]["state"]) == ("RunEnded", "complete")
