"""What is known is not asked again, and is counted once: over chunks, attempts and runs."""

import threading

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoppedEarly
from pipeline.events import AnswersPassedOver, BeginsAgain
from pipeline.job import stream
from pipeline.responses.store import _FIRST_READ
from pipeline.store.files import DiskFile


def _labels(output):
    return pq.read_table(output).column("label").to_pylist()


@pytest.fixture
def little_room(monkeypatch, small_chunks):
    """Hold a few small chunks only between reading and commit."""
    monkeypatch.setattr(stream, "held_bytes", lambda _config: 100_000)


def test_a_text_that_comes_again_in_a_later_chunk_counts_once(
    server, label, write_csv, tmp_path, small_chunks
):
    """It is no hit of anything either: the run itself paid for it."""
    table = write_csv("in.csv", [f"text {i % 40}" for i in range(4000)])
    cache = tmp_path / "cache"
    for name, hits in (("first", 0), ("second", 40)):
        summary = label(table, tmp_path / f"{name}.parquet", cache=cache, batch_size=8)
        assert summary["distinct_inputs"] == 40
        assert summary["cache_hits"] == hits
        assert summary["requests"] == (40 - hits) / 8
    assert server.sent_twice() == set()


def test_answers_of_an_earlier_attempt_are_hits_and_its_rows_are_not_counted(
    label, write_csv, tmp_path, small_chunks
):
    table = write_csv("in.csv", [f"text {i}" for i in range(160)])
    settings = {"batch_size": 4, "concurrency": 1}
    with pytest.raises(StoppedEarly) as stopped:
        label(table, tmp_path / "out.parquet", max_requests=13, **settings)
    assert stopped.value.summary["distinct_inputs"] >= 52
    summary = label(table, tmp_path / "out.parquet", **settings)
    assert summary["resumed_rows"] == 48
    assert summary["distinct_inputs"] == 112
    assert summary["cache_hits"] == 4
    assert summary["requests"] == 27


def test_few_new_texts_among_many_known_fill_their_requests(
    server, label, write_csv, tmp_path, small_chunks
):
    """As many requests as new texts need, however far apart they stand in the table."""
    known = [f"known {i}" for i in range(16)]
    cache = tmp_path / "cache"
    label(write_csv("known.csv", known), tmp_path / "known.parquet", cache=cache)
    server.reset()
    texts = [known[i % 16] if i % 50 else f"new {i}" for i in range(3200)]
    summary = label(write_csv("in.csv", texts), tmp_path / "out.parquet", cache=cache)
    assert summary["requests"] == 2  # 64 new texts, 32 a request
    assert sorted(server.texts) == sorted(text for text in texts if text.startswith("new"))


def test_where_there_is_no_room_to_wait_a_smaller_batch_goes_out(
    server, label, write_csv, tmp_path, little_room, right_answer
):
    """Memory is bounded, so the run neither waits for ever nor reads on without end."""
    texts = ["known" if i % 50 else f"new {i}" for i in range(3200)]
    summary = label(write_csv("in.csv", texts), tmp_path / "out.parquet")
    assert _labels(tmp_path / "out.parquet") == [right_answer(text)[0]["label"] for text in texts]
    # 65 distinct texts, and room for about 12 chunks of 16 rows: of those that are not answered, in
    # which one of them stands.
    assert 65 / 13 < summary["requests"] < 65 / 2
    assert server.sent_twice() == set()


def test_a_chunk_that_is_answered_is_no_reason_for_a_smaller_batch(
    server, label, write_csv, tmp_path, small_chunks, monkeypatch
):
    """Room comes with each commit then, so nothing has to go out before its batch is full."""
    monkeypatch.setattr(stream, "held_bytes", lambda _config: 400_000)
    texts = ["known" if i % 16 else f"new {i}" for i in range(16 * 320)]
    summary = label(write_csv("in.csv", texts), tmp_path / "out.parquet", batch_size=8)
    assert 320 / 8 <= summary["requests"] <= 1.4 * 320 / 8
    assert server.sent_twice() == set()


def test_a_slow_answer_holds_back_no_other(server, label, write_csv, tmp_path, small_chunks):
    """Rows behind it are answered and committed."""
    texts = [f"text {i}" for i in range(1600)]

    def script(request):
        if request.number == 1:
            return server.reply(hold=True)
        if len(server.answered_texts) > 1500:
            server.release()
        return None

    server.script = script
    label(write_csv("in.csv", texts), tmp_path / "out.parquet", batch_size=4, concurrency=4)
    assert pq.read_table(tmp_path / "out.parquet").column("text").to_pylist() == texts


