"""Outputs that are CSV or JSON Lines."""

import csv
import datetime as dt
import decimal
import gzip
import io
import json
import threading

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import classify_pipeline as cp
from pipeline import labelled
from pipeline.config import RunConfig
from pipeline.errors import OutputError, StoppedEarly
from pipeline.producer import open_source
from pipeline.system import spool
from tests.labels import labels_of

TEXTS = [
    "good", 'say "hi"', "a,b", "two\nlines", "two\r\nlines", "old\rmac", " blanks ", "", None,
    "\ufeffmark", "'single'", "tab\there", "é 😀 \u2028 \x00 end", "00123", "1.50", "=1+1",
    *(f"text {i}" for i in range(84)),
]  # fmt: skip
N = len(TEXTS)
TABLE = pa.table(
    {
        "id": pa.array(range(N), pa.int64()),
        "text": TEXTS,
        "kind": pa.array([f"k{i % 3}" for i in range(N)]).dictionary_encode(),
        "ratio": [float(i) if i % 2 else i / 7 for i in range(N)],
        "flag": [None if i % 5 == 0 else bool(i % 2) for i in range(N)],
        "day": pa.array([dt.date(2020, 1, 1 + i % 28) for i in range(N)]),
        "at": pa.array([i * 1_000_001 for i in range(N)], pa.timestamp("us", "UTC")),
        "price": pa.array([decimal.Decimal(f"{i}.50") for i in range(N)]),
        "tags": [None if i % 7 == 0 else ["x,y", 'q"'] * (i % 3) for i in range(N)],
        "deep": [{"a": i, "b": [{"c": str(i)}]} for i in range(N)],
    }
)
NAMES = [f"out{text}{end}" for text in (".csv", ".jsonl", ".ndjson") for end in ("", ".gz", ".zst")]


