"""`classify status`: how far a run is, at any instant and without the run noticing."""

import json
import os
import shutil
import signal
import socket

import pytest

import pipeline
from pipeline.errors import ResumeRefused, StoppedEarly
from pipeline.job.status import status_of
from pipeline.store import LocalStore
from pipeline.store.disk import DiskObjects

CHUNK = 4_096


@pytest.fixture
def job(server, write_csv, many_texts):
    """The arguments of a run of five chunks, in requests of 512 texts."""
    source = write_csv("in.csv", many_texts)
    return ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--batch-size", 512)


@pytest.fixture
def halfway(server, start, job, committed, tmp_path, eventually):
    """A run that has committed two chunks and waits for the answers to the third."""
    server.script = lambda each: server.reply(hold=each.number >= 16)
    running = start(*job, "--concurrency", 1)
    server.wait_for(lambda: len(server.requests) == 17)
    eventually(lambda: len(committed(tmp_path / "out.parquet")) == 2)
    return running


@pytest.fixture
def ask(cli):
    """Ask for the status; gives the exit code and what was told."""

    def status(output="out.parquet"):
        ended = cli("status", output, "--json")
        return ended.code, ended.json

    return status


def test_of_a_run_that_works(server, halfway, ask, cli, listing, tmp_path):
    run_directory = tmp_path / "out.parquet.run"
    # The run itself may still write to its log and its journal.
    kept = ("lock", "log", "parts")
    before = {name: file for name, file in listing(run_directory).items() if name.startswith(kept)}
    code, found = ask()
    after = {name: file for name, file in listing(run_directory).items() if name.startswith(kept)}
    assert (code, found["state"], found["doing"]) == (0, "running", "labelling")
    assert (found["pid"], found["host"]) == (halfway.pid, socket.gethostname())
    assert found["since"] == json.loads((run_directory / "lock").read_bytes())["since"]
    assert (found["rows"], found["committed_rows"]) == (20_000, 2 * CHUNK)
    assert (found["labelled"], found["errors"]) == (2 * CHUNK, 0)
    assert sum(found["labels"].values()) == 2 * CHUNK
    assert found["rows_per_second"] > 0
    assert found["seconds_left"] > 0
    assert (found["waits"], found["message"]) == (None, None)
    assert after == before

    told = cli("status", "out.parquet").stdout
    assert f"running by process {halfway.pid} on {socket.gethostname()}" in told
    assert "8,192 of 20,000 rows committed (41%)" in told
    assert halfway.running
    server.release()
    assert halfway.ended().code == 0


def test_of_a_run_that_waits_for_the_model(server, start, job, ask, tmp_path, eventually):
    server.script = lambda _: server.reply(
        503, {"error": "Model m is currently loading", "estimated_time": 20.0}
    )
    running = start(*job)
    log = tmp_path / "out.parquet.run" / "events.jsonl"
    eventually(lambda: log.exists() and b'"Waiting"' in log.read_bytes())
    _, found = ask()
    assert (found["state"], found["doing"]) == ("running", "waiting")
    assert "loading" in found["waits"]["reason"]
    assert found["waits"]["seconds"] == 20
    assert found["seconds_left"] is None
    server.script = lambda _: None
    assert running.ended().code == 0
    assert ask()[1]["state"] == "complete"


def test_of_a_run_that_was_killed(server, halfway, ask, cli, job):
    halfway.send(signal.SIGKILL)
    halfway.ended()
    code, found = ask()
    assert (code, found["state"], found["committed_rows"]) == (0, "stopped", 2 * CHUNK)
    assert "Killed" in found["message"]
    assert (found["pid"], found["exit_code"]) == (None, None)
    assert "same command" in found["next"]
    server.release()
    server.script = lambda _: None
    assert cli(*job).code == 0
    assert ask()[1]["state"] == "complete"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_of_a_run_that_a_signal_stopped(server, halfway, ask, number):
    halfway.send(number)
    server.release()
    ended = halfway.ended()
    _, found = ask()
    assert (found["state"], found["exit_code"]) == ("stopped", ended.code)
    assert found["message"].startswith(f"Stopped by {number.name}")
    assert found["message"] in ended.stderr
    assert found["last_attempt"]["requests"] == len(server.requests)


