"""What the benchmarks share: commands measured as whole processes, and the endpoint they ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
# The kernel counts in kB, except on macOS, where it counts in bytes.
MAXRSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Measured:
    """One process from start to end: CPU seconds of all its threads, and its peak memory.

    `requests` is what the endpoint counted, where somebody asked it.
    """

    exit_code: int
    stdout: bytes
    seconds: float
    cpu_seconds: float
    peak_mb: float
    requests: int = 0

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object that it printed."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def measure(command: list[str]) -> Measured:
    """Run a command to its end."""
    # Settings in the environment would change what is measured.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CLASSIFY_")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        try:
            # The usage of this one child, which has no children itself. Before its exec it counts
            # as large as this process is, so a script that measures holds no table.
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if child.returncode:
            err.seek(0)
            sys.stderr.write(err.read().decode("utf-8", "replace")[-2000:])
        return Measured(
            child.returncode,
            out.read(),
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * MAXRSS_UNIT_BYTES / 1e6,
        )


def classify(*arguments: object) -> list[str]:
    """Give the command line of `classify` with this interpreter, wherever it is run from."""
    return [
        sys.executable, "-P", "-c", "from pipeline.cli import console; console()",
        *map(str, arguments),
    ]  # fmt: skip


def write_results(part: str, markdown: str) -> None:
    """Put a part of RESULTS.md in its place, or at the end, and leave the others as they are."""
    path = HERE / "RESULTS.md"
    head, *parts = re.split(r"^<!-- part (.+) -->\n", path.read_text("utf-8"), flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True)) | {part: markdown.strip() + "\n\n"}
    written = head + "".join(f"<!-- part {name} -->\n{text}" for name, text in found.items())
    path.write_text(written.rstrip() + "\n", encoding="utf-8")


class Server:
    """The endpoint of server.mjs, in a process of its own; counts from its last reset."""

    def __init__(self, url: str) -> None:
        self.url = url

    def reset(self) -> None:
        """Forget what was counted."""
        self._ask(urllib.request.Request(f"{self.url}/reset", b"", method="POST"))

    def stats(self) -> dict[str, Any]:
        """What was counted since."""
        found: dict[str, Any] = json.loads(self._ask(urllib.request.Request(self.url)))
        return found

    @staticmethod
    def _ask(request: urllib.request.Request) -> bytes:
        with urllib.request.urlopen(request, timeout=60) as response:
            body: bytes = response.read()
            return body


@contextlib.contextmanager
def serving(*, latency_ms: int = 0) -> Iterator[Server]:
    """Start the endpoint; needs node."""
    node = shutil.which("node")
    if node is None:
        sys.exit("The endpoint of the benchmark needs node, which is not installed.")
    with subprocess.Popen(
        [node, str(HERE / "server.mjs"), "--latency-ms", str(latency_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(json.loads(process.stdout.readline())["url"])
        finally:
            process.stdin.close()
            process.wait()
