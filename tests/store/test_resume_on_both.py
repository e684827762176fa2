"""Runs that stop and resume within a process, on every kind of store: the same bytes, once paid."""

import asyncio
import itertools

import pytest

from pipeline.config import RunConfig
from pipeline.errors import OutputBusy, OutputError, StoppedEarly
from pipeline.job.runner import Run
from pipeline.job.status import status_in
from pipeline.store import LocalStore, open_ranges
from pipeline.store.records import RunLog
from tests.store.memory_store import MemoryStore

pytestmark = pytest.mark.usefixtures("small_chunks")

TEXTS = [f"text {i}" for i in range(200)]


class Killed(BaseException):
    """Stands for the end of the process: nothing of the package catches it."""


@pytest.fixture(params=["out.parquet", "out"])
def output(request, tmp_path):
    return tmp_path / request.param


@pytest.fixture(params=["local", "memory"])
def store(request, output):
    """A store that outlasts each run; a local one is opened again by each."""
    if request.param == "local":
        return lambda: LocalStore(output)
    memory = MemoryStore(is_file=output.suffix == ".parquet")
    return lambda: memory


@pytest.fixture
def attempt(server, write_csv, output, store):
    source = write_csv("in.csv", TEXTS)

    def run(*, texts=None, restart=False, ask_again=False, overwrite=False, **settings):
        if texts is not None:
            write_csv("in.csv", texts)
        config = RunConfig(
            input=str(source), output=output, endpoint=server.url, dialect="hf", batch_size=4,
            **{"concurrency": 1, **settings},
        )  # fmt: skip
        job = Run(config, store=store())
        return asyncio.run(job.execute(restart=restart, ask_again=ask_again, overwrite=overwrite))

    return run


@pytest.fixture
def expected(label, server, write_csv, tmp_path, output):
    """The files of a run that nothing disturbed."""
    undisturbed = tmp_path / "undisturbed" / output.name
    label(write_csv("same.csv", TEXTS), undisturbed)
    server.reset()
    return _bytes(LocalStore(undisturbed))


def _bytes(store):
    files = []
    for file in store.output.files():
        with file.open() as opened:
            files.append(opened.read())
    return files


def _left(store):
    return store.log.entries._objects.list("log/") + store.log.entries._objects.list("parts/")


def test_stopped_again_and_again(attempt, server, store, expected):
    for _ in range(5):
        with pytest.raises(StoppedEarly):
            attempt(max_requests=9)
        assert not store().output.exists()
        assert status_in(store(), "out").state == "stopped"
    summary = attempt(max_requests=9)
    assert (summary["state"], summary["labelled"]) == ("complete", len(TEXTS))
    assert _bytes(store()) == expected
    assert sorted(server.texts) == sorted(TEXTS)
    assert len(_left(store())) == 1
    found = status_in(store(), "out")
    assert (found.state, found.committed_rows, found.rows) == ("complete", 200, 200)
    assert store().summary()["labels"] == summary["labels"]
    with store().events.reader() as log:
        assert sum(b'"PartCommitted"' in line for line in log) == 13
    # Complete, it does nothing.
    assert attempt()["requests"] == 0


KILLS = [("begin", 1), ("add_part", 0), ("add_part", 1), ("add_part", 6), ("set_assembled", 0),
         ("set_assembled", 1), ("set_complete", 0), ("set_complete", 1)]  # fmt: skip


@pytest.mark.fault(2)
@pytest.mark.parametrize(("name", "done"), KILLS)
def test_killed_around_a_record(attempt, server, store, expected, monkeypatch, name, done):
    """Before or after it is committed: the next run goes on from what was."""
    work, calls = getattr(RunLog, name), itertools.count(1)

    def killing(*arguments):
        call = next(calls)
        if call <= done:
            work(*arguments)
        if call >= done:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, name, killing)
        with pytest.raises(Killed):
            attempt()
    assert attempt()["state"] == "complete"
    assert _bytes(store()) == expected
    assert sorted(server.texts) == sorted(TEXTS)