def test_of_a_run_that_the_endpoint_refused(server, cli, job, ask):
    server.script = lambda _: server.reply(401, {"error": "no such token"})
    assert cli(*job).code == 4
    _, found = ask()
    assert (found["state"], found["exit_code"], found["committed_rows"]) == ("stopped", 4, 0)
    assert "no such token" in found["message"]
    assert found["next"].startswith("Fix")


def test_of_a_complete_run(label, server, write_csv, tmp_path):
    source, output = write_csv("in.csv", ["good", "", "bad"]), tmp_path / "out.parquet"
    summary = label(source, output)
    found = status_of(output)
    assert (found.state, found.rows, found.committed_rows) == ("complete", 3, 3)
    assert (found.labelled, found.errors, found.labels) == (2, 1, summary["labels"])
    assert (found.exit_code, found.message) == (3, None)
    assert "--retry-failed" in found.next
    assert (found.endpoint, found.model) == (server.url, None)
    output.unlink()
    assert "not there any more" in status_of(output).next


@pytest.mark.usefixtures("small_chunks")
def test_of_a_retry(label, server, write_csv, tmp_path):
    """It goes through the rows again; until it is done the output is what it was."""
    texts = [f"bad {i}" if i % 8 == 0 else f"text {i}" for i in range(100)]
    source, output = write_csv("in.csv", texts), tmp_path / "out.parquet"
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if each.texts[0].startswith("bad") else None
    )
    assert label(source, output, batch_size=1)["errors"] == 13
    server.script = lambda _: None
    with pytest.raises(StoppedEarly):
        label(source, output, retry_failed=True, batch_size=1, concurrency=1, max_requests=5)
    found = status_of(output)
    assert (found.state, found.retry, found.exit_code) == ("stopped", True, 75)
    assert (found.rows, found.committed_rows) == (100, 32)
    assert (found.labelled, found.errors) == (32, 0)
    assert label(source, output, retry_failed=True)["errors"] == 0
    assert (status_of(output).state, status_of(output).retry) == ("complete", False)


@pytest.fixture
def stopped(label, write_csv, tmp_path, small_chunks):
    """The output of a run that was stopped after three parts."""
    source, output = write_csv("in.csv", [f"t {i}" for i in range(100)]), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=4, concurrency=1, max_requests=13)
    return output


@pytest.mark.parametrize("cache", [None, "answers.cache"])
def test_answers_count_before_their_rows_are_committed(
    label, cli, write_csv, many_texts, tmp_path, cache
):
    """They are paid for and kept, so nobody should believe that they are lost."""
    source, output = write_csv("in.csv", many_texts), tmp_path / "out.parquet"
    settings = {"batch_size": 100, "cache": cache and tmp_path / cache}
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=7, **settings)
    found = status_of(output)
    assert (found.state, found.committed_rows, found.answers) == ("stopped", 0, 700)
    assert "700 answers are stored and will not be asked for again." in cli("status", output).stdout
    label(source, output, **settings)
    assert status_of(output).answers == 0
    assert "stored" not in cli("status", output).stdout


def test_answers_that_cannot_be_counted_hide_nothing_else(stopped, tmp_path):
    """Their file is its owner's only; what is torn at its end does not count yet."""
    journal = tmp_path / "out.parquet.run" / "responses.journal"
    whole = journal.read_bytes()
    found = [status_of(stopped).answers]
    for size in range(len(whole) - 1, -1, -1):
        journal.write_bytes(whole[:size])
        found.append(status_of(stopped).answers)
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (52, 0)
    journal.unlink()
    journal.mkdir()
    found = status_of(stopped)
    assert (found.answers, found.committed_rows) == (None, 48)


