"""What notebooks call: a table in, the same kind of table out."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import pipeline
import pipeline.api
from pipeline import aclassify, classify
from pipeline.errors import (
    EndpointRefused,
    InputError,
    Interrupted,
    ResumeRefused,
    SettingsError,
    StoppedEarly,
)
from pipeline.job.runner import Run
from pipeline.wording import setting

TEXTS = ["good", "bad", None, "good", "fine"]


@pytest.fixture
def labels(right_answer):
    return [text and right_answer(text)[0]["label"] for text in TEXTS]


def test_pandas_keeps_its_index_and_columns(server, labels):
    """The caller's own columns come back as they were, with their types and in their order."""
    frame = pd.DataFrame(
        {"n": [1, 2, 3, 4, 5], "text": TEXTS, "c": pd.Categorical(list("abcab"))},
        index=pd.Index([50, 40, 30, 20, 10], name="key"),
    )
    given = frame.copy(deep=True)
    found = classify(frame, endpoint=server.url)
    pd.testing.assert_frame_equal(found[["n", "text", "c"]], given)
    pd.testing.assert_frame_equal(frame, given)
    assert list(found.columns) == ["n", "text", "c", "label", "score", "error"]
    assert [None if pd.isna(label) else label for label in found["label"]] == labels
    assert found.loc[30, "error"] == "null text"
    assert found["score"].dtype == "float64"


def test_a_part_of_a_pandas_frame(server, right_answer):
    """A frame that was filtered keeps the index that it has."""
    frame = pd.DataFrame({"text": ["a", "b", "c"]})
    found = classify(frame[frame["text"] != "b"], endpoint=server.url, top_k=2)
    assert list(found.index) == [0, 2]
    assert [list(each) for each in found["predictions"]] == [right_answer(t)[:2] for t in "ac"]


def test_polars(server, labels):
    frame = pl.DataFrame({"text": TEXTS, "c": pl.Series(list("abcab"), dtype=pl.Categorical)})
    found = classify(frame, endpoint=server.url)
    assert isinstance(found, pl.DataFrame)
    assert found.columns == ["text", "c", "label", "score", "error"]
    assert found["label"].to_list() == labels
    assert found["c"].cast(pl.String).to_list() == list("abcab")


@pytest.mark.parametrize("chunked", [False, True])
def test_pyarrow(server, labels, chunked):
    table = pa.table({"text": TEXTS})
    if chunked:
        table = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    found = classify(table, endpoint=server.url)
    assert found.select(["text"]).equals(table)
    assert found["label"].to_pylist() == labels


def test_whatever_offers_the_capsule_comes_back_as_arrow(server, labels):
    class Offering:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"text": TEXTS}).__arrow_c_stream__(requested_schema)

    found = classify(Offering(), endpoint=server.url)
    assert isinstance(found, pa.Table)
    assert found["label"].to_pylist() == labels


def test_the_embedded_endpoint():
    """The shortest call there is, as the README shows it."""
    found = classify(pa.table({"review": ["I love it", "I hate it"]}), text="review",
                     endpoint="local")  # fmt: skip
    assert found["label"].to_pylist() == ["positive", "negative"]


def test_a_table_without_rows(server):
    found = classify(pd.DataFrame({"text": pd.Series([], dtype="str")}), endpoint=server.url)
    assert list(found.columns) == ["text", "label", "score", "error"]
    assert len(found) == 0
    assert server.requests == []


@pytest.mark.parametrize("table", [None, 3, "reviews.csv", [1, 2], object(), {"text": 3}])
def test_what_is_no_table_is_refused(server, table):
    with pytest.raises(InputError, match="table"):
        classify(table, endpoint=server.url)
    assert server.requests == []


def test_a_missing_column_and_a_wrong_setting_are_refused(server):
    table = pa.table({"review": ["good"]})
    with pytest.raises(SettingsError, match="review"):
        classify(table, endpoint=server.url)
    with pytest.raises(SettingsError, match="batch_size"):
        classify(table, text="review", endpoint=server.url, batchsize=3)
    assert server.requests == []


