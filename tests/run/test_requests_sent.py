"""What is sent: each distinct text once, in full batches, and never what is known already."""

import math

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoppedEarly


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_identical_texts_are_sent_once(
    label, server, right_answer, write_csv, tmp_path, batch_size
):
    distinct = [f"text {i}" for i in range(100)]
    rows = [distinct[i * i % 100] for i in range(300)] + distinct
    summary = label(write_csv("in.csv", rows), tmp_path / "out.parquet", batch_size=batch_size)
    assert sorted(server.texts) == sorted(distinct)
    assert len(server.requests) == summary["requests"] == math.ceil(100 / batch_size)
    assert summary["distinct_inputs"] == 100
    found = pq.read_table(tmp_path / "out.parquet")["label"].to_pylist()
    assert found == [right_answer(text)[0]["label"] for text in rows]


def test_batches_run_on_over_the_borders_of_chunks(label, server, write_csv, tmp_path, many_texts):
    """The number of requests is the ceiling of distinct texts over batch size, also over chunks."""
    rows = [text for i, text in enumerate(many_texts) for _ in range(1 + (i % 10 == 0))]
    rows += many_texts[:3_000]
    summary = label(write_csv("in.csv", rows), tmp_path / "out.parquet", batch_size=150)
    assert summary["rows"] == 25_000
    assert sorted(server.texts) == sorted(many_texts)
    assert not server.sent_twice()
    assert len(server.requests) == math.ceil(20_000 / 150)
    assert {len(each.texts) for each in server.requests} == {150, 20_000 % 150}


def test_a_bad_text_is_refused_once(label, server, write_csv, tmp_path):
    """A duplicate of a row that failed costs nothing, in this chunk or in a later one."""
    server.script = lambda each: server.reply(400, {"error": "no"}) if "bad" in each.texts else None
    summary = label(
        write_csv("in.csv", ["bad", "good"] * 5_000), tmp_path / "out.parquet", batch_size=2
    )
    assert (summary["errors"], summary["labelled"]) == (5_000, 5_000)
    assert [each.texts for each in server.requests] == [["bad", "good"], ["bad"], ["good"]]


def test_without_dedup_every_row_is_sent(label, server, write_csv, tmp_path):
    """For models that do not answer the same question alike."""
    rows = ["same"] * 100 + ["other"] * 20
    summary = label(
        write_csv("in.csv", rows), tmp_path / "out.parquet", dedup=False, server_cache=False
    )
    assert sorted(server.texts) == sorted(rows)
    assert len(server.requests) == summary["requests"] == math.ceil(120 / 32)
    assert all(each.headers["x-use-cache"] == "false" for each in server.requests)


@pytest.mark.usefixtures("small_chunks")
def test_without_dedup_a_continued_run_sends_each_row_once(label, server, write_csv, tmp_path):
    source, output = write_csv("in.csv", ["same"] * 100), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, dedup=False, batch_size=10, max_requests=5)
    assert label(source, output, dedup=False, batch_size=10)["state"] == "complete"
    assert server.texts == ["same"] * 100


def test_a_cache_spares_what_another_run_asked(label, server, write_csv, tmp_path):
    cache = tmp_path / "answers.sqlite"
    first, second = [f"a {i}" for i in range(100)], [f"b {i}" for i in range(60)]
    label(write_csv("first.csv", first), tmp_path / "1.parquet", cache=cache)
    server.reset()
    summary = label(write_csv("both.csv", [*second, *first]), tmp_path / "2.parquet", cache=cache)
    assert sorted(server.texts) == sorted(second)
    assert (summary["cache_hits"], summary["distinct_inputs"]) == (100, 160)
    assert (summary["labelled"], summary["requests"]) == (160, 2)
    label(write_csv("3.csv", [*second, *first]), tmp_path / "3.parquet")
    assert (tmp_path / "2.parquet").read_bytes() == (tmp_path / "3.parquet").read_bytes()


@pytest.mark.parametrize(
    "settings", [{"model": "org/other"}, {"top_k": 2}, {"truncate": True}], ids=str
)
def test_a_cache_never_answers_for_another_question(label, server, write_csv, tmp_path, settings):
    """Model and parameters decide an answer as much as the text does."""
    cache, source = tmp_path / "answers.sqlite", write_csv("in.csv", ["good", "bad"])
    label(source, tmp_path / "1.parquet", cache=cache)
    label(source, tmp_path / "2.parquet", cache=cache, **settings)
    assert server.texts == ["good", "bad"] * 2


def test_a_cache_remembers_no_failure(label, server, write_csv, tmp_path):
    cache, source = tmp_path / "answers.sqlite", write_csv("in.csv", ["bad"])
    server.script = lambda _: server.reply(400, {"error": "no"})
    assert label(source, tmp_path / "1.parquet", cache=cache)["errors"] == 1
    server.script = lambda _: None
    assert label(source, tmp_path / "2.parquet", cache=cache)["errors"] == 0


def test_no_more_in_flight_than_concurrency_allows(label, server, write_csv, tmp_path):
    server.script = lambda _: server.reply(delay_s=0.01)
    source = write_csv("in.csv", [f"text {i}" for i in range(200)])
    summary = label(source, tmp_path / "out.parquet", batch_size=5, concurrency=4)
    assert 1 < server.peak_in_flight <= 4
    assert summary["peak_in_flight"] == server.peak_in_flight


def test_finding_out_the_dialect_takes_one_request_more(label, server, write_csv, tmp_path):
    """One text is sent alone first, to see whether it is answered alike in a batch."""
    texts = [f"text {i}" for i in range(100)]
    summary = label(write_csv("in.csv", texts), tmp_path / "out.parquet", dialect="auto")
    assert set(server.texts) == set(texts)
    assert server.sent_twice() == set(server.requests[0].texts) == set(texts[:1])
    assert len(server.requests) == summary["requests"] == 1 + math.ceil(100 / 32)


def test_limit_takes_the_first_rows(label, server, write_csv, tmp_path):
    source = write_csv("in.csv", [f"text {i}" for i in range(100)])
    label(source, tmp_path / "out.parquet", limit=10)
    assert sorted(server.texts) == [f"text {i}" for i in range(10)]
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [
        f"{i:05d}" for i in range(10)
    ]
