"""SIGTERM and SIGINT, once and twice, wherever a run is (fault 8)."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

pytestmark = pytest.mark.fault(8)

SIGNALS = [signal.SIGINT, signal.SIGTERM]
TIMES = [1, 2]
BOTH = pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT", "SIGTERM"])
ONCE_AND_TWICE = pytest.mark.parametrize("times", TIMES, ids=["once", "twice"])
FEW = 6_000
# Planned at some 200,000 rows a second and core, so that a signal falls into it.
MANY = 1_500_000


def reads(process, path):
    """Whether a process has a file open at this moment."""
    try:
        return str(path) in {file.path for file in psutil.Process(process.pid).open_files()}
    except psutil.Error:
        return False


def send(process, number, times):
    """Send the signal so many times; several until the end, since some of them merge."""
    if times > 1:
        process.insist(number)
    elif times == 1:
        process.send(number)


def interrupt(work, process, number, times):
    """Send the signal; the end is one that people can read, and nothing stands at the output."""
    at = time.monotonic()
    send(process, number, times)
    while process.running:
        time.sleep(0.005)
    work.server.release()  # what is held counts as in flight, also where nobody waits any more
    # After a second one, answers of the last half second need not be stored, as after a kill.
    attempt = work.end(process, killed_at=at if times > 1 else None)
    assert attempt.code == 128 + number, attempt
    assert signal.Signals(number).name in attempt.stderr
    assert "Run the same command again" in attempt.stderr
    for words in ("Traceback", "never retrieved", "was destroyed", "Aborted", "Exception ignored"):
        assert words not in attempt.stderr
    assert not work.output.exists()
    return attempt


def continue_to_the_end(work, record_property):
    work.server.script = lambda _: None
    work.resume()
    record_property("sent again", work.check())


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A table that takes seconds to plan."""
    path = tmp_path_factory.mktemp("large") / "large.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("id,text\n")
        file.writelines(f"{i:07d},a review of some length number {i}\n" for i in range(MANY))
    return path


@BOTH
@ONCE_AND_TWICE
def test_while_planning(start, server, large, tmp_path, watch, number, times):
    """The pass over the input ends at its next block, and nothing was written or sent."""
    output = tmp_path / "out.parquet"
    process = start("run", large, "--endpoint", server.url, "-o", output)
    watch(process, lambda: reads(process, large))
    send(process, number, times)
    ended = process.ended()
    assert ended.code == 128 + number
    assert signal.Signals(number).name in ended.stderr
    assert "Run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not server.requests
    assert list(tmp_path.iterdir()) == []


@BOTH
@ONCE_AND_TWICE
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, {"error": "Model is currently loading", "estimated_time": 600}),
        (500, {"error": "out of order"}),
    ],
    ids=["cold start", "backoff"],
)
def test_while_waiting(job, record_property, number, times, status, body):
    """Nothing is in flight, so nothing is waited for."""
    work = job(rows=FEW)
    right = work.server.script
    work.server.script = lambda each: (
        work.server.reply(status, body) if each.number >= 10 else right(each)
    )
    process = work.begin()
    work.server.wait_for(lambda: len(work.server.requests) >= 12 and not work.server.in_flight)
    attempt = interrupt(work, process, number, times)
    # Those that were refused are asked again by one process, which is no text sent twice.
    refused = {each.number for each in work.server.requests if not each.answered}
    answered = [each for each in work.server.requests if each.number not in refused]
    work.server.requests[:] = answered
    attempt.requests = len(answered)
    continue_to_the_end(work, record_property)


@BOTH
@ONCE_AND_TWICE
def test_while_waiting_for_the_rate(job, record_property, number, times):
    """At a request in five seconds, the end does not wait for the next one's turn."""
    work = job(rows=FEW)
    process = work.begin("--rate", 0.2)
    work.server.wait_for(lambda: len(work.server.requests) >= 1 and not work.server.in_flight)
    interrupt(work, process, number, times)
    assert len(work.server.requests) <= 2
    continue_to_the_end(work, record_property)


@BOTH
def test_while_sending_once(job, record_property, number):
    """What is in flight is awaited and kept: no text is sent twice."""
    work = job(rows=FEW)
    work.server.script = lambda each: work.server.reply(hold=each.number >= 10)
    process = work.begin()
    work.server.wait_for(lambda: work.server.in_flight >= 4)
    process.send(number)
    work.server.release()
    interrupt(work, process, number, 0)
    continue_to_the_end(work, record_property)
    assert not work.server.sent_twice()


@BOTH
def test_while_sending_once_with_a_server_that_does_not_answer(job, record_property, number):
    """The grace is all that is waited for."""
    work = job(rows=FEW)
    work.server.script = lambda each: work.server.reply(hold=each.number >= 10)
    process = work.begin("--grace-s", 0.2)
    work.server.wait_for(lambda: work.server.in_flight >= 4)
    interrupt(work, process, number, 1)
    continue_to_the_end(work, record_property)


@BOTH
def test_while_sending_twice(job, record_property, number):
    """No grace is given where a second signal asks for the end."""
    work = job(rows=FEW)
    work.server.script = lambda each: work.server.reply(hold=each.number >= 10)
    process = work.begin("--grace-s", "1h")
    work.server.wait_for(lambda: work.server.in_flight >= 4)
    interrupt(work, process, number, 2)
    continue_to_the_end(work, record_property)


@BOTH
@ONCE_AND_TWICE
@pytest.mark.parametrize("match", [r"/parts/.*\.tmp$", r"/log/0{7}[2-9].*\.tmp$"])
def test_while_committing(job, watch, record_property, number, times, match):
    """A commit that was begun is done to its end, however slow the disk is."""
    work = job(rows=FEW)
    work.disk["slow"] = [{"match": match, "seconds": 0.5}]
    work.disk["log"] = str(work.output.parent / "disk.log")
    log = work.output.parent / "disk.log"
    process = work.begin()
    name = "000000000000-" if "parts" in match else "00000002.json"
    watch(process, lambda: log.exists() and f'"slow": "{name}' in log.read_text())
    interrupt(work, process, number, times)
    work.disk.clear()
    continue_to_the_end(work, record_property)


@BOTH
@ONCE_AND_TWICE
def test_while_assembling(job, watch, record_property, number, times):
    """All rows are committed: the next attempt sends nothing and puts the output in place."""
    work = job(rows=60_000, batch_size=256)
    rows = len(work.texts)
    process = work.begin()
    watch(process, lambda: sum(part["rows"] for part in work.committed(work.output)) == rows)
    interrupt(work, process, number, times)
    sent = len(work.server.requests)
    continue_to_the_end(work, record_property)
    assert len(work.server.requests) == sent


@BOTH
def test_before_anything_is_loaded(start, server, write_csv, tmp_path, number):
    """A signal that comes while Python still loads the package's libraries."""
    source = write_csv("in.csv", ["one", "two"])
    process = start("run", source, "--endpoint", server.url, "-o", tmp_path / "out.parquet")
    caught = f"/proc/{process.pid}/status"
    while process.running:
        with open(caught, encoding="ascii") as status:  # noqa: PTH123 - it ends with the process
            mask = int(status.read().partition("SigCgt:")[2].split()[0], 16)
        if mask >> (signal.SIGTERM - 1) & 1:
            break
    process.send(number)
    ended = process.ended()
    assert ended.code == 128 + number
    assert "Run the same command again" in ended.stderr
    assert "Traceback" not in ended.stderr
