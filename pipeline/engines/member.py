"""A worker as the run sees it: what it was asked, and when it was heard of last."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from pipeline.client.wire import Headers, Told
from pipeline.engines.frames import Frames, error_in, frame
from pipeline.errors import Cause, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.engines.crew import Crew

# A worker that was not heard of for so long gets no requests, until it is heard of again.
SILENT_S = 1.5


class Worker:
    """A worker as the run sees it; `number` is that of its place."""

    def __init__(self, number: int, crew: Crew) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.at_work = False
        self.heard_at = monotonic()
        self.ready_within_s = inf
        self.exchanges: dict[int, asyncio.Future[Told]] = {}
        self.answered = self.answered_before = 0
        self.why = ""
        self.unanswered = 0
        self.dismissed = False
        # Set once it is to end: it is dismissed, or there is nothing more to do.
        self.leaves = asyncio.Event()
        self._crew = crew
        self._frames = Frames()
        self._out: list[bytes] = []
        self._write: Callable[[list[bytes]], None] | None = None

    def connect(self, write: Callable[[list[bytes]], None], *, ready_within_s: float = inf) -> None:
        """Send by `write` from now on, which gets pieces of frames once a pass of the loop.

        It is dismissed if it is not ready by then.
        """
        self._write = write
        self.heard_at = monotonic()
        self.ready_within_s = ready_within_s

    @property
    def is_silent(self) -> bool:
        """True if it was not heard of lately."""
        return monotonic() - self.heard_at > SILENT_S

    def ask(self, number: int, head: dict[str, Any], body: bytes) -> asyncio.Future[Told]:
        """Have it exchange a request."""
        self.say(head, body)
        asked: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self.exchanges[number] = asked
        self._crew.changed(self)
        return asked

    def no_longer(self, number: int) -> asyncio.Future[Told] | None:
        """Wait for a request no longer; None if it is over already."""
        asked = self.exchanges.pop(number, None)
        self._crew.changed(self)
        return asked

    def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame, unless this one is dismissed."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += frame(head, body)

    def say_alone(self, head: dict[str, Any]) -> None:
        """Send a frame with nothing else, at once: Ray keeps large messages in a shared store."""
        self._flush()
        self._out += frame(head)
        self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._write is not None and not self.leaves.is_set():
            self._write(out)

    def received(self, data: bytes) -> None:
        """Take bytes of the worker; those of one that is dismissed mean nothing any more."""
        if self.leaves.is_set():
            return
        for head, body in self._frames.of(data):
            self._take(head, body)

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        match head["kind"]:
            case "answer" | "error":
                asked = self.no_longer(head["number"])
                if asked is None or asked.done():
                    return
                self.answered += 1
                if head["kind"] == "answer":
                    headers = Headers(CIMultiDict(head["headers"]))
                    asked.set_result(Told(head["status"], headers, body))
                elif head["error"]:
                    asked.set_exception(error_in(head))
                else:
                    asked.set_exception(RuntimeError(f"in {self.name}:\n{head['traceback']}"))
            case "beat":
                # Nothing else counts: one that wakes refuses what waited for it before it beats.
                self.heard_at = monotonic()
                self.say({"kind": "echo", "at": head["at"]})
                self._crew.heard(self)
            case "ready":
                self.name = f"worker {self.number} (process {head['pid']} on {head['host']})"
                self._crew.came(self, head["version"])
            case "failed":
                self._crew.failed(self, error_in(head))

    def end(self, why: str) -> None:
        """Stop using it: it has ended, or is to end."""
        self.why = self.why or why
        self.at_work = False
        self._crew.changed(self)
        self.leaves.set()
        self.unanswered += len(self.exchanges)
        exchanges, self.exchanges = self.exchanges, {}
        for asked in exchanges.values():
            if not asked.done():
                asked.set_exception(Retryable(Cause.WORKER_LOST, f"{self.name}: {self.why}"))
