"""Commits: one part for the chunks that are resolved soon after one another."""

import itertools
import json
import sys
import threading
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoppedEarly
from pipeline.job import stream
from pipeline.store.records import RunLog
from pipeline.writer import write_part

CHUNK_ROWS = 16
ROWS = 100
CHUNKS = 7
TEXTS = [None if i == 40 else f"poison {i}" if i % 31 == 5 else f"text {i}" for i in range(ROWS)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_ROWS", CHUNK_ROWS)


@pytest.fixture
def source(tmp_path, server):
    """100 rows with a dictionary that is another one in each part; poison is refused."""

    def refuse(request):
        if any("poison" in text for text in request.texts):
            return server.reply(400, {"error": "poison"})
        return None

    server.script = refuse
    path = tmp_path / "in.parquet"
    kinds = pa.array([f"kind {i // 10}" for i in range(ROWS)]).dictionary_encode()
    pq.write_table(pa.table({"text": TEXTS, "kind": kinds}), path, row_group_size=ROWS)
    return path


@pytest.fixture
def parts(monkeypatch):
    """The rows of each part, in the order of their records."""
    found = []
    add = RunLog.add_part

    def adding(log, part, revision):
        found.append((part.first_row, part.rows))
        add(log, part, revision)

    monkeypatch.setattr(RunLog, "add_part", adding)
    return found


@pytest.fixture
def lagging(monkeypatch):
    """The first commit goes on until all chunks are resolved."""
    resolved = threading.Semaphore(0)
    resolver = sys.modules["pipeline.rows.resolver"]
    finish, calls = resolver.finish, itertools.count()

    def finishing(*arguments):
        found = finish(*arguments)
        resolved.release()
        return found

    def writing(store, table, **more):
        if next(calls) == 0:
            for _ in range(CHUNKS):
                assert resolved.acquire(timeout=30)
        return write_part(store, table, **more)

    monkeypatch.setattr(resolver, "finish", finishing)
    monkeypatch.setattr(stream, "write_part", writing)


def test_a_part_a_chunk_where_chunks_are_large(label, source, tmp_path, parts, monkeypatch):
    monkeypatch.setattr(stream, "PART_BYTES", 1)
    label(source, tmp_path / "out.parquet")
    expected = [(at, min(CHUNK_ROWS, ROWS - at)) for at in range(0, ROWS, CHUNK_ROWS)]
    assert sorted(parts) == expected  # they are committed as they become whole


@pytest.mark.usefixtures("lagging")
def test_chunks_that_wait_are_one_part(label, source, tmp_path, parts, monkeypatch):
    """The output, its counts and the events are those of a run with a part a chunk."""
    summary = label(source, tmp_path / "out.parquet")
    found = list(parts)
    assert max(rows for _, rows in found) >= 3 * CHUNK_ROWS
    borders = [0, *accumulate(rows for _, rows in sorted(found))]
    assert [first for first, _ in sorted(found)] == borders[:-1]
    assert borders[-1] == ROWS
    log = (tmp_path / "out.parquet.run" / "events.jsonl").read_text().splitlines()
    told = [event for event in map(json.loads, log) if event["event"] == "PartCommitted"]
    assert [(event["first_row"], event["rows"]) for event in told] == found
    monkeypatch.undo()
    expected = label(source, tmp_path / "expected.parquet")
    assert summary["labels"] == expected["labels"]
    assert summary["errors"] == expected["errors"] == sum("text" not in str(t) for t in TEXTS)
    same = [(tmp_path / name).read_bytes() for name in ("out.parquet", "expected.parquet")]
    assert same[0] == same[1]


@pytest.mark.parametrize("held_bytes", [1, stream.HELD_BYTES])
def test_nothing_waits_for_a_rest_that_does_not_end(
    label, source, tmp_path, parts, monkeypatch, held_bytes
):
    """Neither the reader, which waits for a commit if it may hold no more, nor the end."""
    monkeypatch.setattr(stream, "REST_S", 3_600)
    monkeypatch.setattr(stream, "held_bytes", lambda _config: held_bytes)
    label(source, tmp_path / "out.parquet")
    assert sum(rows for _, rows in parts) == ROWS


def test_a_run_that_is_stopped_ends_though_no_more_may_be_held(
    label, source, tmp_path, parts, monkeypatch
):
    """What is held fails then, so no commit ever makes room for the reader."""
    monkeypatch.setattr(stream, "held_bytes", lambda _config: 1)
    with pytest.raises(StoppedEarly, match="max_requests"):
        label(source, tmp_path / "out.parquet", batch_size=4, max_requests=2)
    assert parts == []
    label(source, tmp_path / "out.parquet")
    assert sum(rows for _, rows in parts) == ROWS


@pytest.mark.usefixtures("lagging")
def test_a_part_has_so_many_bytes_at_most(label, source, tmp_path, parts, monkeypatch):
    """A chunk that is larger is a part by itself."""
    # Two whole chunks have room, and the short last one beside them has not: a row takes 45 bytes,
    # its share of a dictionary included.
    monkeypatch.setattr(stream, "PART_BYTES", 2 * CHUNK_ROWS * 50)
    label(source, tmp_path / "out.parquet")
    assert max(rows for _, rows in parts) == 2 * CHUNK_ROWS
    parts.clear()
    monkeypatch.setattr(stream, "PART_BYTES", 1)
    label(source, tmp_path / "again.parquet")
    assert max(rows for _, rows in parts) == CHUNK_ROWS


@pytest.mark.usefixtures("lagging")
def test_dictionaries_inside_of_lists_do_not_tell_how_chunks_were_joined(
    label, tmp_path, parts, monkeypatch
):
    """Each chunk keeps its own in the part that it is joined to."""
    kind = pa.list_(pa.dictionary(pa.int32(), pa.string()))
    tags = [[f"tag {(CHUNK_ROWS - i) % CHUNK_ROWS} {i // CHUNK_ROWS}"] for i in range(ROWS)]
    table = pa.table({"text": [f"text {i}" for i in range(ROWS)], "tags": pa.array(tags, kind)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=CHUNK_ROWS)
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert len(parts) < CHUNKS
    parts.clear()
    monkeypatch.setattr(stream, "PART_BYTES", 1)
    monkeypatch.setattr(stream, "write_part", write_part)
    label(tmp_path / "in.parquet", tmp_path / "expected.parquet")
    assert len(parts) == CHUNKS
    same = [(tmp_path / name).read_bytes() for name in ("out.parquet", "expected.parquet")]
    assert same[0] == same[1]
    assert pq.read_table(tmp_path / "out.parquet")["tags"].to_pylist() == tags