class Revisions:
    """A script whose answers tell the revision that is live."""

    def __init__(self, server):
        self._reply = server.reply
        self.live = "one"
        server.script = self

    def __call__(self, request):
        return self._reply(headers={"x-sha": self.live} if self.live else {})


@pytest.mark.parametrize("known_first", [True, False])
def test_a_cache_of_an_older_model_is_asked_again(
    server, label, write_csv, tmp_path, small_chunks, known_first
):
    """Also where rows with known texts were committed before the endpoint told its revision.

    One output holds the labels of the live model, and only what is stale is paid for again.
    """
    revisions = Revisions(server)
    cache = tmp_path / "cache"
    old = [f"old {i}" for i in range(64)]
    new = [f"new {i}" for i in range(64)]
    label(write_csv("old.csv", old), tmp_path / "old.parquet", cache=cache, batch_size=4)
    server.reset()
    revisions = Revisions(server)
    revisions.live = "two"
    texts = old + new if known_first else new + old
    table = write_csv("in.csv", texts)
    said = []
    summary = label(
        table, tmp_path / "out.parquet", cache=cache, batch_size=4, observers=(said.append,)
    )
    assert summary["state"] == "complete"
    assert summary["model_revision"] == "two"
    assert sorted(server.texts) == sorted(texts)
    assert summary["labelled"] == 128
    assert (summary["distinct_inputs"], summary["resumed_rows"]) == (128, 0)
    if known_first:
        assert any(isinstance(event, BeginsAgain) for event in said)
    server.reset()
    revisions = Revisions(server)
    revisions.live = "two"
    again = label(table, tmp_path / "again.parquet", cache=cache)
    assert (again["requests"], again["cache_hits"], again["model_revision"]) == (0, 128, "two")


def test_a_stop_while_stale_answers_are_asked_again_is_resumed_with_the_live_model(
    server, label, write_csv, tmp_path, small_chunks
):
    revisions = Revisions(server)
    cache = tmp_path / "cache"
    old = [f"old {i}" for i in range(64)]
    label(write_csv("old.csv", old), tmp_path / "old.parquet", cache=cache, batch_size=4)
    revisions.live = "two"
    table = write_csv("in.csv", [*old, *(f"new {i}" for i in range(64))])
    settings = {"cache": cache, "batch_size": 4, "concurrency": 1}
    with pytest.raises(StoppedEarly):
        label(table, tmp_path / "out.parquet", max_requests=7, **settings)
    server.requests.clear()
    summary = label(table, tmp_path / "out.parquet", **settings)
    assert summary["model_revision"] == "two"
    assert summary["labelled"] == 128
    assert len(server.texts) == 128 - 7 * 4


def test_what_the_live_model_told_outlasts_a_stop_without_a_part(
    server, label, write_csv, tmp_path, small_chunks
):
    """A cache of an older model that is named later does not take its place."""
    revisions = Revisions(server)
    old = write_csv("old.csv", [f"text {i}" for i in range(64)])
    label(old, tmp_path / "old.parquet", cache=tmp_path / "cache", batch_size=4)
    server.reset()
    revisions = Revisions(server)
    revisions.live = "two"
    table = write_csv("in.csv", [f"text {i}" for i in range(64)])
    with pytest.raises(StoppedEarly):
        # Three of the four requests that the first part needs.
        label(table, tmp_path / "out.parquet", max_requests=3, batch_size=4, concurrency=1)
    assert revisions.live == "two"
    summary = label(table, tmp_path / "out.parquet", batch_size=4, cache=tmp_path / "cache")
    assert summary["model_revision"] == "two"
    assert len(server.texts) == 64
    assert server.sent_twice() == set()


@pytest.mark.parametrize(("first", "then"), [(None, "c"), ("c", None), ("c", "other")])
def test_a_cache_that_is_named_or_dropped_between_attempts_forgets_nothing(
    server, label, write_csv, tmp_path, small_chunks, first, then
):
    """No answer is paid for twice, wherever an attempt kept it."""
    texts = [f"text {i}" for i in range(160)]
    table = write_csv("in.csv", texts)

    def settings(name):
        return {"batch_size": 4, "concurrency": 1, "cache": name and tmp_path / name}

    with pytest.raises(StoppedEarly):
        label(table, tmp_path / "out.parquet", max_requests=13, **settings(first))
    summary = label(table, tmp_path / "out.parquet", **settings(then))
    assert summary["state"] == "complete"
    assert sorted(server.texts) == sorted(texts)


