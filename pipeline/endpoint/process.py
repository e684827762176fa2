"""The local endpoint as a process of its own, which never outlives its parent."""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, Self

from pipeline.endpoint.models import DEFAULT_MODEL
from pipeline.errors import ClassifyError, SettingsError, StoppedEarly
from pipeline.system.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_STDERR_TAIL_BYTES: Final = 2000


class EndpointProcess:
    """Serve models on a free port of 127.0.0.1 while the block runs.

    Works as a context manager and as an asynchronous one, in a loop of any thread. `arguments`
    are further options of `classify serve`, such as `("--cold-start", "5")`. Entering waits for
    the endpoint to listen, `startup_s` seconds at most; leaving sends SIGTERM, after `grace_s`
    seconds SIGKILL, and reaps the process. A terminal's Ctrl-C does not reach it, so that a run
    can drain; it holds a pipe to this process and ends when that closes, even by SIGKILL.

    Entering raises SettingsError if the child refuses its options (an unknown model, a missing
    package) and ClassifyError if it does not come up; both tell what the child wrote.
    """

    def __init__(
        self,
        models: Sequence[str] = (DEFAULT_MODEL,),
        *,
        arguments: Sequence[str] = (),
        # A large saved model takes minutes from a slow disk.
        startup_s: float = 300.0,
        grace_s: float = 5.0,
    ) -> None:
        self._command = [
            sys.executable,
            # Without the working directory on the path, a stray pipeline.py there is no danger.
            *("-P", "-m", "pipeline.cli", "serve"),
            *("--host", "127.0.0.1", "--port", "0", "--until-stdin-closes"),
            *(part for model in models for part in ("--model", model)),
            *arguments,
        ]
        self._startup_s = startup_s
        self._grace_s = grace_s
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._announced: dict[str, Any] = {}

    @property
    def url(self) -> str:
        """The address of the default model, `http://127.0.0.1:port`; known inside the block."""
        return str(self._announced["url"])

    def __enter__(self) -> Self:
        with self._spawned():
            self._await_announcement()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> Self:
        with self._spawned():
            await asyncio.to_thread(self._await_announcement)
        return self

    async def __aexit__(self, *_: object) -> None:
        await in_thread(self._stop)

    # Popen and not asyncio's subprocesses: those hang on a child watcher that belongs to one
    # loop or thread, and on pipes that must be drained while that loop runs.
    @contextmanager
    def _spawned(self) -> Iterator[None]:
        """Start the child, and end it if the block fails, as it is to come up in it."""
        # A file takes what a pipe would block on once nobody reads it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _kill
        try:
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError:
            self._stderr.close()
            raise
        try:
            yield
        except BaseException:
            # Also on cancellation: the end of the child ends the thread that reads from it.
            self._kill()
            raise

    def _await_announcement(self) -> None:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        announcement = select.poll()
        announcement.register(child.stdout, select.POLLIN)
        if not announcement.poll(self._startup_s * 1000):
            raise ClassifyError(
                f"The local endpoint did not start within {self._startup_s:g} s{self._tail()}"
            )
        line = child.stdout.readline()
        if line.endswith(b"\n"):
            self._announced = json.loads(line)
            return
        code = child.wait()
        kinds = {kind.exit_code: kind for kind in (SettingsError, StoppedEarly)}
        kind = kinds.get(code, ClassifyError)
        raise kind(f"The local endpoint did not start (exit code {code}){self._tail()}")

    def _tail(self) -> str:
        assert self._stderr is not None
        self._stderr.seek(0)
        tail = self._stderr.read()[-_STDERR_TAIL_BYTES:].decode(errors="replace").strip()
        return f"; it wrote:\n{tail}" if tail else "; it wrote nothing"

    def _stop(self) -> None:
        child = self._child
        assert child is not None
        child.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                child.wait(self._grace_s)
        finally:
            self._kill()

    def _kill(self) -> None:
        assert self._child is not None
        assert self._stderr is not None
        with self._stderr, self._child as child:
            # A child that was reaped is not signalled: Popen looks first.
            child.kill()
            child.wait()
