"""The lease across fork, where there are no locks, and beside other mounts."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.errors import OutputBusy, StoppedEarly
from pipeline.store import LocalStore, beat, disk
from pipeline.store.files import DiskFile
from pipeline.store.lease import FlockLease

# An owner that forks a child, as `multiprocessing` does, and then waits. Both tell their pid.
FORKING = """
import os, sys, time
from pathlib import Path
from pipeline.store.files import DiskFile
from pipeline.store.lease import FlockLease
lease = FlockLease(Path(sys.argv[1]))
lease.acquire(create=True)
file = DiskFile(Path(sys.argv[1]) / "answers")
file.open()
with file.locked():
    child = os.fork()
    if child == 0:
        lease.release()
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.read()
"""


@pytest.mark.fault(10)
def test_a_child_that_outlives_its_killed_parent_holds_nothing(tmp_path):
    """Neither the lease nor the lock of a file of answers, in whose midst the child was forked."""
    with subprocess.Popen(
        [sys.executable, "-c", FORKING, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        child = int(owner.stdout.readline())
        try:
            with pytest.raises(OutputBusy, match=f"process {owner.pid} on "):
                FlockLease(tmp_path).acquire(create=False)
            owner.kill()
            owner.wait()
            os.kill(child, 0)  # it is there
            lease = FlockLease(tmp_path)
            assert lease.acquire(create=False)
            lease.release()
            file = DiskFile(tmp_path / "answers")
            file.open()
            fcntl.flock(file._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.close()
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.fault(10)
def test_a_child_keeps_no_lease_that_was_given_back(tmp_path):
    lease = FlockLease(tmp_path)
    lease.acquire(create=False)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=signal.pause)
    child.start()
    try:
        with pytest.raises(OutputBusy):
            FlockLease(tmp_path).acquire(create=False)
        lease.release()
        assert lease.acquire(create=False)
        lease.release()
    finally:
        child.kill()
        child.join()


# --- no locks

NUMBERS = sorted({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})

# A process on a file system without locks; what `fcntl.flock` raises is all that is put on.
LOCKLESS = """
import fcntl, os, sys
from pathlib import Path
from pipeline.errors import OutputBusy
from pipeline.store import beat
from pipeline.store.lease import FlockLease
def flock(*_): raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
fcntl.flock = flock
beat.BEAT_S, beat.WATCH_S = 0.1, 1.0
lease = FlockLease(Path(sys.argv[1]))
try: lease.acquire(create=True)
except OutputBusy: print("busy", flush=True)
else:
    print("held", flush=True)
    if sys.stdin.readline(): lease.release()
