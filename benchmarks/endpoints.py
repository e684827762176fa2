"""The endpoints of servers.py: simulated ones, which count, and real ones, which do not."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import HERE

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S = 180.0
# A model on the CPU gets one core, and leaves the other to the client: threads that wait for each
# other spin, and on busy cores that made one batch take 20 times longer.
ON_CPU = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def ask(url: str, body: Any = None, timeout_s: float = 120.0) -> Any:
    """GET, or POST with a body; return the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        return json.loads(response.read())


@dataclass
class Endpoint:
    """A server in a process of its own; `counts` if it has /stats and /reset.

    `by_token` if it counts tokens, and they decide what a text costs.
    """

    command: list[str]
    url: str = ""
    counts: bool = True
    by_token: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    # What a real server is asked, to see that it is up and idle.
    greeting: tuple[str, Any] = ("", {"inputs": ["a"]})
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Raises RuntimeError if it does not."""
        log = None if self.counts else tempfile.TemporaryFile()  # noqa: SIM115 - read if it fails
        self._process = subprocess.Popen(
            self.command, env=os.environ | self.environment,
            stdin=subprocess.PIPE, stdout=log or subprocess.PIPE, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        if log is None:
            assert self._process.stdout is not None
            self.url = json.loads(self._process.stdout.readline())["url"]
            return
        until = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                self.reset()
                return
            time.sleep(0.3)
        self.kill()
        log.seek(0)
        raise RuntimeError(f"{self.command} did not start: {log.read().decode()[-2000:]}")

    def kill(self) -> None:
        """End it at once, with the processes that it started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None

    def reset(self) -> None:
        """Forget what was counted and what is queued; a real server works its queue off first."""
        path, body = ("/reset", {}) if self.counts else self.greeting
        ask(self.url + path, body)

    def stats(self) -> dict[str, Any]:
        """Return what was counted since."""
        found: dict[str, Any] = ask(f"{self.url}/stats")
        return found


def simulated(name: str, *options: object) -> Endpoint:
    """Return a server of simulated.mjs."""
    node = shutil.which("node")
    if node is None:
        sys.exit("The simulated servers need node (20.15 or newer), which is not installed.")
    command = [node, str(HERE / "simulated.mjs"), name, *map(str, options)]
    return Endpoint(command, by_token=name in {"padded", "dynamic"})


def toolkit(checkout: Path, python: str, model: Path) -> Endpoint:
    """Return Hugging Face's inference toolkit, run from a checkout of its source."""
    port = free_port()
    source = (checkout / "src").resolve()
    return Endpoint(
        [python, "-P", "-m", "uvicorn", "--app-dir", str(source),
         "huggingface_inference_toolkit.webservice_starlette:app", "--host", "127.0.0.1", "--port",
         str(port), "--log-level", "warning"],
        f"http://127.0.0.1:{port}", counts=False,
        environment={"HF_MODEL_DIR": str(model), "HF_TASK": "text-classification",
                     "PYTHONPATH": str(source), **ON_CPU},
    )  # fmt: skip


def infinity(python: str, model: Path) -> Endpoint:
    """Return infinity_emb, serving a directory."""
    port = free_port()
    command = str(Path(python).parent / "infinity_emb")
    return Endpoint(
        [command, "v2", "--model-id", str(model), "--served-model-name", "random", "--engine",
         "torch", "--device", "cpu", "--no-bettertransformer", "--no-model-warmup", "--host",
         "127.0.0.1", "--port", str(port)],
        f"http://127.0.0.1:{port}", counts=False,
        environment={"DO_NOT_TRACK": "1", **ON_CPU},
        greeting=("/classify", {"model": "random", "input": ["a"]}),
    )  # fmt: skip


@contextlib.contextmanager
def started(*endpoints: Endpoint) -> Iterator[list[Endpoint]]:
    """Start them all, and end them all."""
    try:
        for endpoint in endpoints:
            endpoint.start()
        yield list(endpoints)
    finally:
        for endpoint in endpoints:
            endpoint.kill()


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