@pytest.mark.fault(3)
def test_a_log_is_read_while_its_next_entry_is_written(stopped, tmp_path, listing):
    """Only entries that have their name count, however much is written; nothing is changed."""
    log = tmp_path / "out.parquet.run" / "log"
    last = max(log.iterdir())
    whole, temp = last.read_bytes(), last.with_name(f"{last.name}.0123abcd.tmp")
    last.unlink()
    for size in range(len(whole) + 1):
        temp.write_bytes(whole[:size])
        before = listing()
        found = status_of(stopped)
        assert (found.state, found.rows, found.committed_rows) == ("stopped", 100, 32)
        assert listing() == before
    temp.rename(last)
    assert status_of(stopped).committed_rows == 48


def test_a_log_is_read_while_the_run_is_completed(stopped, tmp_path, monkeypatch):
    """An entry that was listed may be gone when it is read: the snapshot above it counts."""
    store, read = LocalStore(stopped), DiskObjects.get
    other = LocalStore(stopped)
    other.load()

    def complete(objects, name):
        monkeypatch.setattr(DiskObjects, "get", read)
        other.finish({"rows": 100, "errors": 0})
        return read(objects, name)

    monkeypatch.setattr(DiskObjects, "get", complete)
    assert store.load().complete == {"rows": 100, "errors": 0}


def test_an_event_log_is_read_while_its_last_line_is_written(stopped, tmp_path):
    log = tmp_path / "out.parquet.run" / "events.jsonl"
    whole = log.read_bytes()
    assert status_of(stopped).exit_code == 75
    for size in range(len(whole)):
        log.write_bytes(whole[:size])
        found = status_of(stopped)
        # Its end is not told before the last byte is there.
        assert (found.state, found.exit_code, found.committed_rows) == ("stopped", None, 48)


def test_before_the_log_is_there(tmp_path, listing):
    """A run locks its output first, and reads its input then."""
    lease = LocalStore(tmp_path / "out.parquet").lease
    lease.acquire(create=True)
    before = listing()
    found = status_of(tmp_path / "out.parquet")
    assert (found.state, found.pid, found.rows) == ("running", os.getpid(), None)
    assert "reading the input" in found.doing
    assert listing() == before
    lease.release()
    assert status_of(tmp_path / "out.parquet") is None


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_begins_again_is_not_told_by_the_one_before(stopped, tmp_path, killed):
    """Neither by how that ended nor, where it was killed, by what it was about."""
    log = tmp_path / "out.parquet.run" / "events.jsonl"
    if killed:
        log.write_bytes(log.read_bytes().rpartition(b'{"at"')[0])
    lease = LocalStore(tmp_path / "out.parquet").lease
    lease.acquire(create=True)
    found = status_of(stopped)
    assert (found.state, found.message, found.exit_code) == ("running", None, None)
    assert (found.committed_rows, "reading" in found.doing) == (48, True)
    lease.release()
    assert status_of(stopped).state == "stopped"


def test_where_there_is_no_run(cli, tmp_path, listing):
    (tmp_path / "other.parquet").write_bytes(b"")
    before = listing()
    for output in ("out.parquet", "other.parquet", "nowhere/out.parquet"):
        ended = cli("status", output, "--json")
        assert (ended.code, ended.json["state"], ended.json["exit_code"]) == (2, "none", 2)
        assert f"{output}.run" in ended.json["message"]
        assert ended.json["message"] == ended.stderr.strip()
        assert (cli("status", output).code, cli("status", output).stdout) == (2, "")
    assert listing() == before


def test_a_damaged_log_is_refused(cli, stopped, tmp_path):
    (tmp_path / "out.parquet.run" / "log" / "00000002.json").write_bytes(b"damaged\n")
    with pytest.raises(ResumeRefused):
        status_of(stopped)
    ended = cli("status", "out.parquet", "--json")
    assert (ended.code, ended.json["state"]) == (2, "refused")
    assert "damaged" in ended.stderr


def test_of_a_notebook_s_checkpoint(server, tmp_path):
    """The run directory may be named itself."""
    table = {"text": ["good", "bad"]}
    import pyarrow as pa

    checkpoint = tmp_path / "reviews.run"
    pipeline.classify(pa.table(table), endpoint=server.url, dialect="hf", checkpoint=checkpoint)
    found = status_of(checkpoint)
    assert (found.state, found.rows, found.labelled) == ("complete", 2, 2)
    assert "the output is complete" in found.next


