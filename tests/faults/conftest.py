"""The harness of the fault suite: a job as the installed command, killed and started again.

The oracle is `Job.check`: the output has the bytes of a run that nothing disturbed, no text of a
committed row was sent again, and of the other texts only those that were in flight at a kill, or
were answered in the half second before it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store import LocalStore

# How long before a kill an answer may have come and not be stored yet (docs/architecture.md,
# "The order of a commit").
UNSAVED_S = 0.5
KEPT = {"log", "lock", "events.jsonl", "summary.json"}


@dataclass
class Attempt:
    """One process that worked on the job, and what it left behind.

    `requests` counts those that were seen by its end, of all attempts. `ended_at` is the moment
    just before the kill, or the one that the failpoint told. `committed` has ranges of rows.
    """

    code: int
    stderr: str
    started_at: float
    ended_at: float
    requests: int
    committed: list[range]
    phase: str

    @property
    def committed_rows(self) -> int:
        return sum(map(len, self.committed))


@dataclass
class Job:
    """A command that is killed and started again until its output stands."""

    server: Any
    start: Any
    committed: Any
    command: tuple[Any, ...]
    output: Path
    texts: list[str]
    batch_size: int
    expected: dict[str, bytes]
    seconds: float
    attempts: list[Attempt] = field(default_factory=list)
    # What the disk does to the processes that work on the job: see child/sitecustomize.py.
    disk: dict[str, Any] = field(default_factory=dict)

    @property
    def unsaved_s(self) -> float:
        """How long before a kill an answer may have come and not be stored yet."""
        return UNSAVED_S

    @property
    def run_directory(self) -> Path:
        return self.output.with_name(self.output.name + ".run")

    def begin(self, *more: object, **environ: str) -> Any:
        """Start one more attempt."""
        self._started_at = time.monotonic()
        self._first_request = len(self.server.requests)
        if self.disk:
            # Before what is there: the package may be a checkout that only this names.
            child, given = str(Path(__file__).with_name("child")), os.environ.get("PYTHONPATH")
            environ["PYTHONPATH"] = os.pathsep.join(filter(None, (child, given)))
            environ["FAULTY_DISK"] = json.dumps(self.disk)
        return self.start(*self.command, *more, **environ)

    def end(self, process: Any, *, killed_at: float | None = None) -> Attempt:
        """Wait for the end of an attempt, and write down what it left."""
        finished = process.ended()
        told = re.search(r"^failpoint .* at ([\d.]+)$", finished.stderr, re.MULTILINE)
        ended_at = killed_at or (float(told[1]) if told else time.monotonic())
        self._settle()
        committed = self.committed_ranges()
        attempt = Attempt(
            finished.code,
            finished.stderr,
            self._started_at,
            ended_at,
            len(self.server.requests),
            committed,
            self._phase(sum(map(len, committed))),
        )
        self.attempts.append(attempt)
        return attempt

    def crash(self, failpoint: str, *more: object, **environ: str) -> Attempt:
        """Work up to a failpoint, which must be reached."""
        environ["PIPELINE_FAILPOINT"] = failpoint
        attempt = self.end(self.begin(*more, **environ))
        assert attempt.code == 137, (failpoint, attempt)
        return attempt

    def kill_after(self, seconds: float) -> Attempt:
        """Work, and be killed after so many seconds, unless the end comes first."""
        process = self.begin()
        return self.kill(process, self._started_at + seconds)

    def kill(self, process: Any, at: float) -> Attempt:
        """Kill an attempt at a moment."""
        while process.running and (left := at - time.monotonic()) > 0:
            time.sleep(min(left, 0.01))
        now = time.monotonic()
        if process.running:
            process.send(signal.SIGKILL)
        return self.end(process, killed_at=now)

    def resume(self, *more: object, **environ: str) -> Attempt:
        """Work to the end, which must be a good one."""
        attempt = self.end(self.begin(*more, **environ))
        assert attempt.code == 0, attempt
        return attempt

    def check(self) -> int:
        """Hold the job against the oracle; gives the most inputs sent again after one kill."""
        assert self.found() == self.expected
        left = {path.name for path in self.run_directory.iterdir()}
        assert {name for name in left if not name.endswith(".tmp")} <= KEPT
        return self.sent_again()

    def forget(self) -> None:
        """Go back to where nothing was done."""
        for path in (self.output, self.run_directory):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self.attempts.clear()
        self.server.requests.clear()

    def found(self) -> dict[str, bytes]:
        """The files of the output, by name."""
        return files_of(self.output)

    def sent_again(self) -> int:
        """Check what was sent more than once; gives the most inputs sent again after one kill."""
        most, first = 0, 0
        forbidden: set[str] = set()
        seen: set[str] = set()
        for attempt in self.attempts:
            requests = self.server.requests[first : attempt.requests]
            texts = [text for request in requests for text in request.texts]
            assert len(texts) == len(set(texts)), "a text was sent twice by one process"
            assert not forbidden & set(texts), "a text was sent again whose answer was safe"
            most = max(most, len(seen & set(texts)))
            seen |= set(texts)
            for rows in attempt.committed:
                forbidden |= set(self.texts[rows.start : rows.stop])
            for request in requests:
                safe = attempt.ended_at - self.unsaved_s
                if request.answered_at is not None and request.answered_at < safe:
                    forbidden |= set(request.texts)
            first = attempt.requests
        return most

    def committed_ranges(self) -> list[range]:
        """The rows of each part that the log records."""
        parts = self.committed(self.output)
        return [range(part["first_row"], part["first_row"] + part["rows"]) for part in parts]

    def _settle(self) -> None:
        """Wait until the server has seen all that the process left in its sockets."""
        seen = -1
        while seen != len(self.server.requests):
            seen = len(self.server.requests)
            self.server.wait_for(lambda: self.server.in_flight == 0)
            time.sleep(0.01)

    def _phase(self, committed_rows: int) -> str:
        """Where a kill fell, judged by what it left."""
        if self.output.exists() or (committed_rows == 0 and self._complete()):
            return "finishing"
        if committed_rows == len(self.texts):
            return "assembling"
        if len(self.server.requests) == self._first_request:
            return "planning"
        parts = self.run_directory / "parts"
        found = list(parts.iterdir()) if parts.exists() else []
        unrecorded = len(found) > len(self.committed(self.output))
        return "committing" if unrecorded else "sending"

    def _complete(self) -> bool:
        state = LocalStore(self.output).load()
        return state is not None and state.complete is not None


def files_of(output: Path) -> dict[str, bytes]:
    """The files of an output by name; a file is named by nothing."""
    if output.is_dir():
        return {path.name: path.read_bytes() for path in sorted(output.iterdir())}
    return {"": output.read_bytes()}


@pytest.fixture
def server(lasting_server):
    """One server for all, so that an undisturbed run is needed only once for each kind of job."""
    lasting_server.reset()
    return lasting_server


# What is labelled: rows as narrow as a review, or so wide that 512 of them are a chunk.
NARROW_ROWS, WIDE_ROWS, WIDE_BYTES = 10_000, 1_200, 1 << 15

_undisturbed: dict[tuple[Any, ...], tuple[dict[str, bytes], float]] = {}


@pytest.fixture
def job(server, start, committed, write_csv, tmp_path):
    """Make a job; one of its kind is done undisturbed, for its bytes and the time it takes."""

    def make(
        form: str = "csv",
        out: str = "out.parquet",
        *,
        batch_size: int = 32,
        rows: int | None = None,
        delay_s: float = 0.01,
    ) -> Job:
        rows = rows or (NARROW_ROWS if form == "csv" else WIDE_ROWS)
        texts = [f"review number {i}" for i in range(rows)]
        source = tmp_path / "in.parquet"
        if form == "csv":
            source = write_csv("in.csv", texts)
        else:
            body = pa.array([chr(97 + i % 26) * WIDE_BYTES for i in range(rows)])
            pq.write_table(pa.table({"text": texts, "body": body}), source, row_group_size=300)
        server.script = lambda _: server.reply(delay_s=delay_s)
        command = ("run", source, "--endpoint", server.url, "--batch-size", batch_size)
        command += ("--concurrency", 8, "-o")
        kind = (form, out, batch_size, rows)
        if kind not in _undisturbed:
            plain = tmp_path / "undisturbed" / out
            plain.parent.mkdir()
            began = time.monotonic()
            finished = start(*command, plain).ended()
            assert finished.code == 0, finished.stderr
            _undisturbed[kind] = files_of(plain), time.monotonic() - began
            server.requests.clear()
        return Job(
            server, start, committed, (*command, tmp_path / out), tmp_path / out, texts,
            batch_size, *_undisturbed[kind],
        )  # fmt: skip

    return make


@pytest.fixture
def watch():
    """Wait for a condition on files, or for the end of a process, without a promise which."""

    def wait(process: Any, condition: Any) -> None:
        pause = threading.Event()
        while process.running and not condition():
            pause.wait(0.001)

    return wait
