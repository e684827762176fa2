"""SIGKILL on a run whose state and output are on an object storage that misbehaves (fault 32).

Its storage drops answers, refuses and stalls. Nothing is lost, and nothing is paid twice but what
was in flight, or answered so shortly before the kill that its PUT could not be done.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.store import open_store, output_at
from pipeline.system import remote
from tests.fault_proxy import FaultProxy
from tests.faults.conftest import Job

pytestmark = [pytest.mark.fault(32), pytest.mark.timeout(1_200)]

ROWS = 3_000


@dataclass
class FarJob(Job):
    """A job whose state is at an address, and whose output may be."""

    run_dir: str = ""
    proxy: Any = None

    @property
    def unsaved_s(self) -> float:
        # An answer may have to wait for the PUT that is under way, and then takes one itself.
        return 0.5 + 2 * self.proxy.longest_put_s

    def committed_ranges(self) -> list[range]:
        state = open_store(self.output, self.run_dir).load()
        parts = () if state is None else state.parts
        return [range(part.first_row, part.end_row) for part in parts]

    def found(self) -> dict[str, bytes]:
        files = {}
        for file in output_at(self.output).files():
            with file.open() as opened:
                files[file.name.removeprefix(str(self.output)).lstrip("/")] = opened.read()
        return files

    def check(self) -> int:
        assert self.found() == self.expected
        store = open_store(self.output, self.run_dir)
        assert not store._parts()
        assert not store.holds_answers()
        return self.sent_again()

    def _phase(self, committed_rows: int) -> str:
        return "finishing" if committed_rows == len(self.texts) else "sending"


@pytest.fixture
def proxy(storage, monkeypatch):
    made = FaultProxy(storage.url)
    made.faults.dropped, made.faults.stalled, made.faults.stall_s = 0.05, 0.03, 0.3
    made.faults.status_503 = made.faults.status_409 = 0.03
    for name, value in storage.environment(made.url).items():
        monkeypatch.setenv(name, value)
    remote.store_at.cache_clear()
    yield made
    remote.store_at.cache_clear()
    made.close()


@pytest.fixture
def far_job(job, proxy, storage):
    bucket = storage.bucket()
    made = 0

    def make(out: str, *, far: bool) -> FarJob:
        nonlocal made
        made += 1
        near = job(out=out, rows=ROWS)
        near.server.requests.clear()
        run_dir = f"{bucket.url}/run-{made}"
        place: Any = f"{bucket.url}/{made}/{out}" if far else near.output.with_name(f"{made}-{out}")
        command = (*near.command[:-1], place, "--run-dir", run_dir)
        return FarJob(
            near.server, near.start, near.committed, command, place, near.texts,
            near.batch_size, near.expected, near.seconds, run_dir=run_dir, proxy=proxy,
        )  # fmt: skip

    return make


def kill_again_and_again(make, out, *, far, kills, seed, record_property):
    chance, done, most = random.Random(f"{out} {far} {seed}"), 0, 0
    while done < kills:
        work = make(out, far=far)
        for _ in range(chance.choice([1, 2, 3])):
            process = work.begin()
            more = len(work.server.requests) + chance.randrange(60)
            while process.running and len(work.server.requests) < more:
                time.sleep(0.005)
            attempt = work.kill(process, time.monotonic() + chance.uniform(0.0, 0.6))
            if attempt.code == 0:
                break
            assert attempt.code == -9, attempt
            done += 1
        work.resume()
        most = max(most, work.check())
    record_property("tries", done)
    record_property("sent again", most)


@pytest.mark.parametrize(
    ("out", "far"), [("out.parquet", False), ("out", True)], ids=["a local file", "far files"]
)
def test_killed_a_few_times(far_job, record_property, out, far):
    kill_again_and_again(far_job, out, far=far, kills=2, seed=0, record_property=record_property)


@pytest.mark.slow
@pytest.mark.parametrize("far", [False, True], ids=["local output", "output there"])
@pytest.mark.parametrize("out", ["out.parquet", "out"])
def test_killed_many_times(far_job, record_property, out, far):
    kill_again_and_again(far_job, out, far=far, kills=25, seed=1, record_property=record_property)
