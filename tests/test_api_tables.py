"""Tables of every kind: in through Arrow, out as they came; else clear words."""

import pathlib

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import RunConfig, aclassify, classify, run
from pipeline.errors import InputError, OutputError, ResumeRefused, SettingsError
from pipeline.wording import speak_to

TEXTS = ["good", "bad", None, "good", "fine"]
DATASET = datasets.Dataset.from_dict({"n": [1, 2, 3, 4, 5], "text": TEXTS})


@pytest.fixture
def labels(right_answer):
    return [text and right_answer(text)[0]["label"] for text in TEXTS]


@pytest.fixture
def connection():
    with duckdb.connect() as opened:
        opened.execute("CREATE TABLE reviews (id INTEGER, text VARCHAR, took INTERVAL, key UUID)")
        opened.executemany(
            "INSERT INTO reviews VALUES (?, ?, INTERVAL 3 DAY, uuid())", list(enumerate(TEXTS))
        )
        yield opened


def test_a_duckdb_relation_comes_back_as_arrow(server, labels, connection):
    """It outlives the connection, and DuckDB asks it by its name, from any connection."""
    found = classify(connection.sql("FROM reviews ORDER BY id"), endpoint=server.url)
    assert isinstance(found, pa.Table)
    assert found.column_names == ["id", "text", "took", "key", "label", "score", "error"]
    assert found["label"].to_pylist() == labels
    counts = connection.sql("SELECT label, count(*) FROM found GROUP BY label").fetchall()
    connection.close()
    assert dict(counts) == {label: labels.count(label) for label in labels}
    assert duckdb.sql("SELECT text FROM found WHERE error IS NOT NULL").fetchall() == [(None,)]


async def test_a_duckdb_relation_is_read_elsewhere(server, labels, connection):
    """In the thread of `aclassify`, and only once."""
    relation = connection.sql("FROM reviews ORDER BY id")
    assert (await aclassify(relation, endpoint=server.url))["label"].to_pylist() == labels


def test_a_query_that_fails_is_an_error_of_the_input(server, connection):
    """With DuckDB's words, and DuckDB's own exception behind it."""
    failing = connection.sql("SELECT CAST(text AS INTEGER) AS n, text FROM reviews")
    with pytest.raises(InputError, match=r"DuckDBPyRelation.*Could not convert") as caught:
        classify(failing, endpoint=server.url)
    assert isinstance(caught.value.__cause__, duckdb.Error)
    assert server.requests == []


def stream(texts, column="text"):
    batches = [pa.record_batch({column: pa.array([text], pa.string())}) for text in texts]
    return pa.RecordBatchReader.from_batches(pa.schema([(column, pa.string())]), iter(batches))


def test_a_stream_comes_back_as_arrow(server, labels):
    found = classify(stream(TEXTS), endpoint=server.url)
    assert isinstance(found, pa.Table)
    assert found["label"].to_pylist() == labels


@pytest.mark.parametrize("settings", [{"text": "review"}, {"endpoint": "lokal"}, {"batchsize": 1}])
def test_a_wrong_call_leaves_the_stream_unread(server, labels, settings):
    """Its rows can be read only once, so the call that is put right still finds them."""
    given = stream(TEXTS)
    with pytest.raises(SettingsError):
        classify(given, **{"endpoint": server.url, **settings})
    assert classify(given, endpoint=server.url)["label"].to_pylist() == labels


def test_a_stream_that_breaks_off(server):
    def batches():
        yield pa.record_batch({"text": ["good"]})
        raise OSError("the other side hung up")

    broken = pa.RecordBatchReader.from_batches(pa.schema([("text", pa.string())]), batches())
    with pytest.raises(InputError, match=r"RecordBatchReader.*the other side hung up"):
        classify(broken, endpoint=server.url)
    assert server.requests == []


