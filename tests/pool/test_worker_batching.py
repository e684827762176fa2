"""Batches: every input exactly once and in order, however it is cut, split or given back."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.pool.batching
from pipeline.outcomes import RowError
from pipeline.pool.batching import Batch, Batcher, Job, size_bytes

TEXTS = st.text(st.sampled_from("aé😀"), max_size=12)
ITEMS = TEXTS | st.tuples(TEXTS, TEXTS)


def job_of(items):
    """A job that keeps its outcomes."""
    outcomes = [None] * len(items)

    def arrived(first, some, _revision):
        outcomes[first : first + len(some)] = some
        return True

    job = Job(items, arrived)
    job.outcomes = outcomes
    return job


def numbered(sizes):
    """Jobs of so many distinct items."""
    start = 0
    jobs = []
    for size in sizes:
        jobs.append(job_of([f"{i}" for i in range(start, start + size)]))
        start += size
    return jobs


@given(item=ITEMS)
def test_the_size_of_an_input_is_never_underestimated(item):
    real = len(item.encode()) if isinstance(item, str) else sum(len(p.encode()) for p in item)
    assert real <= size_bytes(item) <= 4 * real or (real == 0 == size_bytes(item))


async def test_a_batch_that_is_full_by_its_bytes_does_not_wait(monkeypatch):
    """Few large texts fill a request long before there are `batch_size` of them."""
    monkeypatch.setattr(pipeline.pool.batching, "MAX_REQUEST_BYTES", 100)
    batcher = Batcher(32)
    batcher.put(job_of(["x" * 40] * 2))
    first = asyncio.ensure_future(batcher.take())
    await asyncio.sleep(0)
    assert not first.done()
    batcher.put(job_of(["x" * 40] * 4))
    assert len(await first) == 2
    assert len(await batcher.take()) == 2
    last = asyncio.ensure_future(batcher.take())
    await asyncio.sleep(0)
    assert not last.done()
    batcher.close()
    assert len(await last) == 2


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), max_size=8), batch_size=st.integers(1, 12))
def test_every_item_once_in_order_and_batches_full(kit, sizes, batch_size):
    """The number of batches is the ceiling of items over batch size, whatever the jobs."""

    async def main():
        batcher, jobs = Batcher(batch_size), numbered(sizes)
        for job in jobs:
            batcher.put(job)
        batcher.close()
        batches = []
        while (batch := await batcher.take()) is not None:
            batches.append(batch)
        assert [i for batch in batches for i in batch.items] == [i for j in jobs for i in j.items]
        assert len(batches) == math.ceil(sum(sizes) / batch_size)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert batcher.outstanding == len(batches)
        for batch in batches:
            batch.settle([((item, 1.0),) for item in batch.items], None)
            batcher.finished()
        assert batcher.outstanding == 0
        for job in jobs:
            assert job.outcomes == [((item, 1.0),) for item in job.items]
            assert job.done.is_set() or not job.items

    kit.run(main)


STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 9)),
    st.tuples(st.just("take"), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("cancel at once"), st.integers(0, 9)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("turn"), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(batch_size=st.integers(1, 6), steps=st.lists(STEPS, max_size=40))
def test_no_item_is_lost_or_doubled_by_cancelled_takers(kit, batch_size, steps):
    """A taker that is cancelled puts its batch back, also just after it was handed out."""

    async def main():
        batcher = Batcher(batch_size)
        jobs, takers = [], []
        for name, value in steps:
            if name == "put":
                start = sum(len(job.items) for job in jobs)
                job = job_of([f"{i}" for i in range(start, start + value)])
                jobs.append(job)
                batcher.put(job)
            elif name == "take":
                takers.append(asyncio.create_task(batcher.take()))
            elif name == "cancel" and takers:
                takers[value % len(takers)].cancel()
            elif name == "cancel at once" and takers:
                batcher.flush()
                takers[value % len(takers)].cancel()
            elif name == "flush":
                batcher.flush()
            else:
                await asyncio.sleep(0)
        batcher.close()
        rest = [asyncio.create_task(batcher.take()) for _ in range(200)]
        done = await asyncio.gather(*takers, *rest, return_exceptions=True)
        batches = [batch for batch in done if isinstance(batch, Batch)]
        taken = [item for batch in batches for item in batch.items]
        assert sorted(taken, key=int) == [item for job in jobs for item in job.items]
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert batcher.outstanding == len(batches)

    kit.run(main)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=30),
    batch_size=st.integers(1, 12),
    cuts=st.lists(st.integers(1, 10), min_size=1, max_size=5),
)
def test_no_batch_exceeds_the_bytes_of_a_request(kit, lengths, batch_size, cuts):
    """But an input that is too large on its own, which goes alone."""

    async def main():
        items = [f"{i:03d}" + "x" * length for i, length in enumerate(lengths)]
        batcher, at, turn = Batcher(batch_size), 0, 0
        while at < len(items):
            cut = cuts[turn % len(cuts)]
            batcher.put(job_of(items[at : at + cut]))
            at, turn = at + cut, turn + 1
        batcher.close()
        taken = []
        while (batch := await batcher.take()) is not None:
            taken += batch.items
            assert len(batch) == 1 or sum(map(size_bytes, batch.items)) <= 40
        assert taken == items

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.pool.batching, "MAX_REQUEST_BYTES", 40)
        kit.run(main)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_halves_and_parts(sizes):
    """Halves are the batch, in order, none empty; parts are its single inputs."""
    jobs = numbered(sizes)
    batch = Batch(tuple((job, 0, len(job.items)) for job in jobs))
    assert len(batch) == sum(sizes)
    for position, item in enumerate(batch.items):
        assert batch.part(position).items == [item]
    with pytest.raises(IndexError):
        batch.part(len(batch))
    queue, leaves = [batch], []
    while queue:
        one = queue.pop(0)
        if len(one) == 1:
            leaves += one.items
            continue
        left, right = one.halves()
        assert left.items + right.items == one.items
        assert len(left) == len(one) // 2
        assert len(right) >= len(left) > 0
        queue[:0] = [left, right]
    assert leaves == batch.items


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), failing=st.sets(st.integers(0, 20))
)
def test_outcomes_are_handed_to_the_right_jobs(sizes, failing):
    """Settled by halves in any order, each job ends with its own outcomes and is done then."""
    jobs = numbered(sizes)
    batch = Batch(tuple((job, 0, len(job.items)) for job in jobs))

    def outcome(item):
        return RowError(item) if int(item) in failing else ((item, 0.5),)

    parts = [batch] if len(batch) == 1 else list(batch.halves())
    for part in reversed(parts):
        assert not all(job.done.is_set() for job in jobs)
        assert part.settle([outcome(item) for item in part.items], None)
    for job in jobs:
        assert job.done.is_set()
        assert job.outcomes == [outcome(item) for item in job.items]


async def test_what_is_left_waits_for_more_and_goes_out_when_flushed():
    batcher = Batcher(4)
    (job,) = numbered([6])
    batcher.put(job)
    first = await batcher.take()
    taking = asyncio.create_task(batcher.take())
    await asyncio.sleep(1)
    assert not taking.done()
    batcher.flush()
    second = await taking
    assert (first.items, second.items) == (["0", "1", "2", "3"], ["4", "5"])


async def test_a_flush_lets_out_no_more_than_what_waited_then():
    batcher = Batcher(4)
    one, two = numbered([2, 3])
    batcher.put(one)
    batcher.flush()
    assert (await batcher.take()).items == one.items
    batcher.put(two)
    taking = asyncio.create_task(batcher.take())
    await asyncio.sleep(1)
    assert not taking.done()
    batcher.close()
    assert (await taking).items == two.items