@pytest.fixture
def source(tmp_path):
    pq.write_table(TABLE, tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def unpacked(path):
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".zst":
        content = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    return content.decode()


def rows_of(path):
    """Read an output by Python's own csv and json."""
    content = unpacked(path)
    if ".csv" in path.name:
        return list(csv.DictReader(io.StringIO(content, newline="")))
    return [json.loads(line) for line in content.split("\n")[:-1]]


def read_again(path, **options):
    opened = open_source([str(path)], **options)
    return pa.concat_tables(
        [each.table for each in opened.chunks(0, max_rows=10, max_bytes=1 << 20)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_row_with_its_label(label, tmp_path, source, name, small_chunks):
    summary = label(source, tmp_path / name)
    assert (summary["state"], summary["rows"], summary["errors"]) == ("complete", N, 1)
    rows = rows_of(tmp_path / name)
    assert list(rows[0]) == [*TABLE.column_names, "label", "score", "error"]
    assert [row["text"] or "" for row in rows] == [text or "" for text in TEXTS]
    for row, text in zip(rows, TEXTS, strict=True):
        if text is None:
            assert (row["label"] or None, row["error"]) == (None, "null text")
        else:
            best = labels_of(text)[0]
            assert (row["label"], float(row["score"])) == (best["label"], best["score"])
    assert [float(row["ratio"]) for row in rows] == TABLE["ratio"].to_pylist()
    tags = [row["tags"] for row in rows]
    if ".csv" in name:
        tags = [json.loads(each) if each else None for each in tags]
    assert tags == TABLE["tags"].to_pylist()


def test_csv_is_the_same_to_others(label, tmp_path, source):
    """To pandas, pyarrow and this package; an empty text is not null where both are told."""
    label(source, tmp_path / "out.csv")
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, dtype={"text": str})
    assert found["text"].tolist() == [text or "" for text in TEXTS]
    assert found["id"].tolist() == list(range(N))
    again = read_again(tmp_path / "out.csv", text_columns=["text"])
    assert again["text"].to_pylist() == [text or None for text in TEXTS]
    assert again.schema.field("id").type == pa.int64()
    scores = [None if text is None else labels_of(text)[0]["score"] for text in TEXTS]
    assert [each and float(each) for each in again["score"].to_pylist()] == scores
    content = (tmp_path / "out.csv").read_bytes()
    assert b'\n7,"",k1,' in content
    assert b"\n8,,k2," in content
    assert not content.startswith(b"\xef\xbb\xbf")


def test_json_lines_keep_what_is_nested(label, tmp_path, source):
    label(source, tmp_path / "out.jsonl", top_k=2)
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == TEXTS
    assert [row["flag"] for row in rows] == TABLE["flag"].to_pylist()
    assert [row["deep"] for row in rows] == TABLE["deep"].to_pylist()
    assert rows[0]["predictions"] == labels_of("good")[:2]
    assert (rows[3]["day"], rows[3]["price"]) == ("2020-01-04", "3.50")
    again = read_again(tmp_path / "out.jsonl")
    assert again.schema.field("deep").type == TABLE.schema.field("deep").type
    assert again.select(["id", "text", "deep", "tags"]).to_pylist() == (
        TABLE.select(["id", "text", "deep", "tags"]).to_pylist()
    )


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.csv.zst", "out.jsonl.zst"])
def test_the_bytes_are_the_same_however_often_it_was_stopped(
    label, server, tmp_path, source, name, small_chunks
):
    for most in (3, 4, 5):
        with pytest.raises(StoppedEarly):
            label(source, tmp_path / name, batch_size=8, concurrency=1, max_requests=most)
        assert not (tmp_path / name).exists()
    assert label(source, tmp_path / name)["state"] == "complete"
    assert not server.sent_twice()
    label(source, tmp_path / f"at_once.{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"at_once.{name}").read_bytes()
    before = len(server.requests)
    assert label(source, tmp_path / name)["state"] == "complete"
    assert len(server.requests) == before


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_it_may_take_the_place_of_the_input(label, server, tmp_path, name):
    path = tmp_path / name
    path.write_text("text\ngood\nbad\n" if name == "out.csv" else '{"text":"good"}\n{"text":"b"}\n')
    with pytest.raises(OutputError, match="is the input"):
        label(path, path)
    assert label(path, path, overwrite=True)["labelled"] == 2
    assert label(path, path, overwrite=False)["state"] == "complete"
    assert len(server.texts) == 2


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_file_that_no_run_wrote_is_not_replaced_unasked(label, server, tmp_path, source, name):
    (tmp_path / name).write_text("of somebody else")
    with pytest.raises(OutputError, match="exists already, and not from a run"):
        label(source, tmp_path / name)
    assert server.requests == []
    assert label(source, tmp_path / name, overwrite=True)["state"] == "complete"


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.jsonl"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_the_result_reads_it(server, tmp_path, source, name, top_k):
    config = RunConfig(
        input=str(source), output=tmp_path / name, endpoint=server.url, dialect="hf", top_k=top_k
    )
    result = cp.run(config)
    found = result.to_arrow()
    assert found.num_rows == N
    assert found.schema.field("label").type == pa.string()
    assert found.schema.field("score").type == pa.float64()
    assert found["text"].to_pylist()[13:15] == ["00123", "1.50"]
    assert result.to_pandas()["id"].tolist() == list(range(N))
    assert result.errors_by_cause() == {"null text": 1}
    assert result.report(tmp_path / "page.html").read_text().count("00123") > 0
    evaluated = cp.evaluate(tmp_path / name, "kind")
    assert evaluated.to_json()["rows"] == N


def test_without_rows(label, server, tmp_path):
    pq.write_table(TABLE.slice(0, 0), tmp_path / "in.parquet")
    for name in ("out.csv", "out.jsonl", "out.jsonl.gz"):
        assert label(tmp_path / "in.parquet", tmp_path / name)["rows"] == 0
        assert rows_of(tmp_path / name) == []
    header = ",".join([*TABLE.column_names, "label", "score", "error"])
    assert (tmp_path / "out.csv").read_text() == header + "\n"


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_an_update_takes_its_answers(label, server, tmp_path, name, top_k):
    (tmp_path / "in.csv").write_text("text\ngood\nbad\n")
    label(tmp_path / "in.csv", tmp_path / name, top_k=top_k)
    (tmp_path / "in.csv").write_text('text\nbad\nnew\n"a ""quoted"" one"\n')
    label(tmp_path / "in.csv", tmp_path / name, top_k=top_k, update=True)
    (tmp_path / "in.csv").write_text('text\n"a ""quoted"" one"\nlast\n')
    summary = label(tmp_path / "in.csv", tmp_path / name, top_k=top_k, update=True)
    assert summary["cache_hits"] == 1
    assert server.texts == ["good", "bad", "new", 'a "quoted" one', "last"]
    label(tmp_path / "in.csv", tmp_path / f"fresh.{name}", top_k=top_k)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"fresh.{name}").read_bytes()


def test_no_thread_of_arrow_reads_an_output(label, server, tmp_path, source, monkeypatch):
    """One that still holds a Python buffer when the interpreter ends aborts it."""
    readers = []
    read = spool._Reader.readinto

    def reading(self, buffer):
        readers.append(threading.current_thread().name)
        return read(self, buffer)

    monkeypatch.setattr(spool._Reader, "readinto", reading)
    monkeypatch.setattr(labelled, "_ROWS", 3)  # Arrow reads several row groups in parallel
    config = RunConfig(
        input=str(source), output=tmp_path / "out.csv", endpoint=server.url, dialect="hf",
        exact_scores=True,
    )  # fmt: skip
    result = cp.run(config)
    uses = [
        result.errors_by_cause,
        result.to_arrow,
        lambda: cp.evaluate(config.output, gold="kind"),
        lambda: result.report(tmp_path / "page.html"),
        lambda: label(source, config.output, update=True, error_column="why"),
    ]
    for use in uses:
        readers.clear()
        use()
        assert readers
        assert not [name for name in readers if name.startswith("Dummy")]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz"])
def test_a_retry_is_refused(label, server, tmp_path, source, name):
    """It would have to give the other rows back as they are."""
    label(source, tmp_path / name)
    before = len(server.requests), (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match=r"`retry_failed=True`: .* does not keep all types"):
        label(source, tmp_path / name, retry_failed=True)
    assert (len(server.requests), (tmp_path / name).read_bytes()) == before


@pytest.mark.parametrize(("name", "offered"), [("out.csv", False), ("out.parquet", True)])
def test_a_retry_is_offered_only_where_it_is_not_refused(cli, server, source, name, offered):
    ended = cli("run", source, "-o", name, "--endpoint", server.url, "--max-errors", "1")
    assert ended.code == 0
    assert "The column 'error' says why" in ended.stdout
    assert ("--retry-failed" in ended.stdout) is offered
    state = cli("status", name, "--json").json
    assert state["errors"] == 1
    assert ("--retry-failed" in state["next"]) is offered


def test_what_text_cannot_hold_is_refused(label, server, tmp_path):
    table = pa.table({"text": ["a"], "raw": [[{"b": b"\xff"}]]})
    pq.write_table(table, tmp_path / "in.parquet")
    for name, form in (("out.csv", "CSV"), ("out.jsonl", "JSON Lines")):
        with pytest.raises(OutputError, match=rf"column 'raw' holds .* which {form} has no way"):
            label(tmp_path / "in.parquet", tmp_path / name)
    assert label(tmp_path / "in.parquet", tmp_path / "out.parquet")["rows"] == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["OUT.CSV", "out.Jsonl.GZ", "Out.Parquet"])
def test_capitals_name_the_same_forms(label, server, tmp_path, source, name):
    """As those of inputs do; not a directory of Parquet files that is called `OUT.CSV`."""
    label(source, tmp_path / name)
    assert (tmp_path / name).is_file()
    assert cp.evaluate(tmp_path / name, "kind").rows == N


@pytest.mark.parametrize("name", ["o.json", "o.tsv", "o.arrow", "o.xlsx", "o.parquet.gz", "O.TSV"])
def test_other_kinds_are_refused(label, server, tmp_path, source, name):
    with pytest.raises(OutputError, match=r"of a kind that is not written\. Name a file that ends"):
        label(source, tmp_path / name)
    assert server.requests == []


def test_cells_of_json_are_told(label, server, tmp_path, source):
    told = []
    label(source, tmp_path / "out.csv", observers=(told.append,), top_k=2)
    notices = [each for each in told if type(each).__name__ == "CellsOfJson"]
    assert [each.columns for each in notices] == ["tags, deep, predictions"]


def test_text_that_is_not_utf8(label, tmp_path):
    """Parquet may hold it; in text it is replaced, as its row says that it has no label."""
    raw = pa.array([b"good", b"b\xffd"]).cast(pa.binary()).view(pa.string())
    inside = pa.ListArray.from_arrays([0, 1, 2], raw)
    pq.write_table(pa.table({"text": raw, "more": inside}), tmp_path / "in.parquet")
    for name in ("out.csv", "out.jsonl"):
        assert label(tmp_path / "in.parquet", tmp_path / name)["errors"] == 1
        rows = rows_of(tmp_path / name)
        assert [row["text"] for row in rows] == ["good", "b\ufffdd"]
        assert rows[1]["more"] in (["b\ufffdd"], '["b\ufffdd"]')


@pytest.mark.fault(1)
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz"])
@pytest.mark.parametrize(
    "at", ["assembly.row group", "finish.identified", "finish.assembled", "finish.complete"]
)
def test_killed_at_the_end(cli, label, server, tmp_path, source, name, at):
    """The file is there whole or not at all, and nothing is asked again."""
    label(source, tmp_path / f"at_once.{name}", max_errors=1)
    server.reset()
    command = ("run", source, "-o", name, "--endpoint", server.url, "--max-errors", "1")
    killed = cli(*command, PIPELINE_FAILPOINT=at)
    assert killed.code == 137, killed.stderr
    assert (tmp_path / name).exists() == (at in ("finish.assembled", "finish.complete"))
    done = cli(*command)
    assert done.code == 0, done.stderr
    assert not server.sent_twice()
    assert (tmp_path / name).read_bytes() == (tmp_path / f"at_once.{name}").read_bytes()
    state = cli("status", name, "--json").json
    assert (state["state"], state["committed_rows"]) == ("complete", N)
    shown = cli("evaluate", name, "--gold", "kind")
    assert shown.code == 0, shown.stderr