async def test_inside_a_running_loop(server, labels):
    """As in Jupyter; and a second time, on no loop that the first one closed."""
    for _ in range(2):
        found = classify(pa.table({"text": TEXTS}), endpoint=server.url)
        assert found["label"].to_pylist() == labels
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def interrupt():
    """Press Ctrl-C, in a thread of its own, often or until told (by what this gives) to end."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # for what comes after the call
    ended = threading.Event()

    def press(when, times, afterwards):
        def work():
            when()
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                if ended.wait(0.02):  # signals that follow each other at once would merge
                    break
            afterwards()

        thread = threading.Thread(target=work)
        thread.start()

        def end():
            ended.set()
            thread.join()

        return end

    yield press
    signal.signal(signal.SIGINT, before)


@pytest.mark.fault(8)
@pytest.mark.parametrize("times", [1, 2_000], ids=["once", "again and again"])
async def test_interrupted_inside_a_running_loop(server, tmp_path, interrupt, monkeypatch, times):
    """Once: what is in flight is awaited and kept. Twice: the call ends at once, unanswered."""
    table = pa.table({"text": [f"text {i}" for i in range(1_000)]})
    again = {
        "endpoint": server.url, "checkpoint": tmp_path / "kept", "concurrency": 4, "dialect": "hf",
    }  # fmt: skip
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    stop, stopping = Run.stop, threading.Event()

    def watched_stop(run, reason):
        stop(run, reason)
        stopping.set()

    def release_once_it_stops():
        stopping.wait()
        if times == 1:
            server.release()

    monkeypatch.setattr(Run, "stop", watched_stop)
    end = interrupt(
        lambda: server.wait_for(lambda: server.in_flight == 4), times, release_once_it_stops
    )
    with pytest.raises(Interrupted, match="the same call again to continue"):
        classify(table, **again)
    end()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert "classify" not in [thread.name for thread in threading.enumerate()]
    unanswered = {text for each in server.requests if not each.answered for text in each.texts}
    assert bool(unanswered) == (times > 1)
    server.release()
    server.script = lambda _: None
    assert classify(table, **again)["error"].null_count == 1_000
    assert server.sent_twice() == unanswered


async def test_aclassify_leaves_the_loop_free(server, labels):
    """While the server holds every answer, the caller's loop goes on and lets them go."""
    server.script = lambda _: server.reply(hold=True)
    work = asyncio.create_task(aclassify(pa.table({"text": TEXTS}), endpoint=server.url))
    await asyncio.to_thread(server.wait_for, lambda: server.in_flight == 1)
    assert not work.done()
    server.release()
    assert (await work)["label"].to_pylist() == labels


async def test_aclassify_reads_the_table_elsewhere(server, labels, monkeypatch):
    """Conversion and checksum take as long as the table is large: neither is the loop's work."""
    threads = []

    class Offering:
        def __arrow_c_stream__(self, requested_schema=None):
            threads.append(threading.current_thread())
            return pa.table({"text": TEXTS}).__arrow_c_stream__(requested_schema)

    class Watched(pipeline.api.TableSource):
        def __init__(self, table):
            threads.append(threading.current_thread())
            super().__init__(table)

    monkeypatch.setattr(pipeline.api, "TableSource", Watched)
    found = await aclassify(Offering(), endpoint=server.url)
    assert found["label"].to_pylist() == labels
    assert len(threads) == 2
    assert threading.current_thread() not in threads


async def test_aclassify_several_at_once(server, right_answer):
    tables = [pa.table({"text": [f"{n} {i}" for i in range(50)]}) for n in range(3)]
    found = await asyncio.gather(*(aclassify(table, endpoint=server.url) for table in tables))
    for table, labelled in zip(tables, found, strict=True):
        assert labelled["label"].to_pylist() == [
            right_answer(text)[0]["label"] for text in table["text"].to_pylist()
        ]


@pytest.mark.fault(9)
async def test_aclassify_cancelled_lets_go_of_everything(server, tmp_path):
    """CancelledError goes through, no task or lock is left, and a checkpoint keeps the answers."""
    table = pa.table({"text": [f"text {i}" for i in range(1_000)]})
    again = {
        "endpoint": server.url,
        "checkpoint": tmp_path / "kept",
        "concurrency": 4,
        "dialect": "hf",
    }
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    work = asyncio.create_task(aclassify(table, **again))
    await asyncio.to_thread(server.wait_for, lambda: len(server.requests) > 10)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert asyncio.all_tasks() == {asyncio.current_task()}
    held = {text for each in server.requests if not each.answered for text in each.texts}
    server.release()
    server.script = lambda _: None
    assert (await aclassify(table, **again))["error"].null_count == 1_000
    assert server.sent_twice() == held


@pytest.mark.usefixtures("small_chunks")
def test_a_checkpoint_keeps_what_was_done(server, tmp_path, right_answer):
    """The same call continues; complete, it sends nothing; another table is refused."""
    texts = [f"text {i}" for i in range(100)]
    table, checkpoint = pa.table({"text": texts}), tmp_path / "deep" / "reviews.run"
    with pytest.raises(StoppedEarly):
        classify(
            table, endpoint=server.url, checkpoint=checkpoint, batch_size=8, concurrency=1,
            max_requests=7, dialect="hf",
        )  # fmt: skip
    for _ in range(2):
        found = classify(table, endpoint=server.url, checkpoint=str(checkpoint), dialect="hf")
        assert found["label"].to_pylist() == [right_answer(text)[0]["label"] for text in texts]
        assert sorted(server.texts) == sorted(texts)
    with pytest.raises(ResumeRefused):
        classify(table.slice(1), endpoint=server.url, checkpoint=checkpoint)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The directory for temporary files; gives what is in it."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return lambda: list(place.iterdir())


