"""Workers as processes of this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.engines.member import Worker

# How long one may take until it is ready: far more than a busy machine needs.
READY_S = 60.0
# How long one may take to close its connections once its pipe has closed.
GRACE_S = 2.0
_STDERR_TAIL_BYTES = 2000
_LOOK_S = 0.005


class _Pipe(asyncio.Protocol):
    """The socket to a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def data_received(self, data: bytes) -> None:
        self._worker.received(data)

    def connection_lost(self, _error: Exception | None) -> None:
        self._worker.end("")


class Processes:
    """Starts each worker as a process with a socket for its standard input.

    Ctrl-C of a terminal does not reach it, so that a run can drain. It ends when the socket closes.
    """

    async def employ(self, worker: Worker) -> str:
        """Start a worker, and return once it has ended: why, in words."""
        ours, theirs = socket.socketpair()
        # A file takes what a pipe would block on.
        with ours, tempfile.TemporaryFile() as stderr:
            with theirs:
                # Here and not in a thread: a worker is killed with the thread that started it.
                child = subprocess.Popen(  # noqa: ASYNC220, S603 - our own interpreter and module
                    [sys.executable, "-P", "-m", "pipeline.engines.worker", str(os.getpid())],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=True,
                )
            try:
                await _worked(worker, ours)
                await _ended(child, 0.0 if worker.dismissed else GRACE_S)
            finally:
                if child.returncode is None:
                    child.kill()
                    await _ended(child, GRACE_S)
            stderr.seek(0)
            wrote = stderr.read()[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
        code = child.returncode
        how = f"ended by signal {-code}" if code is not None and code < 0 else f"ended with {code}"
        return f"{how}; it wrote:\n{wrote}" if wrote else how

    async def close(self) -> None:
        """Do nothing: each has ended."""


async def _worked(worker: Worker, ours: socket.socket) -> None:
    """Connect a worker, until it leaves or its socket closes."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: _Pipe(worker), sock=ours)
    worker.connect(transport.writelines, ready_within_s=READY_S)
    try:
        await worker.leaves.wait()
    finally:
        transport.abort()


async def _ended(child: subprocess.Popen[bytes], within_s: float) -> None:
    """Wait for the end of a process, which is reaped then."""
    end = monotonic() + within_s
    # Nothing announces it to every kind of event loop.
    while child.poll() is None and monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)