"""


@pytest.fixture
def lockless(tmp_path):
    """Start a process that takes the lease where there are no locks."""
    started = []

    def start(number=errno.ENOLCK):
        process = subprocess.Popen(
            [sys.executable, "-c", LOCKLESS, str(tmp_path), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def without_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(beat, "BEAT_S", 0.1)
    monkeypatch.setattr(beat, "WATCH_S", 1.0)


@pytest.mark.fault(10)
@pytest.mark.parametrize("number", NUMBERS)
def test_without_locks_a_lease_is_held_by_its_beat(tmp_path, lockless, without_locks, number):
    owner = lockless(number)
    assert owner.stdout.readline() == "held\n"
    other = FlockLease(tmp_path)
    with pytest.raises(OutputBusy, match=f"process {owner.pid} on .*has no locks"):
        other.acquire(create=False)
    assert other.holder().pid == owner.pid
    owner.kill()
    owner.wait()
    assert other.holder() is None
    assert other.acquire(create=False)
    assert FlockLease(tmp_path).holder().pid == os.getpid()
    other.release()
    assert FlockLease(tmp_path).holder() is None


@pytest.mark.fault(10)
def test_without_locks_a_lease_that_is_given_back_is_free_at_once(
    tmp_path, lockless, without_locks, monkeypatch
):
    owner = lockless()
    assert owner.stdout.readline() == "held\n"
    owner.communicate("\n")
    monkeypatch.setattr(beat, "WATCH_S", 1e9)
    lease = FlockLease(tmp_path)
    assert lease.acquire(create=False)
    lease.release()


@pytest.mark.fault(10)
def test_without_locks_one_of_two_takes_the_lease_of_a_killed_owner(tmp_path, lockless):
    owner = lockless()
    assert owner.stdout.readline() == "held\n"
    owner.kill()
    owner.wait()
    both = [lockless(), lockless()]
    assert sorted(each.stdout.readline() for each in both) == ["busy\n", "held\n"]


@pytest.mark.fault(10)
def test_an_owner_that_was_frozen_takes_nothing_back(tmp_path, lockless, without_locks):
    """It finds another owner in the file, and beats no more; the log fences what it writes."""
    owner = lockless()
    assert owner.stdout.readline() == "held\n"
    os.kill(owner.pid, signal.SIGSTOP)
    lease = FlockLease(tmp_path)
    assert lease.acquire(create=False)
    os.kill(owner.pid, signal.SIGCONT)
    owner.communicate("\n")
    assert FlockLease(tmp_path).holder().pid == os.getpid()
    lease.release()


@pytest.mark.fault(10)
def test_a_failing_lock_is_not_another_run(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoppedEarly, match="lock: cannot write: Input/output error"):
        FlockLease(tmp_path).acquire(create=False)


def test_a_run_without_locks_ends(label, server, write_csv, tmp_path, without_locks):
    source = write_csv("in.csv", ["one", "two"])
    for name in ("a.parquet", "b.parquet"):
        label(source, tmp_path / name, cache=tmp_path / "cache")
    assert len(server.texts) == 2
    assert LocalStore(tmp_path / "a.parquet").lease.holder() is None


# --- mounts


def test_what_is_mounted_is_known():
    assert disk.is_mount(Path("/proc"))
    assert not disk.is_mount(Path("/proc/self"))


@pytest.mark.parametrize(
    ("name", "mounting"),
    [
        ("out", "mount -t tmpfs none out"),
        ("out", "mount --bind other out"),
        ("with a blank", "mount --bind other 'with a blank'"),
        ("out.parquet", "mount --bind other.parquet out.parquet"),
    ],
)
def test_an_output_that_is_a_mount_point_is_refused(server, write_csv, tmp_path, name, mounting):
    """Before anything is sent; a rename would find it out when everything is paid for."""
    write_csv("in.csv", ["one", "two"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other.parquet").touch()
    (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    classify = str(Path(sys.executable).with_name("classify"))
    command = (classify, "run", "in.csv", "-o", name, "--overwrite", "--endpoint", server.url)
    # Mounts of its own, which need no root where user namespaces are allowed.
    space = ("unshare", "--map-root-user", "--mount", "sh", "-c")
    ended = subprocess.run(
        [*space, f'{mounting} || exit 99; exec "$@"', "sh", *command],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode == 99 or ended.stderr.startswith("unshare:"):
        return  # a container that may not mount anything: see the test above
    assert ended.returncode == 2, ended.stderr
    assert "is a mount point" in ended.stderr
    assert server.requests == []
    assert not (tmp_path / f"{name}.run").exists()


def test_a_run_directory_on_another_file_system_is_refused(cli, server, write_csv, tmp_path):
    """Before anything is sent; nothing is left beside the output, and the run can be moved."""
    source = write_csv("in.csv", ["one", "two"])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "out.parquet.run").symlink_to(elsewhere)
        command = ("run", source, "-o", "out.parquet", "--endpoint", server.url)
        for _ in range(2):
            refused = cli(*command)
            assert refused.code == 2
            assert "Invalid cross-device link" in refused.stderr
            assert "Keep both on one file system" in refused.stderr
        assert server.requests == []
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.parquet.run"]
        assert [path.name for path in Path(elsewhere).iterdir()] == ["lock"]
    (tmp_path / "out.parquet.run").unlink()
    assert cli(*command).code == 0