def test_a_cache_of_an_earlier_attempt_may_be_gone(server, label, write_csv, tmp_path):
    """Its answers are asked for again; that is no reason to stop."""
    table = write_csv("in.csv", [f"text {i}" for i in range(40)])
    cache = tmp_path / "cache"
    with pytest.raises(StoppedEarly):
        label(table, tmp_path / "out.parquet", max_requests=2, batch_size=4, cache=cache)
    cache.unlink()
    summary = label(table, tmp_path / "out.parquet", batch_size=4)
    assert summary["labelled"] == 40
    assert not cache.exists()


def test_a_cache_of_an_earlier_attempt_may_be_something_else_by_now(
    server, label, write_csv, tmp_path
):
    """It is not named any more, so it blocks nothing, and a line says what that costs."""
    table = write_csv("in.csv", [f"text {i}" for i in range(40)])
    cache = tmp_path / "cache"
    with pytest.raises(StoppedEarly):
        label(table, tmp_path / "out.parquet", max_requests=2, batch_size=4, cache=cache)
    cache.write_bytes(b"something else")
    said = []
    summary = label(table, tmp_path / "out.parquet", batch_size=4, observers=(said.append,))
    assert summary["labelled"] == 40
    assert cache.read_bytes() == b"something else"
    assert any(isinstance(event, AnswersPassedOver) for event in said)


@pytest.mark.fault(1)
def test_commits_do_not_wait_for_a_slow_look_up(label, server, write_csv, tmp_path, monkeypatch):
    """The disk takes so long that the look-up of one chunk goes on until answers are stored."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 16)
    cache, known = tmp_path / "cache", [f"known {i}" for i in range(16)]
    label(write_csv("known.csv", known), tmp_path / "known.parquet", cache=cache)
    server.reset()
    looked_up, stored, in_time = threading.Event(), threading.Event(), []
    read, sync = DiskFile.read, DiskFile.sync

    def slowly(file, length, at):
        # Not while the store is opened, which reads from its beginning.
        if length == _FIRST_READ and not looked_up.is_set():
            looked_up.set()
            in_time.append(stored.wait(20))
        return read(file, length, at)

    def syncing(file):
        sync(file)
        stored.set()

    def hold(_):
        looked_up.wait(20)

    server.script = hold
    monkeypatch.setattr(DiskFile, "read", slowly)
    monkeypatch.setattr(DiskFile, "sync", syncing)
    new = [f"new {i}" for i in range(16)]
    label(write_csv("in.csv", new + known), tmp_path / "out.parquet", cache=cache, batch_size=16)
    assert in_time == [True]
    assert sorted(server.texts) == sorted(new)


@pytest.mark.parametrize("believed", [True, False])
def test_a_batch_that_is_not_believed_yet_is_not_paid_for_twice(
    label, server, tmp_path, write_csv, right_answer, believed
):
    """The endpoint's first batch is doubted, and the run ends before the question that decides."""
    texts = [f"text {i}" for i in range(64)]
    source = write_csv("in.csv", texts)

    def script(each):
        if each.texts == texts[:1]:  # a near tie that falls the other way if asked alone
            return server.reply(body=[[{"label": "other", "score": 0.5}]])
        if len(each.texts) > 1 and not believed:
            return server.reply(body=[[{"label": "wrong", "score": 0.9}]] * len(each.texts))
        return None

    server.script = script
    settings = {"dialect": "auto", "batch_size": 64}
    with pytest.raises(StoppedEarly, match="max_requests"):
        label(source, tmp_path / "out.parquet", max_requests=2, **settings)
    assert [len(each.texts) for each in server.requests] == [1, 64]
    assert label(source, tmp_path / "out.parquet", **settings)["labelled"] == 64
    assert [len(each.texts) for each in server.requests[2:4]] == [1, 1]
    assert len(server.requests) == (4 if believed else 4 + 64)
    found = pq.read_table(tmp_path / "out.parquet")["label"].to_pylist()
    assert found[1:] == [right_answer(text)[0]["label"] for text in texts[1:]]
