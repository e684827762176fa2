"""A worker: sends requests for a run that is elsewhere. Bytes come in, bytes go out.

All that a run must have once (limits, retries, the rate, what answers mean) stays with the run. A
worker only has the connections: TLS, HTTP, and what came of a request, as an answer or an error.

No reply, no sending: a worker beats with its own time, the run echoes that, and requests go out
only for a while after the time that was echoed last. So one that was frozen and wakes sends nothing
until the run has heard of it again, and never if the run has given it up.

Run as a module, it is a process whose standard input is a socket to the run. It ends when that
closes.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from yarl import URL

from pipeline.client.network import Way
from pipeline.client.wire import Wire
from pipeline.engines.frames import Frames, frame, told
from pipeline.errors import Cause, ClassifyError, Retryable
from pipeline.foreign import keep_secret
from pipeline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

BEAT_S = 0.5
# How long after an echoed beat requests may go out. It is also how many requests one that was
# frozen for less sends at once when it wakes, so no longer than it has to be.
LEASE_S = 2.0
_PR_SET_PDEATHSIG = 1
_parsed = lru_cache(64)(URL)


class Worker:
    """Does what frames say; `write` gets the pieces of the frames to the run, once a loop pass."""

    def __init__(self, write: Callable[[list[bytes]], None]) -> None:
        self._write = write
        self._frames = Frames()
        self._wires: dict[int, Wire] = {}
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._out: list[bytes] = []
        self._until = 0.0
        self._loop = asyncio.get_running_loop()
        host = socket.gethostname()
        self._say({"kind": "ready", "version": __version__, "pid": os.getpid(), "host": host})
        self._beat()

    def take(self, data: bytes) -> None:
        """Take bytes of the run."""
        for head, body in self._frames.of(data):
            match head["kind"]:
                case "exchange":
                    asking = self._loop.create_task(self._exchange(head, body))
                    self._asking[head["number"]] = asking
                case "echo":
                    self._until = head["at"] + LEASE_S
                case "cancel":
                    if (overdue := self._asking.get(head["number"])) is not None:
                        overdue.cancel()
                case "line":
                    self._open(head)

    async def close(self) -> None:
        """Close all connections."""
        self._timer.cancel()
        for task in self._asking.values():
            task.cancel()
        for wire in self._wires.values():
            await wire.close()

    def _open(self, head: dict[str, Any]) -> None:
        for secret in head["secrets"]:
            keep_secret(secret)
        if (wire := self._wires.get(head["line"])) is not None:
            wire.set_headers(head["headers"])
            return
        try:
            way = Way.to(head["url"])
            if head["private"]:
                way.check_private()
        except ClassifyError as error:
            self._say({"kind": "failed", **told(error)})
            return
        self._wires[head["line"]] = Wire(way, head["headers"])

    async def _exchange(self, head: dict[str, Any], body: bytes) -> None:
        number = head["number"]
        answer: dict[str, Any]
        content = b""
        try:
            self._check_lease()
            status, headers, content = await self._wires[head["line"]].exchange(
                head["method"],
                _parsed(head["url"]),
                body,
                tuple((name, value) for name, value in head["headers"]),
            )
            answer = {"kind": "answer", "status": status, "headers": headers.read()}
        except ClassifyError as error:
            answer = {"kind": "error", **told(error)}
        except Exception:  # noqa: BLE001  (raised in the run)
            answer = {"kind": "error", "error": "", "traceback": traceback.format_exc()}
        finally:
            del self._asking[number]
        answer["number"] = number
        self._say(answer, content)

    def _check_lease(self) -> None:
        if monotonic() >= self._until:
            raise Retryable(Cause.WORKER_LOST, "the worker has not heard of the run")

    def _beat(self) -> None:
        self._timer = self._loop.call_later(BEAT_S, self._beat)
        self._say({"kind": "beat", "at": monotonic()})

    def _say(self, head: dict[str, Any], body: bytes = b"") -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += frame(head, body)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._write(out)


class _Pipe(asyncio.Protocol):
    """The socket to the run; `closed` is set once that has closed it."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's own is an instance of none of asyncio's classes.
        self.worker = Worker(cast("asyncio.WriteTransport", transport).writelines)

    def data_received(self, data: bytes) -> None:
        self.worker.take(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed.set()


async def _work() -> None:
    pipe = _Pipe()
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: pipe, sock=socket.socket(fileno=os.dup(0)))
    await pipe.closed.wait()
    await pipe.worker.close()


def _end_with(parent: int) -> None:
    """End when the run ends, also while this process is stopped and cannot see its pipe close."""
    with suppress(AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit


def main() -> None:
    """Work for the run of the process whose number is the argument."""
    # A service manager sends them to all processes of a run, which needs its workers to drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _end_with(int(sys.argv[1]))
    gc.set_threshold(100_000, 50, 100)
    gc.freeze()
    import uvloop

    uvloop.run(_work())


if __name__ == "__main__":
    main()
