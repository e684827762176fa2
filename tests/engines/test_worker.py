"""A worker process by itself: what it does with frames, and when it sends nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from pipeline.engines.frames import Frames, error_in, frame
from pipeline.engines.worker import LEASE_S
from pipeline.errors import Cause
from pipeline.version import __version__

pytestmark = pytest.mark.fault(29)
BODY = b'{"inputs":["a"],"parameters":{"top_k":1}}'
JSON = {"Content-Type": "application/json"}


class Run:
    """The other end of a worker: a run that says what a test wants it to."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "pipeline.engines.worker", str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True)
        self._frames = Frames()
        self._found = []
        self.socket.settimeout(20)
        self.ready = self.next("ready")

    def say(self, head, body=b""):
        self.socket.sendall(b"".join(frame(head, body)))

    def next(self, *kinds):
        """The next frame of these kinds; others are passed over."""
        while True:
            while self._found:
                head, body = self._found.pop(0)
                if head["kind"] in kinds:
                    return {**head, "body": body}
            self._found += self._frames.of(self.socket.recv(1 << 16))

    def open(self, url):
        line = {"url": url, "headers": JSON, "private": False, "secrets": []}
        self.say({"kind": "line", "line": 0, **line})

    def echo(self):
        """Echo the newest beat."""
        self.socket.setblocking(False)
        try:
            while self.socket.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        self.socket.settimeout(20)
        self._frames, self._found = Frames(), []
        self.say({"kind": "echo", "at": self.next("beat")["at"]})

    def ask(self, number, url):
        asked = {"line": 0, "method": "POST", "url": url, "headers": []}
        self.say({"kind": "exchange", "number": number, **asked}, BODY)

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def run():
    run = Run()
    yield run
    run.close()


def test_it_says_what_it_is_and_exchanges_bytes(run, server):
    assert (run.ready["version"], run.ready["pid"]) == (__version__, run.process.pid)
    run.open(server.url)
    run.echo()
    run.ask(7, server.url)
    answer = run.next("answer", "error")
    assert (answer["number"], answer["status"]) == (7, 200)
    assert answer["body"].startswith(b'[[{"label"')


def test_without_an_echo_nothing_is_sent(run, server):
    """No reply, no sending: before the first echo, and once the last one is too old."""
    run.open(server.url)
    run.ask(1, server.url)
    assert error_in(run.next("answer", "error")).cause is Cause.WORKER_LOST
    run.echo()
    time.sleep(LEASE_S)
    run.ask(2, server.url)
    assert error_in(run.next("answer", "error")).cause is Cause.WORKER_LOST
    assert server.requests == []
    run.echo()
    run.ask(3, server.url)
    assert run.next("answer", "error")["status"] == 200


def test_one_that_was_frozen_sends_nothing_of_what_waited_for_it(run, server):
    run.open(server.url)
    run.echo()
    run.process.send_signal(signal.SIGSTOP)
    for number in range(20):
        run.ask(number, server.url)
    time.sleep(LEASE_S + 0.1)
    run.process.send_signal(signal.SIGCONT)
    for _ in range(20):
        assert error_in(run.next("answer", "error")).cause is Cause.WORKER_LOST
    assert server.requests == []


@pytest.mark.parametrize("frozen", [False, True])
def test_it_ends_when_its_run_is_gone(frozen, tmp_path):
    """Also by SIGKILL of the run, and also while it is frozen."""
    code = (
        "import os, socket, subprocess, sys, time\n"
        "ours, theirs = socket.socketpair()\n"
        "c = subprocess.Popen([sys.executable, '-P', '-m', 'pipeline.engines.worker',"
        " str(os.getpid())], stdin=theirs.fileno(), start_new_session=True)\n"
        "theirs.close(); ours.recv(1); print(c.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        if frozen:
            worker.suspend()
        parent.kill()
    worker.wait(20)
    assert not worker.is_running()


def test_an_overdue_request_is_given_up(run, server):
    server.script = lambda _: server.reply(hold=True)
    run.open(server.url)
    run.echo()
    run.ask(1, server.url)
    server.wait_for(lambda: server.in_flight == 1)
    run.say({"kind": "cancel", "number": 1})
    while psutil.Process(run.process.pid).net_connections("tcp"):
        time.sleep(0.01)
