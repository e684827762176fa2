"""The command in a process of its own, but without an interpreter's start, a second of work.

A server that has loaded the package forks for each command: a real process, with its own directory,
environment, streams, signals and exit code. Only what an interpreter reads at its start is not its
own; see `can_fork`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING

from pipeline.system import failpoints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# What most runs load, and what depends on no variable.
LOADED = (
    "pipeline.cli.run", "pipeline.api", "pipeline.job.runner", "pipeline.report", "pipeline.plan",
    "pipeline.observers.progress", "pyarrow.parquet", "pyarrow.csv", "rich.console",
)  # fmt: skip
READ_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC", "ARROW", "OMP_", "OPENBLAS_")
MOST_BYTES = 1 << 17
SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Forks:
    """The server; started with the first command."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._environ = _read_at_start(os.environ)
        self._server: subprocess.Popen[bytes] | None = None

    def can_fork(self, environ: dict[str, str]) -> bool:
        """Return whether an interpreter would read the same at its start as the server did."""
        return _read_at_start(environ) == self._environ

    def start(
        self, command: list[str], cwd: Path, environ: dict[str, str], streams: list[int]
    ) -> tuple[int, socket.socket]:
        """Start a command. Return its process id, and a socket that will tell its exit code."""
        asked = json.dumps([command, str(cwd), environ]).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            if self._server is None:
                self._asked, served = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with served:
                    self._server = subprocess.Popen(
                        [sys.executable, "-P", __file__, str(served.fileno())],
                        pass_fds=[served.fileno()],
                        env={**os.environ, **self._environ},
                    )
            socket.send_fds(self._asked, [asked], [theirs.fileno(), *streams])
        return int(ours.recv(20)), ours

    def close(self) -> None:
        if self._server is not None:
            self._asked.close()
            self._server.wait()


class Forked:
    """A command that works, with what `subprocess.Popen` has of the same names."""

    def __init__(
        self, forks: Forks, command: list[str], cwd: Path, environ: dict[str, str], stdin: int
    ) -> None:
        self.returncode: int | None = None
        self._said: list[str] = []
        # Files, not pipes, so that nobody has to read while it works.
        self._streams = [tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        streams = [stdin, *(each.fileno() for each in self._streams)]
        self.pid, self._told = forks.start(command, cwd, environ, streams)

    def poll(self) -> int | None:
        return self._wait(0)

    def _wait(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], seconds)[0]:
            self.returncode = int(self._told.recv(20))
            self._told.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def printed(self) -> str:
        """Return what is on standard output so far."""
        return os.pread(self._streams[0].fileno(), MOST_BYTES, 0).decode()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        for stream in self._streams:
            with stream:
                stream.seek(0)
                self._said.append(stream.read())
        self._streams = []
        return self._said[0], self._said[1]


def serve(asked: socket.socket) -> bool:
    """Fork for each command that is asked for. Return True in the process of a command."""
    for name in LOADED:
        importlib.import_module(name)
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    # That of a terminal is none of the server's; what is sent to a command is kept until it can
    # take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    working: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            woken.recv(MOST_BYTES)
            _tell_exits(working)
        if asked not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(asked, MOST_BYTES, 4)
        if not message:
            return False
        told, *streams = descriptors
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            for each in (asked, woken, wake, *working.values()):
                each.close()
            os.close(told)
            _become(*json.loads(message), streams)
            return True
        for descriptor in streams:
            os.close(descriptor)
        working[pid] = socket.socket(fileno=told)
        working[pid].sendall(b"%d" % pid)


def _tell_exits(working: dict[int, socket.socket]) -> None:
    while working:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with working.pop(pid) as told, contextlib.suppress(BrokenPipeError):
            told.sendall(b"%d" % os.waitstatus_to_exitcode(status))


def _become(command: list[str], cwd: str, environ: dict[str, str], streams: list[int]) -> None:
    """Make this process what it would be if the command had been started in it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    importlib.reload(failpoints)  # reads its variable when it is imported
    sys.argv = command


def _read_at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(READ_AT_START)}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        is_command = serve(asked)
    if is_command:
        from pipeline.cli import console

        sys.exit(console())
