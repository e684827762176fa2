"""Which worker has the fewest requests, and what it takes to know."""

from __future__ import annotations

import random
import sys

import pytest

from pipeline.engines.loads import Loads


def test_it_finds_what_a_look_at_all_of_them_finds():
    chance, loads, known = random.Random(1), Loads(), {}
    for _ in range(20_000):
        worker = chance.randrange(12)
        if chance.random() < 0.2:
            known.pop(worker, None)
            loads.remove(worker)
        else:
            known[worker] = chance.randrange(30)
            loads.put(worker, known[worker])
        assert (worker in loads) == (worker in known)
        first = loads.first()
        assert (first is None) == (not known)
        if known:
            assert known[first] == min(known.values())


def test_all_with_the_same_have_their_turn():
    loads = Loads()
    for worker in "abc":
        loads.put(worker, 0)
    turns = []
    for number in range(6):
        turns.append(first := loads.first())
        loads.put(first, number // 3 + 1)
    assert turns == list("abcabc")


@pytest.mark.parametrize("workers", [10, 1000])
def test_a_choice_takes_as_much_with_a_thousand_as_with_ten(workers):
    """Counted in lines of code, which no other load of the machine changes."""
    loads, lines = Loads(), 0
    for worker in range(workers):
        loads.put(worker, 0)

    def count(_frame, event, _arg):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        for number in range(5_000):
            worker = loads.first()
            loads.put(worker, number // workers + 1)
    finally:
        sys.settrace(before)
    assert lines / 5_000 < 20
