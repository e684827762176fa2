"""Simulate 10^9 rows with up to 1,000 workers in virtual time, and write SIMULATION.md.

    python benchmarks/simulate.py [--quick] [--only NAME ...] [--engine processes] [--code CHECKOUT]

Needs node for the real runs that the simulation is checked against. `--quick` divides everything by
20, leaves the real runs out, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import page
from questions import QUESTIONS, Answered, Size
from real_runs import CASES, KILLED, Outcome, calibrated, measured, predicted
from sizes import index_sizes, journal_size, log_on_disk, log_sizes

HERE = Path(__file__).resolve().parent


def _asked(name: str, size: Size) -> Answered:
    question = next(each for each in QUESTIONS if each.__name__ == name)
    Answered.draws = size.by == 1
    began = time.process_time()
    found = question(size)
    print(f"{found.title}: {found.virtual_s:,.0f} s of virtual time, {found.requests:,} requests, "
          f"{time.process_time() - began:,.0f} s of CPU", flush=True)  # fmt: skip
    return found


def answers(size: Size, names: list[str]) -> list[Answered]:
    """Answer questions, two at a time, each in a process of its own."""
    with ProcessPoolExecutor(2, get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(partial(_asked, size=size), names))


def validated(size: Size, engine: str, code: Path | None) -> list[tuple[str, Outcome, Outcome]]:
    """Run each case in earnest and in virtual time."""
    found = []
    for case in (*CASES, KILLED) if engine == "processes" else CASES:
        real = measured(case, engine, code=code)
        virtual = predicted(case, size.driver)
        print(f"{case.name}: measured {real}, predicted {virtual}", flush=True)
        found.append((case.name, real, virtual))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--only", nargs="+", choices=[each.__name__ for each in QUESTIONS])
    parser.add_argument("--engine", choices=["local", "processes"], default="local")
    parser.add_argument("--code", type=Path, help="the checkout that the real runs are of")
    options = parser.parse_args()
    names = options.only or [each.__name__ for each in QUESTIONS]
    began = time.monotonic()
    if options.quick or options.only:
        size = Size(by=20, stretch_s=10.0, warm_s=5.0) if options.quick else Size()
        for found in answers(size, names):
            print(f"\n## {found.title}\n\n" + "\n\n".join(found.paragraphs))
        return
    driver = calibrated(options.engine, code=options.code)
    print(f"the driver: {driver}", flush=True)
    size = Size()
    checks = validated(Size(driver=driver), options.engine, options.code)
    with tempfile.TemporaryDirectory(prefix="classify-simulation-") as folder:
        log = log_sizes((2_500, 10_000, 40_000))
        disk = log_on_disk(1_000, Path(folder))
        index = index_sizes((2, 4, 8, 16), Path(folder))
        journal = journal_size(2_000_000, Path(folder))
    found = answers(size, names)
    machine = (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}"
    )
    sizes = page.sizes(log, disk, index, journal, found)
    text = page.written(
        machine, options.engine, driver, checks, found, sizes, time.monotonic() - began
    )
    (HERE / "SIMULATION.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.nice(5)
    sys.path.insert(0, str(HERE))
    main()
