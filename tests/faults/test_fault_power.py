"""Power loss (fault 4): what no fsync made durable is gone, kept, or half of each.

The processes run on a real disk and log what each fsync made durable (child/sitecustomize.py):
of a file its bytes so far, of a directory its names. When the power is cut, the process is
killed, and what is not durable is undone: files fall back to the length they had, end in zeros or
keep a part; names come back, vanish, or stay. Nothing of the package knows about it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from contextlib import suppress

import pytest

from pipeline.errors import ResumeRefused
from pipeline.system.failpoints import NAMES

pytestmark = [pytest.mark.fault(4), pytest.mark.timeout(300)]

FEW = 5_000


def inode_of(path):
    """The inode of a file; of a directory its negative, as the child logs it."""
    return path.stat().st_ino * (-1 if path.is_dir() else 1)


class Disk:
    """The disk below a job: what is durable on it, and what a power cut makes of it."""

    def __init__(self, work, chance=None):
        """With `chance` a cut keeps some of what is not durable; without it, nothing."""
        self._work = work
        self._chance = chance
        self._root = work.output.parent
        self._log = self._root / "disk.log"
        self._shadow = self._root / "shadow"
        self._shadow.mkdir()
        self._names: dict[int, dict[str, int]] = {}
        self._bytes: dict[int, int] = {}
        work.disk.update(log=str(self._log), shadow=str(self._shadow))
        self.all_is_durable()

    def all_is_durable(self):
        """Take what is there as durable, as long after a cut."""
        self._log.unlink(missing_ok=True)
        self._names, self._bytes = {}, {}
        for kept in self._shadow.iterdir():
            kept.unlink()
        self._look_at(self._root)

    def _look_at(self, directory):
        names = {}
        for path in directory.iterdir():
            if directory == self._root and not path.name.startswith(self._work.output.name):
                continue
            inode = names[path.name] = inode_of(path)
            if path.is_dir():
                self._look_at(path)
            else:
                self._bytes[inode] = path.stat().st_size
                # A part has two names while its file is put in place.
                if not (self._shadow / str(inode)).exists():
                    os.link(path, self._shadow / str(inode))
        self._names[directory.stat().st_ino] = names

    def cut_power(self):
        """Undo what was not durable when the last process ended."""
        for line in self._log.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            if "directory" in record:
                self._names[record["directory"]] = record["entries"]
            elif "file" in record:
                self._bytes[record["file"]] = record["bytes"]
        self._undo(self._root)
        self.all_is_durable()

    def _undo(self, directory):
        durable = self._names.get(directory.stat().st_ino, {})
        there = {path.name: inode_of(path) for path in directory.iterdir()}
        for name in sorted(durable.keys() | there.keys()):
            if directory == self._root and not name.startswith(self._work.output.name):
                continue
            path = directory / name
            if durable.get(name) != there.get(name) and not self._luck():
                self._put_back(path, durable.get(name))
            if path.is_dir():
                self._undo(path)
            elif path.exists():
                self._shorten(path)

    def _put_back(self, path, inode):
        """Give a name back what it durably named: a file, an emptied directory, or nothing."""
        if path.is_dir():
            path.rename(self._root / f"lost-{time.monotonic_ns()}")
        else:
            path.unlink(missing_ok=True)
        if inode is None:
            return
        kept = self._shadow / str(inode)
        if kept.exists():
            os.link(kept, path)
        elif -inode in self._names:
            path.mkdir()
            for name, each in self._names[-inode].items():
                self._put_back(path / name, each)

    def _shorten(self, path):
        size = path.stat().st_size
        durable = min(size, self._bytes.get(path.stat().st_ino, 0))
        kept = durable
        if self._chance and size > durable:
            kept = self._chance.choice([durable, size, self._chance.randint(durable, size)])
            zeros = self._chance.random() < 0.3
        else:
            zeros = False
        os.truncate(path, kept)
        if zeros:
            os.truncate(path, size)

    def _luck(self):
        return self._chance is not None and self._chance.random() < 0.5


def announced_ranges(work):
    """The rows whose commit was told of, which happens after it."""
    log = work.run_directory / "events.jsonl"
    if not log.exists():
        return []
    commits = []
    for line in log.read_bytes().split(b"\n")[:-1]:
        # A cut before this one may have left zeros or halves in the log, which nobody needs.
        with suppress(ValueError):
            event = json.loads(line)
            commits += [event] if event["event"] == "PartCommitted" else []
    return [range(each["first_row"], each["first_row"] + each["rows"]) for each in commits]


def check_after_cut(work, promised):
    """Every part that was told of is recorded, and every recorded part is whole."""
    work.attempts[-1].committed = promised
    if work.output.exists() or work._complete():
        assert work.found() == work.expected
        return
    for part in work.committed(work.output):
        content = (work.run_directory / "parts" / part["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == part["sha256"]
    assert set(promised) <= set(work.committed_ranges())


def cut_and_resume(work, disk):
    promised = announced_ranges(work)
    disk.cut_power()
    check_after_cut(work, promised)
    work.resume()
    return work.check()


ONCE = sorted(
    name
    for name in NAMES
    if not name.startswith(
        ("begin.", "draft.", "parts.forgotten", "parts.orphan", "output.moved", "output.directory ")
    )
)
QUICK = ["log.created:3", "output.durable"]
LATER = ["parts.renamed:2", "parts.put:2", "log.fsynced:3", "log.linked:3", "log.created:3",
         "journal.written:2", "journal.synced:2", "log.linked:5", "log.created:5"]  # fmt: skip


def crash_and_cut(job, failpoint, chance):
    work = job(rows=FEW, delay_s=0.05 if "journal" in failpoint else 0.01)
    disk = Disk(work, chance)
    work.crash(failpoint)
    return cut_and_resume(work, disk)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [*ONCE, *LATER])
def test_the_power_is_cut_at_each_step(job, record_property, failpoint):
    """All that is not durable is lost."""
    record_property("sent again", crash_and_cut(job, failpoint, None))


@pytest.mark.parametrize("failpoint", QUICK)
def test_the_power_is_cut_at_some_steps(job, record_property, failpoint):
    """The quick choice of the test above."""
    record_property("sent again", crash_and_cut(job, failpoint, None))


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", LATER)
def test_the_power_is_cut_and_some_is_kept(job, record_property, failpoint):
    """Of what is not durable some is kept, in any combination."""
    record_property("sent again", crash_and_cut(job, failpoint, random.Random(failpoint)))


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["output.directory renamed", "output.directory durable"])
def test_the_power_is_cut_while_a_directory_is_put_in_place(job, record_property, failpoint):
    work = job(out="out", rows=FEW)
    disk = Disk(work)
    work.crash(failpoint)
    record_property("sent again", cut_and_resume(work, disk))


@pytest.mark.slow
def test_the_power_is_cut_at_random_moments(job, record_property):
    chance = random.Random(4)
    work = job(rows=9_000)
    disk = Disk(work, chance)
    tries = most = 0
    while tries < 12:
        for _ in range(3):
            attempt = work.kill_after(chance.uniform(0.3, 1.05) * work.seconds)
            if attempt.code == 0:
                break
            tries += 1
            promised = announced_ranges(work)
            disk.cut_power()
            check_after_cut(work, promised)
        work.resume()
        most = max(most, work.check())
        work.forget()
        disk.all_is_durable()
    record_property("tries", tries)
    record_property("sent again", most)


# What is not synced any more, and a crash after which somebody must notice.
FORGOTTEN = [
    (r"/parts/.*\.tmp$", "log.created:3"),
    (r"/parts$", "log.created:3"),
    (r"/log/.*\.tmp$", "log.created:3"),
    (r"/log$", "log.created:3"),
    # Before the first part is recorded, when answers are old that only the journal knows.
    (r"/responses\.journal$", "parts.written"),
    (r"/out\.parquet\.run$", "log.created:2"),
    (r"/assembled\.tmp$", "finish.cleared"),
    (r"^(?!.*(parquet|parts)).*$", "finish.cleared"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("unsynced", "failpoint"), FORGOTTEN)
def test_the_test_bites(job, unsynced, failpoint):
    """Without any one of the fsyncs, a power cut breaks a promise that is checked above."""
    work = job(rows=FEW, delay_s=0.05)
    disk = Disk(work)
    work.disk["skip"] = [unsynced]
    work.crash(failpoint)
    promised = announced_ranges(work)
    both = [range(4_096), range(4_096, FEW)]
    if failpoint == "log.created:3":
        promised = both
    elif failpoint == "log.created:2":
        promised = both[:1]
    with pytest.raises((AssertionError, OSError, ResumeRefused)):  # noqa: PT012 - any may notice
        disk.cut_power()
        check_after_cut(work, promised)
        del work.disk["skip"]
        work.resume()
        work.check()


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", sorted({failpoint for _, failpoint in FORGOTTEN}))
def test_it_bites_for_that_reason_only(job, record_property, failpoint):
    """With all fsyncs, the same cuts are harmless."""
    work = job(rows=FEW, delay_s=0.05)
    disk = Disk(work)
    work.crash(failpoint)
    record_property("sent again", cut_and_resume(work, disk))
