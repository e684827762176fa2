"""Durable, atomic files, and the lock; with real failures of the disk in every place."""

import errno
import fcntl
import itertools
import os
import socket
import subprocess
import sys
import time

import pytest

from pipeline.errors import OutputBusy, StoppedEarly
from pipeline.store import disk as storage


def test_commit_replaces_the_file_as_a_whole(tmp_path):
    final = tmp_path / "file"
    final.write_text("before")
    storage.commit_bytes(b"after", final, "summary")
    assert final.read_bytes() == b"after"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_commit_directory_replaces_the_directory_as_a_whole(tmp_path):
    final, temp = tmp_path / "out", tmp_path / "temp"
    for directory, name in ((final, "old"), (temp, "new")):
        directory.mkdir()
        (directory / name).write_text(name)
    storage.commit_directory(temp, final)
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "directory", "link to a directory", "nothing"])
def test_remove_takes_what_is_there_and_follows_no_link(tmp_path, kind):
    kept, path = tmp_path / "kept", tmp_path / "path"
    kept.mkdir()
    (kept / "file").write_text("kept")
    if kind == "file":
        path.write_text("gone")
    elif kind == "directory":
        (path / "below").mkdir(parents=True)
        (path / "below" / "file").write_text("gone")
    elif kind == "link to a directory":
        path.symlink_to(kept)
    storage.remove(path)
    assert not path.exists()
    assert not path.is_symlink()
    assert (kept / "file").read_text() == "kept"


@pytest.mark.fault(6)
def test_a_failing_disk_is_named(tmp_path):
    with pytest.raises(StoppedEarly) as stopped, storage.writing(tmp_path / "part"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path / "part") in str(stopped.value)
    assert "No space left on device" in str(stopped.value)
    assert stopped.value.exit_code == 75


@pytest.mark.fault(10)
def test_a_lock_is_exclusive_and_names_its_holder(tmp_path):
    first, second = storage.Lock(tmp_path / "lock"), storage.Lock(tmp_path / "lock")
    first.acquire()
    first.acquire()
    with pytest.raises(OutputBusy, match=f"process {os.getpid()} on "):
        second.acquire()
    second.release()
    first.release()
    second.acquire()
    second.release()


@pytest.mark.fault(10)
def test_a_lock_dies_with_its_owner(tmp_path):
    """SIGKILL leaves the file, which says nothing once nobody holds it."""
    code = (
        "import sys, pathlib; from pipeline.store.disk import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1])); lock.acquire()\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(OutputBusy, match=f"process {owner.pid} on "):
            storage.Lock(tmp_path / "lock").acquire()
        owner.kill()
        owner.wait()
    lock = storage.Lock(tmp_path / "lock")
    lock.acquire()
    lock.release()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"[1, 2]", b"3"])
@pytest.mark.fault(10)
def test_an_unreadable_lock_file_still_locks(tmp_path, content):
    """Its content only tells who holds it; the lock is the kernel's."""
    path = tmp_path / "lock"
    first = storage.Lock(path)
    first.acquire()
    path.write_bytes(content)
    with pytest.raises(OutputBusy, match="its process is not known"):
        storage.Lock(path).acquire()
    first.release()


def test_who_holds_a_lock_can_be_seen_without_taking_it(tmp_path):
    path = tmp_path / "lock"
    assert storage.holder_of(path) is None
    assert not path.exists()
    lock, before = storage.Lock(path), round(time.time(), 3)
    lock.acquire()
    holder = storage.holder_of(path)
    assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
    assert before <= holder.since <= time.time() + 0.001
    lock.release()
    assert storage.holder_of(path) is None


def test_whoever_looks_at_a_lock_keeps_nobody_from_it(tmp_path, monkeypatch):
    """To look at it takes it for an instant; a run that wants it just then tries once more."""
    path = tmp_path / "lock"
    path.touch()
    with path.open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        monkeypatch.setattr(storage.time, "sleep", lambda _: fcntl.flock(looked_at, fcntl.LOCK_UN))
        lock = storage.Lock(path)
        lock.acquire()
    assert storage.holder_of(path).pid == os.getpid()
    lock.release()


class _FailingOnce:
    """A call of the operating system that fails at its `at`-th call, and counts all of them."""

    def __init__(self, call, at, number):
        self._call, self._at, self._number = call, at, number
        self.calls = 0
        self.failed_inode = None
        self.again = 0

    def __call__(self, descriptor):
        self.calls += 1
        inode = os.fstat(descriptor).st_ino
        self.again += inode == self.failed_inode
        if self.calls == self._at:
            self.failed_inode = inode
            raise OSError(self._number, os.strerror(self._number))
        return self._call(descriptor)


TEXTS = [f"text {i}" for i in range(40)]


@pytest.fixture
def at_once(label, server, write_csv, tmp_path, small_chunks):
    """The bytes of an output that nothing disturbed, and its input."""
    source = write_csv("in.csv", TEXTS)
    label(source, tmp_path / "at_once.parquet")
    server.reset()
    return source, (tmp_path / "at_once.parquet").read_bytes()


@pytest.mark.parametrize(
    ("call", "number", "at_least"), [("fsync", errno.EIO, 10), ("fdatasync", errno.ENOSPC, 1)]
)
@pytest.mark.fault(5)
def test_every_fsync_may_fail_once(
    label, server, at_once, tmp_path, monkeypatch, call, number, at_least
):
    """The run stops resumably; what was not durable counts for nothing; no fsync is retried.

    A second fsync of the same file would lie: the kernel may have dropped the dirty pages.
    """
    source, expected = at_once
    if call == "fdatasync":
        # Answers are synced while the run goes on: it must take longer than one group commit.
        server.script = lambda _: server.reply(delay_s=0.08)
    real, stops = getattr(os, call), 0
    for at in itertools.count(1):
        output = tmp_path / f"{at}.parquet"
        failing = _FailingOnce(real, at, number)
        monkeypatch.setattr(os, call, failing)
        stopped = _stopped(lambda: label(source, output, batch_size=4, concurrency=1))  # noqa: B023 - called at once
        monkeypatch.setattr(os, call, real)
        if stopped is not None:
            stops += 1
            assert "cannot write" in str(stopped)
            assert failing.again == 0 or _is_directory_of(tmp_path, failing.failed_inode)
            label(source, output, batch_size=4)
        assert output.read_bytes() == expected
        assert set(server.texts) == set(TEXTS)
        # Where the store itself cannot be written, what was in flight cannot be kept.
        assert len(server.sent_twice()) <= (0 if call == "fsync" else 8)
        server.requests.clear()
        if failing.calls < at:
            break
    assert stops >= at_least


def _stopped(run):
    """What stopped a run, None where it came to its end."""
    try:
        run()
    except StoppedEarly as stopped:
        return stopped
    return None


def _is_directory_of(root, inode):
    return any(path.stat().st_ino == inode for path in [root, *root.rglob("*")] if path.is_dir())
