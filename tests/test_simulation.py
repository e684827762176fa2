"""The simulation of benchmarks/simulate.py at small size: order, memory, rates, and losses."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def small():
    """Fifty workers, and everything else divided by as much; no plots."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import questions
    import simulation

    yield questions.Size(by=20, stretch_s=12.0, warm_s=5.0), simulation.simulate, questions
    sys.path.remove(str(ROOT / "benchmarks"))


def committed(small, *, since=5.0, **changes):
    size, simulate, _ = small
    setup = size.setup(**changes)
    seen = simulate(setup, since + 15.0)
    return seen.committed_per_s(since) / setup.driver.rows_per_s(setup.texts)


def test_ranges_are_faster_than_order_where_a_worker_is_slow(small):
    """With 2% of workers ten times as slow; with enough memory ranges lose nothing to them."""
    size, _, questions = small
    held = {"held_bytes": 64 * questions.MIB // size.by}
    ranges = committed(small, since=15.0, slow=0.02, **held)
    assert committed(small, since=15.0, slow=0.02, in_order=True, **held) < 0.7 * ranges
    assert committed(small, slow=0.02) >= 0.9


def test_memory_bounds_what_is_in_flight(small):
    """64 MiB between reading and commit are not enough for 8,000 requests of a second."""
    size, simulate, questions = small
    less = {"held_bytes": 64 * questions.MIB // size.by, "window_batches": 16_000 // size.by}
    setup = size.setup(latency_s=1.5, **less)
    assert simulate(setup, 15.0).answered_per_s(5.0) < 0.6 * setup.driver.rows_per_s(32)
    assert committed(small, latency_s=1.5) >= 0.85


def test_no_second_has_more_than_the_stated_rate_allows(small):
    size, simulate, _ = small
    rate = 100.0
    world = simulate(size.setup(settings={"rate": rate}), 15.0).world
    assert rate * 0.98 <= world.worst_second(5.0) <= 1.05 * rate + 2


def test_a_node_that_dies_costs_what_it_had_in_flight(small):
    size, simulate, _ = small
    setup = size.setup(fails_s=300.0)
    seen = simulate(setup, 45.0)
    assert seen.world.lost
    assert 0 < seen.world.repeated <= seen.world.lost * 2 * setup.per_worker * setup.texts
    assert seen.answered_per_s(30.0) >= 0.9 * setup.driver.rows_per_s(32)


def test_a_node_that_wakes_in_time_costs_nothing(small):
    size, simulate, _ = small
    world = simulate(size.setup(fails_s=300.0, frozen_s=5.0), 30.0).world
    assert (world.lost, world.repeated) == (0, 0)


def test_a_cold_start_costs_a_handful_of_requests(small):
    size, simulate, questions = small
    cold = questions.Cold(questions.Replicas(800, 1.0), 30.0)
    simulate(size.setup(endpoint=lambda: cold, full_at_once=False), 40.0)
    assert 0 < cold.refused <= 20