def test_a_used_up_stream_does_not_pass_for_the_one_that_was_begun(server, tmp_path):
    """The call that continues has to make the stream anew."""
    given = stream(TEXTS)
    again = {"endpoint": server.url, "checkpoint": tmp_path / "kept"}
    classify(given, **again)
    with pytest.raises(ResumeRefused):
        classify(given, **again)
    assert classify(stream(TEXTS), **again).num_rows == len(TEXTS)


def test_a_lazy_frame_comes_back_lazy(server, labels):
    lazy = pl.LazyFrame({"n": [1, 2, 3, 4, 5], "text": TEXTS})
    found = classify(lazy, endpoint=server.url)
    assert isinstance(found, pl.LazyFrame)
    assert found.collect()["label"].to_list() == labels
    assert classify(lazy, endpoint=server.url, limit=2).collect().height == 2


def test_a_dataset_comes_back_as_one(server, labels):
    """Also one whose rows are a selection."""
    found = classify(DATASET, endpoint=server.url)
    assert isinstance(found, datasets.Dataset)
    assert found.column_names == ["n", "text", "label", "score", "error"]
    assert found["label"][:] == labels
    found = classify(DATASET.select([4, 0]), endpoint=server.url)
    assert (found["n"][:], found["label"][:]) == ([5, 1], [labels[4], labels[0]])
    assert classify(DATASET, endpoint=server.url, limit=2).num_rows == 2


@pytest.mark.parametrize(
    ("kind", "comes"),
    [
        (list, pd.DataFrame),
        (tuple, pd.DataFrame),
        (pd.Series, pd.DataFrame),
        (pl.Series, pl.DataFrame),
        (pa.array, pa.Table),
        (lambda texts: pa.chunked_array([texts[:2], texts[2:]]), pa.Table),
    ],
)
def test_texts_alone_give_a_table_of_results(server, labels, kind, comes):
    """In the order of the input, whatever the column would be called."""
    found = classify(kind(TEXTS), "review", endpoint=server.url)
    assert isinstance(found, comes)
    found = pa.table(found)
    assert found.column_names == ["label", "score", "error"]
    assert found["label"].to_pylist() == labels
    assert found["error"].to_pylist() == [None, None, "null text", None, None]
    assert pa.table(classify(kind(TEXTS), endpoint=server.url, limit=2)).num_rows == 2


def test_a_series_keeps_its_index(server, labels):
    series = pd.Series(TEXTS, index=list("abcde"), name="review")
    found = classify(series, endpoint=server.url)
    assert list(found.index) == list("abcde")
    assert found.loc["b", "label"] == labels[1]


def test_rows_as_dicts_come_back_as_dicts(server, labels):
    """With whatever else they hold; a missing text is a null one."""
    thing = object()
    rows = [{"id": 1, "text": "good", "thing": thing}, {"id": 2}, {"text": "bad", 7: "seven"}]
    found = classify(rows, endpoint=server.url)
    assert [row["label"] for row in found] == [labels[0], None, labels[1]]
    assert found[0]["thing"] is thing
    assert found[1] == {"id": 2, "label": None, "score": None, "error": "null text"}
    assert found[2][7] == "seven"
    assert "label" not in rows[0]


def test_no_texts(server):
    assert len(classify([], endpoint=server.url)) == 0
    assert server.requests == []


def test_a_record_batch(server, labels):
    found = classify(pa.record_batch({"text": TEXTS}), endpoint=server.url)
    assert found["label"].to_pylist() == labels


