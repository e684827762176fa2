"""SIGKILL at random moments (fault 1): nothing lost, nothing twice."""

from __future__ import annotations

import random
import time
from collections import Counter

import pytest

pytestmark = [pytest.mark.fault(1), pytest.mark.slow, pytest.mark.timeout(300)]

KILLS = 26
SHAPES = [
    ("csv", "out.parquet", 32),
    ("csv", "out", 32),
    ("parquet", "out.parquet", 1),
    ("parquet", "out", 32),
]


def kill_somewhere(work, watch, chance):
    """Kill one attempt: at any time of its life, some requests later, or once all is committed."""
    kind = chance.choices(["any time", "requests", "last part"], [6, 3, 2])[0]
    if kind == "any time":
        return work.kill_after(chance.uniform(0.0, 1.05 * work.seconds))
    process = work.begin()
    if kind == "requests":
        most = len(work.texts) // work.batch_size
        more = len(work.server.requests) + 1 + chance.randrange(max(1, most // 3))
        watch(process, lambda: len(work.server.requests) >= more)
        return work.kill(process, time.monotonic() + chance.uniform(0.0, 0.05))
    rows = len(work.texts)
    watch(process, lambda: sum(part["rows"] for part in work.committed(work.output)) == rows)
    return work.kill(process, time.monotonic() + chance.uniform(0.0, 0.1))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("form", "out", "batch_size"), SHAPES)
def test_killed_at_any_moment(job, watch, record_property, form, out, batch_size, seed):
    """Runs are killed one to five times each, and each one ends as if nothing had happened."""
    chance = random.Random(f"{form} {out} {batch_size} {seed}")
    phases: Counter[str] = Counter()
    most = 0
    while phases.total() < KILLS:
        work = job(form, out, batch_size=batch_size)
        for _ in range(chance.choice([1, 2, 3, 4, 5])):
            attempt = kill_somewhere(work, watch, chance)
            if attempt.code == 0:
                break
            assert attempt.code == -9, attempt
            phases[attempt.phase] += 1
        work.resume()
        most = max(most, work.check())
        work.forget()
    record_property("tries", phases.total())
    record_property("sent again", most)
    for phase, count in phases.items():
        record_property(f"phase {phase}", count)


@pytest.mark.parametrize("phase", ["planning", "sending", "committing", "assembling", "finishing"])
def test_killed_in_each_phase(job, watch, record_property, phase):
    """Each phase is hit for certain: a kill is tried, a little later each time, until it falls."""
    work = job(rows=9_000)
    rows = len(work.texts)
    begun = {
        "planning": lambda: work.run_directory.exists() or True,
        "sending": lambda: len(work.server.requests) > 2,
        "committing": lambda: bool(list(work.run_directory.glob("parts/*.tmp"))),
        "assembling": lambda: (
            sum(part["rows"] for part in work.committed(work.output)) == rows
            or (work.run_directory / "assembled.tmp").exists()
        ),
        "finishing": work.output.exists,
    }[phase]
    for tries in range(1, 11):
        process = work.begin()
        watch(process, begun)
        attempt = work.kill(process, time.monotonic() + 0.002 * (tries - 1))
        if attempt.code == -9 and attempt.phase == phase:
            break
        work.resume()
        work.check()
        work.forget()
    else:
        pytest.fail(f"no kill fell into the phase {phase}")
    work.resume()
    record_property("tries", tries)
    record_property("sent again", work.check())