def test_thrown_away(attempt, server, store, expected):
    with pytest.raises(StoppedEarly):
        attempt(max_requests=9)
    with pytest.raises(StoppedEarly):
        attempt(restart=True, max_requests=1)
    assert server.sent_twice() == set()
    assert attempt(ask_again=True)["resumed_rows"] == 0
    assert _bytes(store()) == expected
    assert len(server.sent_twice()) == 10 * 4
    assert len(_left(store())) == 1


def test_replaced(attempt, server, store, expected):
    """Not without being asked to; and the earlier output stands until the new one does."""
    attempt(texts=["another"])
    before = _bytes(store())
    with pytest.raises(Exception, match="update=True"):
        attempt(texts=TEXTS)
    with pytest.raises(StoppedEarly):
        attempt(overwrite=True, max_requests=9)
    assert _bytes(store()) == before
    assert attempt(overwrite=True)["state"] == "complete"
    assert _bytes(store()) == expected


def test_a_straggler_leaves_a_hole(attempt, server, store, expected, monkeypatch):
    """All other chunks are committed while one answer is waited for; then only that is asked."""
    server.script = lambda asked: server.reply(hold="text 20" in asked.texts)
    add = RunLog.add_part

    def adding(log, part, revision):
        add(log, part, revision)
        if log.run.rows == len(TEXTS) - 16:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "add_part", adding)
        with pytest.raises(Killed):
            attempt(concurrency=4, grace_s=0.1)  # or the end would wait for the straggler
    assert open_ranges(store().load().parts, len(TEXTS)) == [range(16, 32)]
    found = status_in(store(), "out")
    assert (found.committed_rows, found.rows) == (184, 200)
    sent = len(server.requests)
    server.script = lambda _: None
    summary = attempt()
    assert (summary["resumed_rows"], summary["labelled"]) == (184, 200)
    assert [asked.texts for asked in server.requests[sent:]] == [TEXTS[20:24]]
    assert _bytes(store()) == expected


@pytest.mark.fault(3)
def test_damaged_parts_open_their_own_rows(attempt, server, store, expected):
    with pytest.raises(StoppedEarly):
        attempt(max_requests=30)
    objects = store().log.entries._objects
    parts = objects.list("parts/")
    for number in (0, 3, 4):
        objects.put(parts[number], objects.get(parts[number])[:-1])
    assert attempt()["resumed_rows"] == 16 * (len(parts) - 3)
    assert _bytes(store()) == expected
    assert sorted(server.texts) == sorted(TEXTS)


@pytest.mark.fault(10)
def test_a_second_run_is_refused(attempt, store):
    first = store().lease
    first.acquire(create=True)
    with pytest.raises(OutputBusy):
        attempt()
    first.release()
    assert attempt()["state"] == "complete"


@pytest.mark.fault(10)
def test_a_run_that_lost_its_output_stops_at_once(attempt, server, store, expected, monkeypatch):
    """Another one wrote to the log, whatever the lease said: what it wrote stands."""
    add, other = RunLog.add_part, store()

    def adding(log, part, revision):
        if part.first_row == 32:
            other.load()
            entries = type(other.log)(other.log.entries._objects)
            entries.load()
            entries.add_cache("/of another run")
        add(log, part, revision)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "add_part", adding)
        with pytest.raises(OutputBusy, match="took this output over"):
            attempt()
    assert store().load().rows == 32
    assert attempt()["state"] == "complete"
    assert _bytes(store()) == expected


def test_a_retry_needs_an_output_with_a_path(attempt, server):
    """Of an output in memory it is refused, with nothing lost."""
    with pytest.raises(OutputError, match="no run is recorded"):
        asyncio.run(_retry(server))


async def _retry(server):
    config = RunConfig(input="nowhere.csv", output="out.parquet", endpoint=server.url)
    return await Run(config, store=MemoryStore()).execute(retry_failed=True)
