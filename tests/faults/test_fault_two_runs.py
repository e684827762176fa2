"""Two runs on one output, a lock that tells nonsense, a copied run, a clock that jumps (row 10)."""

from __future__ import annotations

import os
import shutil
import signal
import socket

import pytest

pytestmark = pytest.mark.fault(10)

FEW = 9_000


def works(work):
    """Start an attempt that commits two parts and then waits for held answers."""
    right = work.server.script
    work.server.script = lambda each: (
        work.server.reply(hold=True) if each.number >= 270 else right(each)
    )
    process = work.begin()
    while process.running and len(work.committed(work.output)) < 2:
        os.sched_yield()
    work.server.wait_for(lambda: work.server.in_flight > 0)
    return process


def stop(work, process):
    """Kill it, and let the server go on."""
    process.send(signal.SIGKILL)
    while process.running:
        os.sched_yield()
    work.server.release()
    attempt = work.end(process)
    work.server.script = lambda _: None
    return attempt


def test_the_second_names_the_first_and_the_killed_first_holds_nothing(job, cli, record_property):
    """Neither the first run nor its files notice the second; after SIGKILL the output is free."""
    work = job(rows=FEW)
    process = works(work)
    second = cli(*work.command)
    assert second.code == 5
    assert f"process {process.pid} on {socket.gethostname()}" in second.stderr
    assert process.running
    assert not work.server.sent_twice()
    stop(work, process)
    assert str(process.pid) in (work.run_directory / "lock").read_text()
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.parametrize(
    "content",
    [
        b'{"pid": 1, "host": "another-machine"}',
        b'{"pid": "x"}',
        b"[]",
        b"\xff\x00garbage" * 500,
        b"",
    ],
    ids=["another host", "half of it", "a list", "garbage", "nothing"],
)
def test_what_the_lock_file_says_decides_nothing(job, cli, content):
    """The lock is the kernel's: a file left behind locks nobody out, and a held one still does."""
    work = job(rows=FEW)
    process = works(work)
    lock = work.run_directory / "lock"
    with lock.open("r+b") as file:
        file.truncate(0)
        file.write(content)
    second = cli(*work.command)
    assert second.code == 5
    assert "Traceback" not in second.stderr
    stop(work, process)
    assert lock.read_bytes() == content
    work.resume()
    work.check()


def test_a_run_directory_that_was_copied_elsewhere(job, committed, tmp_path):
    """It is continued there as it would be here, while the first place is still held."""
    work = job(rows=FEW)
    process = works(work)
    there = tmp_path / "elsewhere" / work.output.name
    shutil.copytree(work.run_directory, there.with_name(there.name + ".run"))
    stop(work, process)
    parts = committed(there)
    assert len(parts) >= 2
    before = len(work.server.requests)
    finished = work.start(*work.command[:-1], there).ended()
    assert finished.code == 0, finished.stderr
    assert {"": there.read_bytes()} == work.expected
    again = {text for each in work.server.requests[before:] for text in each.texts}
    for part in parts:
        assert not again & set(work.texts[part["first_row"] :][: part["rows"]])
    assert not work.output.exists()


@pytest.mark.parametrize("seconds", [-(10**9), 10**9], ids=["back", "forth"])
def test_a_clock_that_jumps_between_attempts(job, record_property, seconds):
    """Times of files may lie in the past or the future: content decides, and nothing is redone."""
    work = job(rows=FEW)
    stop(work, works(work))
    source = work.output.with_name("in.csv")
    for path in (source, *work.run_directory.rglob("*")):
        at = path.stat().st_mtime + seconds
        os.utime(path, (at, at))
    work.resume()
    record_property("sent again", work.check())
