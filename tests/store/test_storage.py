"""The verbs, the lease and the growing files; with real failures of the disk in every place."""

import errno
import fcntl
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import OutputBusy, OutputError, StoppedEarly
from pipeline.store import disk, lease
from pipeline.store.disk import DiskObjects
from pipeline.store.files import DiskFile
from pipeline.store.lease import FlockLease
from pipeline.store.objects import writing
from tests.store.memory_store import MemoryFile, MemoryLease, MemoryObjects


@pytest.fixture(params=["disk", "memory"])
def objects(request, tmp_path):
    return DiskObjects(tmp_path) if request.param == "disk" else MemoryObjects()


def test_the_five_verbs(objects):
    """Every kind of storage keeps these; all else is built on them."""
    assert objects.get("log/1") is None
    assert objects.create("log/1", b"first") is True
    assert objects.create("log/1", b"second") is False
    assert objects.create("log/1", b"first") is False
    assert objects.get("log/1") == b"first"
    objects.put("log/1", b"third")
    objects.put("summary", b"")
    objects.put("log/2", memoryview(b"fourth"))
    assert [objects.get(name) for name in ("log/1", "log/2", "summary")] == [
        b"third", b"fourth", b"",
    ]  # fmt: skip
    assert (objects.list("log/"), objects.list("")) == (["log/1", "log/2"], ["summary"])
    assert objects.list("parts/") == []
    objects.delete("log/1")
    objects.delete("log/1")
    assert objects.list("log/") == ["log/2"]
    objects.delete("log/")
    assert objects.list("log/") == ["log/2"]
    objects.delete("log/2")
    objects.delete("log/")
    assert objects.list("log/") == []


@pytest.mark.fault(10)
def test_of_many_that_create_one_name_one_wins(objects):
    for round_ in range(40):
        start = threading.Barrier(4)

        def create(number, name=f"log/{round_}", start=start):
            start.wait()
            return objects.create(name, b"%d" % number)

        with ThreadPoolExecutor(4) as threads:
            won = list(threads.map(create, range(4)))
        assert won.count(True) == 1
        assert objects.get(f"log/{round_}") == b"%d" % won.index(True)


def test_a_replaced_file_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "file").write_text("before")
    DiskObjects(tmp_path).put("file", b"after")
    assert (tmp_path / "file").read_bytes() == b"after"
    assert DiskObjects(tmp_path).create("file", b"never") is False
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_without_links_is_named(tmp_path, monkeypatch):
    """The log cannot be kept there, so the run does not begin."""

    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OutputError, match="no hard links"):
        DiskObjects(tmp_path).create("log/1", b"entry")
    assert list((tmp_path / "log").iterdir()) == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_growing_file(tmp_path, kind):
    file = DiskFile(tmp_path / "file") if kind == "disk" else MemoryFile()
    assert not file.exists()
    with pytest.raises(FileNotFoundError):
        file.open(read_only=True)
    with pytest.raises(FileNotFoundError):
        file.size()
    file.open()
    assert [file.append(each) for each in (b"one", b"two", b"three")] == [0, 3, 6]
    file.sync()
    with file.locked():
        file.cut(8)
    assert (file.size(), file.read(3, 3), file.read(9, 6)) == (8, b"two", b"th")
    file.close()
    with file.reader() as reader:
        assert reader.read() == b"onetwoth"
    file.open()
    assert file.append(b"!") == 8
    file.close()
    file.delete()
    file.delete()
    assert not file.exists()


def test_commit_directory_replaces_the_directory_as_a_whole(tmp_path):
    final, temp = tmp_path / "out", tmp_path / "temp"
    for directory, name in ((final, "old"), (temp, "new")):
        directory.mkdir()
        (directory / name).write_text(name)
    disk.commit_directory(temp, final)
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
    disk.remove(path)
    assert not path.exists()
    assert not path.is_symlink()
    assert (kept / "file").read_text() == "kept"


@pytest.mark.fault(6)
def test_a_failing_disk_is_named(tmp_path):
    with pytest.raises(StoppedEarly) as stopped, writing(tmp_path / "part"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path / "part") in str(stopped.value)
    assert "No space left on device" in str(stopped.value)
    assert stopped.value.exit_code == 75


@pytest.mark.fault(10)
def test_a_lease_is_exclusive_and_names_its_holder(tmp_path):
    first, second = FlockLease(tmp_path), FlockLease(tmp_path)
    assert first.acquire(create=False)
    for other in (first, second):
        with pytest.raises(OutputBusy, match=f"process {os.getpid()} on "):
            other.acquire(create=True)
    second.release()
    assert second.holder() is not None
    first.release()
    assert second.acquire(create=False)
    second.release()


def test_a_lease_in_memory_is_exclusive(tmp_path):
    lease = MemoryLease()
    assert lease.holder() is None
    assert lease.acquire(create=False)
    assert lease.holder().pid == os.getpid()
    with pytest.raises(OutputBusy, match=f"process {os.getpid()} on "):
        lease.acquire(create=True)
    lease.release()
    assert lease.acquire(create=False)


def test_what_is_not_there_is_leased_once_it_is_made(tmp_path):
    lease = FlockLease(tmp_path / "new" / "out.run")
    assert not lease.acquire(create=False)
    assert not (tmp_path / "new").exists()
    assert lease.acquire(create=True)
    lease.release()


@pytest.mark.fault(10)
def test_a_lock_dies_with_its_owner(tmp_path):
    """SIGKILL leaves the file, which says nothing once nobody holds it."""
    code = (
        "import sys, pathlib; from pipeline.store.lease import FlockLease\n"
        "lease = FlockLease(pathlib.Path(sys.argv[1])); lease.acquire(create=False)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(OutputBusy, match=f"process {owner.pid} on "):
            FlockLease(tmp_path).acquire(create=False)
        owner.kill()
        owner.wait()
    lease = FlockLease(tmp_path)
    assert lease.acquire(create=False)
    lease.release()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff\xfe", b"[1, 2]", b"3"])
@pytest.mark.fault(10)
def test_an_unreadable_lock_file_still_locks(tmp_path, content):
    """Its content only tells who holds it; the lock is the kernel's."""
    first = FlockLease(tmp_path)
    first.acquire(create=False)
    (tmp_path / "lock").write_bytes(content)
    with pytest.raises(OutputBusy, match="its process is not known"):
        FlockLease(tmp_path).acquire(create=False)
    first.release()


def test_who_holds_a_lock_can_be_seen_without_taking_it(tmp_path):
    lease, before = FlockLease(tmp_path), round(time.time(), 3)
    assert lease.holder() is None
    assert not (tmp_path / "lock").exists()
    lease.acquire(create=False)
    holder = FlockLease(tmp_path).holder()
    assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
    assert before <= holder.since <= time.time() + 0.001
    lease.release()
    assert lease.holder() is None


def test_whoever_looks_at_a_lock_keeps_nobody_from_it(tmp_path, monkeypatch):
    """To look at it takes it for an instant; a run that wants it just then tries once more."""
    path = tmp_path / "lock"
    path.touch()
    with path.open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        monkeypatch.setattr(lease.time, "sleep", lambda _: fcntl.flock(looked_at, fcntl.LOCK_UN))
        taken = FlockLease(tmp_path)
        taken.acquire(create=False)
    assert taken.holder().pid == os.getpid()
    taken.release()


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