def test_a_call_that_stops_without_a_checkpoint_keeps_what_was_answered(server, temporary):
    """It says where; the same call with that as its checkpoint continues."""
    table = pa.table({"text": [f"text {i}" for i in range(100)]})
    call = {"endpoint": server.url, "batch_size": 8, "concurrency": 1, "dialect": "hf"}
    with pytest.raises(StoppedEarly) as stopped:
        classify(table, max_requests=7, **call)
    (kept,) = temporary()
    assert str(stopped.value) == (
        "Sent 7 requests, all that max_requests allows. Make the same call again with "
        f'`checkpoint="{kept}"` to continue.'
    )
    assert stopped.value.summary["message"] == str(stopped.value)
    found = classify(table, checkpoint=kept, **call)
    assert (found["error"].null_count, server.sent_twice()) == (100, set())


def test_what_is_kept_is_said_whatever_ended_the_call(server, temporary):
    refused = server.reply(402, {"error": "no credits"})
    server.script = lambda each: refused if each.number > 2 else None
    table = pa.table({"text": [f"text {i}" for i in range(100)]})
    with pytest.raises(EndpointRefused) as stopped:
        classify(table, endpoint=server.url, batch_size=8, concurrency=1)
    (kept,) = temporary()
    told = f'What was answered is kept: the same call with `checkpoint="{kept}"` continues.'
    assert str(stopped.value).endswith(told)


def test_a_temporary_checkpoint_is_kept_for_answers_only(server, temporary):
    table = pa.table({"text": ["good", "bad"]})
    classify(table, endpoint=server.url)
    with pytest.raises(SettingsError):
        classify(table, endpoint=server.url, text="review")
    server.script = lambda _: server.reply(401, {"error": "no such token"})
    with pytest.raises(EndpointRefused) as refused:
        classify(table, endpoint=server.url)
    assert "kept" not in str(refused.value)
    server.script = lambda _: server.reply(503, {"error": "is currently loading"})
    with pytest.raises(StoppedEarly, match="Make the same call again"):
        classify(table, endpoint=server.url, deadline=0.2)
    assert temporary() == []


def test_answers_are_kept_where_the_table_cannot_take_them(server, temporary, monkeypatch):
    """As where memory is short: everything is paid for by then."""

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(pipeline.api, "read_table", fail)
    with pytest.raises(MemoryError) as failed:
        classify(pa.table({"text": ["good"]}), endpoint=server.url)
    (kept,) = temporary()
    assert f'the same call with `checkpoint="{kept}"` continues' in failed.value.__notes__[0]


def test_a_checkpoint_of_another_call_is_refused_in_words_of_a_call(server, tmp_path):
    checkpoint = tmp_path / "reviews.run"
    classify(pa.table({"text": ["good"]}), endpoint=server.url, checkpoint=checkpoint)
    with pytest.raises(ResumeRefused) as refused:
        classify(pa.table({"text": ["bad"]}), endpoint=server.url, checkpoint=checkpoint)
    assert refused.value.fix == f"Give another {setting('checkpoint')}, or delete {checkpoint}."


def test_in_a_thread_that_is_not_the_main_one(server, labels):
    """No signal handler can be set there, and none is needed."""
    found = []
    thread = threading.Thread(
        target=lambda: found.append(classify(pa.table({"text": TEXTS}), endpoint=server.url))
    )
    thread.start()
    thread.join()
    assert found[0]["label"].to_pylist() == labels


def test_the_public_names_are_what_they_say():
    """In a fresh interpreter and on each use: `pipeline.run` is the function, not the module."""
    code = (
        "import pipeline\n"
        "for name in pipeline.__all__ * 2:\n"
        "    assert callable(getattr(pipeline, name)), (name, getattr(pipeline, name))\n"
        "from pipeline import run\n"
        "assert callable(run), run\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_run_gives_a_result_that_tells_itself(server, write_csv, tmp_path):
    config = pipeline.RunConfig(
        input=str(write_csv("in.csv", ["good", ""])),
        output=tmp_path / "out.parquet",
        endpoint=server.url,
    )
    from pipeline.api import run

    result = run(config)
    assert (result.exit_code, result.output) == (3, tmp_path / "out.parquet")
    assert "2 rows, 1 labelled, 1 with errors" in str(result)


def test_importing_is_cheap():
    """Neither Arrow nor aiohttp is loaded before something needs it."""
    code = "import sys, pipeline; print({'pyarrow', 'aiohttp', 'pandas'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
