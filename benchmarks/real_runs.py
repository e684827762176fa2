"""Real runs at small size, which the simulation has to predict: `classify run` against server.mjs.

What the driver's core takes is measured first, with an endpoint that answers at once; the
simulation is given that, and nothing of the runs that it predicts.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import world
from measuring import Server, classify, serving
from simulation import ROW_TEXT_BYTES, Driver, Setup, simulate
from virtual import constants
from world import Replicas

if TYPE_CHECKING:
    from simulation import Seen

# Where a rate is taken, as shares of all rows.
FROM, TO = 0.3, 0.9


@dataclass(frozen=True)
class Case:
    """A run: so many workers with so many requests each, and how long one takes."""

    workers: int
    per_worker: int
    texts: int
    latency_s: float
    rows: int
    rate: float | None = None
    killed: bool = False

    @property
    def name(self) -> str:
        rate = f", rate {self.rate:g}" if self.rate else ""
        kill = ", one killed" if self.killed else ""
        return (
            f"{self.workers} x {self.per_worker} requests of {self.texts} texts, "
            f"{self.latency_s:g} s{rate}{kill}"
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    rows/s between two shares of all rows, seconds from the first request to the last answer, texts
    that the endpoint saw beyond the rows, and requests in the worst second.
    """

    rows_per_s: float
    seconds: float
    again: int
    worst_second: int


CASES = (
    Case(2, 8, 32, 0.1, 40_000),
    Case(4, 8, 32, 0.1, 60_000),
    Case(8, 8, 32, 0.1, 120_000),
    Case(8, 8, 32, 0.5, 40_000),
    Case(8, 64, 32, 0.1, 500_000),
    Case(4, 250, 128, 3.0, 300_000),
    Case(4, 8, 8, 0.1, 4_000, rate=50.0),
)
# Only where workers are processes.
KILLED = Case(4, 8, 32, 0.1, 60_000, killed=True)


class _Watch(threading.Thread):
    """Asks an endpoint what it has seen, ten times a second; `seen` has times and texts."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server, self._over = server, threading.Event()
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            stats = self._server.stats()
            self.seen.append((time.monotonic(), stats["items"]))

    def end(self) -> dict[str, Any]:
        self._over.set()
        self.join()
        return self._server.stats()


def _rate(seen: list[tuple[float, int]], rows: int) -> float:
    some = [(at, n) for at, n in seen if FROM * rows <= n <= TO * rows]
    if len(some) < 2:
        return 0.0
    return (some[-1][1] - some[0][1]) / (some[-1][0] - some[0][0])


def measured(case: Case, engine: str, *, code: Path | None = None) -> Outcome:
    """Run a case in earnest."""
    with tempfile.TemporaryDirectory(prefix="classify-simulation-") as directory:
        table, output = Path(directory, "in.parquet"), Path(directory, "out.parquet")
        filler = "x" * ROW_TEXT_BYTES
        texts = [f"{i} {filler}"[:ROW_TEXT_BYTES] for i in range(case.rows)]
        pq.write_table(pa.table({"id": range(case.rows), "text": texts}), table)
        del texts
        command = classify(
            "run", table, "--output", output, "--dialect", "hf", "--exact-scores",
            "--batch-size", case.texts, "--concurrency", case.workers * case.per_worker,
        )  # fmt: skip
        if case.rate:
            command += ["--rate", f"{case.rate:g}"]
        if engine == "processes":
            command += ["--engine", "processes", "--workers", str(case.workers)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CLASSIFY_")}
        if code is not None:
            environment["PYTHONPATH"] = str(code)
        with serving(latency_ms=round(1000 * case.latency_s)) as server:
            command += ["--endpoint", server.url]
            watch = _Watch(server)
            watch.start()
            run = subprocess.Popen(
                command, env=environment, cwd=directory,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
            if case.killed:
                _kill_one(run.pid, watch, case)
            _, said = run.communicate(timeout=300)
            stats = watch.end()
            if run.returncode:
                raise RuntimeError(f"{case.name} ended with {run.returncode}: {said[-500:]!r}")
        seconds = (stats["last_at"] - stats["first_at"]) / 1000 + case.latency_s
        again = stats["items"] - case.rows
        return Outcome(_rate(watch.seen, case.rows), seconds, again, stats["most_in_one_second"])


def _kill_one(parent: int, watch: _Watch, case: Case) -> None:
    """Kill a worker of a run once it is half done."""
    while not watch.seen or watch.seen[-1][1] < case.rows / 2:
        time.sleep(0.05)
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    os.kill(int(children[0]), 9)


def predicted(case: Case, driver: Driver) -> Outcome:
    """Simulate the same, with what the driver's core was measured to take."""
    endpoint = lambda: Replicas(100_000, case.latency_s, spread=0.0)  # noqa: E731
    settings = {"rate": case.rate} if case.rate else {}
    setup = Setup(
        workers=case.workers, per_worker=case.per_worker, texts=case.texts, driver=driver,
        endpoint=endpoint, full_at_once=False, settings=settings, rows=case.rows,
        storage_s=lambda _now: 0.003,
    )  # fmt: skip
    # Between processes of one machine.
    with constants((world, "WIRE_S", (0.0001, 0.0003)), (world, "STALLED", 0.0)):
        seen: Seen = simulate(setup, 300.0)
    arrived = seen.world.arrivals
    rows = [(at, (i + 1) * case.texts) for i, at in enumerate(arrived)]
    seconds = arrived[-1] - arrived[0] + case.latency_s
    # A process that is killed is noticed at once, with all that it had in flight.
    again = case.per_worker * case.texts if case.killed else 0
    return Outcome(_rate(rows, case.rows), seconds, again, seen.world.worst_second())


def calibrated(engine: str, *, code: Path | None = None) -> Driver:
    """Measure what the driver takes for a request and for a row: an endpoint that answers at once.

    Two numbers of texts a request give two equations.
    """
    row_us = {}
    for texts, rows in ((16, 250_000), (128, 600_000)):
        case = Case(2, 32, texts, 0.0, rows)
        row_us[texts] = 1 / measured(case, engine, code=code).rows_per_s
    request_s = (row_us[16] - row_us[128]) / (1 / 16 - 1 / 128)
    return Driver(request_s, row_us[128] - request_s / 128)
