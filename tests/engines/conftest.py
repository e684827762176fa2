"""Runs whose requests are sent by workers, and the worker processes that they have."""

from __future__ import annotations

import hashlib
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from pipeline.events import Notice, Workers

if TYPE_CHECKING:
    from collections.abc import Callable


def workers_of(pid: int | None = None) -> list[psutil.Process]:
    """The worker processes of a process, of this one if none is given."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "pipeline.engines.worker" in child.cmdline():
                found.append(child)
    return found


def digest(path: Any) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def most_in_a_second(times: list[float]) -> int:
    """The most requests in any sliding window of one second."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


class Watch:
    """An observer of a run: notices, and what workers there are."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self.workers: list[Workers] = []

    def __call__(self, event: Any) -> None:
        if isinstance(event, Notice):
            self.notices.append(event)
        elif isinstance(event, Workers):
            self.workers.append(event)


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def once(server):
    """Do something in a thread of its own, once the server has seen so many requests."""
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def later(requests: int, do: Callable[[], Any]) -> threading.Thread:
        def work() -> None:
            try:
                server.wait_for(lambda: len(server.requests) >= requests)
                do()
            except BaseException as failure:  # noqa: BLE001  (raised when the test ends)
                failures.append(failure)

        thread = threading.Thread(target=work)
        thread.start()
        threads.append(thread)
        return thread

    yield later
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture(autouse=True)
def _no_worker_is_left():
    """Whatever a test did to them, none outlives its run."""
    yield
    left = workers_of()
    for process in left:
        process.send_signal(signal.SIGKILL)
    assert left == []