@pytest.fixture
def logged(stopped, tmp_path):
    """Ask in its second 1000 for the status of a run of 100 rows, 48 of them done.

    It logged these events, whose times are counted from when it locked the output.
    """
    run_directory = tmp_path / "out.parquet.run"
    lease = LocalStore(stopped).lease
    lease.acquire(create=True)
    began = lease.holder().since

    def ask(*events):
        lines = [
            json.dumps({"at": began + at, "event": name, **facts}) for at, name, facts in events
        ]
        (run_directory / "events.jsonl").write_text("\n".join([*lines, ""]))
        return status_of(stopped, now=began + 1000)

    yield ask
    lease.release()


def _requests(at, inputs=10, cause="ok"):
    return at, "Requests", {"ended": {cause: 2}, "inputs": inputs, "failed_inputs": 0}


def test_speeds_are_of_the_last_minute(logged):
    """What was faster or slower before does not count; rows are taken from the parts."""
    old = [_requests(at, inputs=1000) for at in range(500, 900)]
    parts = [(at, "PartCommitted", {"rows": 16}) for at in (600.0, 960.0, 980.0, 990.0)]
    found = logged((500.0, "RunStarted", {}), *old, *map(_requests, range(950, 980)), *parts)
    assert found.requests_per_second == pytest.approx(1.0)
    assert found.inputs_per_second == pytest.approx(5.0)
    # Four parts since the start are no more than may be taken together.
    assert found.rows_per_second == pytest.approx(64 / 500, abs=0.01)
    assert found.seconds_left == pytest.approx(52 / (64 / 500), rel=0.1)


def test_before_the_first_part_inputs_tell_the_speed(logged):
    found = logged((990.0, "RunStarted", {}), _requests(995.0, inputs=40))
    assert found.rows_per_second == pytest.approx(4.0)
    assert found.seconds_left == pytest.approx(13.0)


def test_a_wait_is_over_once_something_is_answered(logged):
    start = (900.0, "RunStarted", {})
    waiting = (950.0, "Waiting", {"reason": "throttled", "detail": "429", "seconds": 30.0})
    longer = (960.0, "Waiting", {"reason": "throttled", "detail": "429", "seconds": 60.0})
    found = logged(start, waiting, longer)
    assert (found.waits.since - found.since, found.waits.seconds) == (pytest.approx(950.0), 60.0)
    assert logged(start, waiting, _requests(970.0, cause="throttled")).waits is not None
    assert logged(start, waiting, _requests(970.0)).waits is None
    ended = (970.0, "WaitEnded", {"reason": "loading", "seconds": 20.0})
    assert logged(start, waiting, ended).waits is None


def test_a_long_log_is_read_from_its_end(logged):
    """Only the last megabyte, of which the first line is no whole one."""
    many = [_requests(900 + i / 1000) for i in range(20_000)]
    found = logged((100.0, "RunStarted", {}), *many, (990.0, "Waiting", {
        "reason": "down", "detail": "500", "seconds": None,
    }))  # fmt: skip
    assert found.waits.reason == "down: 500"


def test_the_output_may_lie_elsewhere(stopped, tmp_path):
    """A run directory that was copied is read where it is."""
    shutil.copytree(tmp_path / "out.parquet.run", tmp_path / "copy.parquet.run")
    assert status_of(tmp_path / "copy.parquet").committed_rows == 48


@pytest.mark.parametrize("command", ["status", "report"])
@pytest.mark.parametrize("name", [".", "a.csv/x", "x" * 260 + ".parquet", "caf\udce9.parquet"])
def test_a_path_that_can_be_no_output(cli, write_csv, command, name):
    """Names without a file, below a file, too long and no UTF-8: a sentence, not a traceback."""
    write_csv("a.csv", ["one"])
    ended = cli(command, name)
    assert ended.code == 2
    assert "Traceback" not in ended.stderr


def test_a_log_of_an_earlier_version_is_read(logged):
    waiting = (950.0, "Waiting", {"reason": "throttled: 429 slow down", "seconds": 30.0})
    assert logged((900.0, "RunStarted", {}), waiting).waits.reason == "throttled: 429 slow down"