def test_columns_that_are_not_classified_may_hold_anything(server, labels):
    """Types that Parquet or Arrow do not know come back as they went in, and so does metadata."""
    things = [object() for _ in TEXTS]
    frame = pl.DataFrame(
        {"text": TEXTS, "thing": pl.Series(things, dtype=pl.Object), "kind": list("abcab")},
        schema_overrides={"kind": pl.Enum(["c", "b", "a"])},
    )
    found = classify(frame, endpoint=server.url)
    assert found.schema["kind"] == pl.Enum(["c", "b", "a"])
    assert found.drop("label", "score", "error")["thing"].to_list() == things
    assert found["label"].to_list() == labels

    intervals = pa.array([(1, 2, 3)] * len(TEXTS), pa.month_day_nano_interval())
    table = pa.table({"text": TEXTS, "took": intervals}).replace_schema_metadata({"of": "whom"})
    found = classify(table, endpoint=server.url)
    assert found.select(["text", "took"]).equals(table, check_metadata=True)
    assert found["label"].to_pylist() == labels


def test_a_frame_of_a_class_of_ones_own(server, labels):
    """A subclass of a pandas frame is a pandas frame."""

    class Reviews(pd.DataFrame):
        @property
        def _constructor(self):
            return Reviews

    found = classify(Reviews({"text": TEXTS}, index=list("abcde")), endpoint=server.url)
    assert isinstance(found, Reviews)
    assert list(found.index) == list("abcde")
    assert [None if pd.isna(label) else label for label in found["label"]] == labels


def test_a_pandas_column_whose_name_is_no_string(server, labels):
    found = classify(pd.DataFrame({0: TEXTS}), text="0", endpoint=server.url)
    assert list(found.columns) == [0, "label", "score", "error"]
    assert [None if pd.isna(label) else label for label in found["label"]] == labels


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
@pytest.mark.parametrize("limit", [2, 100])
def test_limit_takes_the_first_rows(server, labels, kind, limit):
    """No other row is asked for, or comes back."""
    found = classify(kind({"text": TEXTS}), endpoint=server.url, limit=limit)
    assert isinstance(found, type(kind({"text": TEXTS})))
    assert pa.table(found)["text"].to_pylist() == TEXTS[:limit]
    assert set(server.texts) == {text for text in TEXTS[:limit] if text}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pl.LazyFrame({"text": TEXTS}).select("other"), "LazyFrame cannot be read.*other"),
        ("reviews.csv", "str.*For files, use run; for a single text, pass a list"),
        (pathlib.Path("reviews.csv"), "PosixPath.*For files, use run"),
        ([{"text": "good"}, "fine"], "at position 0 is a dict"),
        (datasets.DatasetDict({"train": DATASET}), r"several tables: train.*dataset\['train'\]"),
        (DATASET.to_iterable_dataset(), "IterableDataset is a stream"),
        (duckdb, "module.*DuckDB relation"),
    ],
)
def test_what_is_no_table_is_refused_with_what_to_give(server, table, words):
    with pytest.raises(InputError, match=words):
        classify(table, endpoint=server.url)
    assert server.requests == []


@pytest.mark.parametrize("column", [pl.Series([object()], dtype=pl.Object), [3], [["good"]]])
def test_a_column_that_holds_no_text(server, column):
    with pytest.raises(InputError, match="'text'"):
        classify(pl.DataFrame({"text": column}), endpoint=server.url)
    assert server.requests == []


@pytest.mark.parametrize("place", ["input", "output"])
def test_places_of_files_are_refused(server, place):
    """They would have no effect, which nobody expects who gives them."""
    with pytest.raises(SettingsError, match=rf"`{place}`: .*For files, use run"):
        classify(pa.table({"text": TEXTS}), endpoint=server.url, **{place: "there.parquet"})
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({"endpoint": "lokal"}, ["--endpoint", "lokal"]),
        ({"endpoint": "local", "text": "revew"}, ["--endpoint", "local", "--text", "revew"]),
        ({"endpoint": "local", "max_errors": "lots"}, ["--endpoint=local", "--max-errors=lots"]),
        ({"endpoint": "hf"}, ["--endpoint", "hf"]),
        ({"endpoint": "local", "text": "n"}, ["--endpoint", "local", "--text", "n"]),
        (
            {"endpoint": "local", "label_column": "n"},
            ["--endpoint", "local", "--label-column", "n"],
        ),
    ],
)
def test_an_error_names_settings_as_its_reader_writes_them(cli, tmp_path, settings, flags):
    """At a terminal and in Python it says the same, but for how a setting is given."""
    table = pa.table({"text": ["good"], "n": [3]})
    pq.write_table(table, tmp_path / "in.parquet")
    ended = cli("run", "in.parquet", "-o", "out.parquet", *flags)
    with pytest.raises((SettingsError, InputError)) as caught:
        classify(table, **settings)
    assert ended.code == caught.value.exit_code
    assert "--" not in str(caught.value)
    speak_to("terminal")
    try:
        assert ended.stderr.strip() == str(caught.value)
    finally:
        speak_to("python")


@pytest.mark.parametrize("checkpoint", [None, "run:1", "exp:1/deep"])
def test_untouched_columns_may_share_a_name(server, checkpoint, tmp_path, monkeypatch):
    """A relative checkpoint may look like an address; it is a directory."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame([["a", 1, "x"], ["b", 2, "y"]], columns=["text", "c", "c"])
    labelled = classify(frame, endpoint=server.url, dialect="hf", checkpoint=checkpoint)
    assert list(labelled.columns) == ["text", "c", "c", "label", "score", "error"]
    assert labelled.iloc[:, 2].tolist() == ["x", "y"]
    with pytest.raises(InputError, match="two columns are named 'text'"):
        classify(frame.set_axis(["text", "text", "c"], axis=1), endpoint=server.url)


def test_a_table_without_texts_is_a_table(server):
    """Whatever type a DataFrame gives such a column."""
    for frame in (
        pd.DataFrame({"text": pd.Series([], dtype=float), "n": pd.Series([], dtype=int)}),
        pd.DataFrame({"text": [float("nan")] * 2}),
    ):
        labelled = classify(frame, endpoint=server.url, dialect="hf")
        assert len(labelled) == len(frame)
        assert list(labelled.columns) == [*frame.columns, "label", "score", "error"]
    assert server.requests == []


def test_a_name_that_only_looks_like_a_column_is_told(server):
    with pytest.raises(SettingsError, match=r"'caf\\xe9', which looks alike"):
        classify(pd.DataFrame({"café": ["a"]}), text="cafe\u0301", endpoint=server.url)


@pytest.mark.parametrize(
    ("columns", "named", "words"),
    [
        (["Review", "other"], {"text": "review"}, "text`: .* Did you mean 'Review'"),
        (["body", "titel"], {"text": "body", "text_pair": "title"}, "pair`: .* mean 'titel'"),
        (["body"], {"text": "text"}, r"It has: body\. Name the column"),
    ],
)
def test_a_column_that_was_meant_is_told(server, columns, named, words):
    table = pd.DataFrame({name: ["a"] for name in columns})
    with pytest.raises(SettingsError, match=words):
        classify(table, endpoint=server.url, **named)
    assert server.requests == []


@pytest.mark.parametrize(
    ("output", "refusal"),
    [
        ("s3://bucket/out.parquet", "cannot write: no credentials were found"),
        ("dbfs:/out", "is an address"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(
    server, output, refusal, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    pd.DataFrame({"text": ["a"]}).to_parquet("in.parquet")
    config = RunConfig(input="in.parquet", output=output, endpoint=server.url)
    with pytest.raises(OutputError, match=refusal):
        run(config)
    assert server.requests == []
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_an_output_that_looks_like_an_address_is_a_file(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"text": ["a"]}).to_parquet("in.parquet")
    (tmp_path / "exp:1").mkdir()
    config = RunConfig(
        input="in.parquet", output="exp:1/out.parquet", endpoint=server.url, dialect="hf"
    )
    assert run(config).to_pandas()["text"].tolist() == ["a"]
    assert run(config).errors_by_cause() == {}
