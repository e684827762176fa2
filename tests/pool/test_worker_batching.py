"""Batches: every input exactly once, however it is cut, split or given back.

Inputs of equal length keep their order; the others are in batches of similar length.
"""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pipeline.pool.batching
from pipeline.outcomes import RowError
from pipeline.pool.batching import Batch, Batcher, BatchSize, Job
from pipeline.pool.lengths import size_bytes


class OneSize(Batcher):
    """A batcher whose takers all have the same size, as those of one server."""

    def __init__(self, batch_size, most_overtaking):
        super().__init__(most_overtaking)
        self.size = BatchSize(batch_size)

    async def take(self):
        return await super().take(self.size)

    def take_now(self, size=None):
        return super().take_now(size or self.size)


TEXTS = st.text(st.sampled_from("aé😀"), max_size=12)
ITEMS = TEXTS | st.tuples(TEXTS, TEXTS)


def job_of(items):
    """A job that keeps its outcomes."""
    outcomes = [None] * len(items)

    def arrived(places, some, _revision):
        for place, outcome in zip(places, some, strict=True):
            assert outcomes[place] is None
            outcomes[place] = outcome
        return True

    job = Job(items, arrived)
    job.outcomes = outcomes
    return job


def numbered(sizes):
    """Jobs of so many distinct items of equal length."""
    start = 0
    jobs = []
    for size in sizes:
        jobs.append(job_of([f"{i:03d}" for i in range(start, start + size)]))
        start += size
    return jobs


@given(item=ITEMS)
def test_the_size_of_an_input_is_its_bytes_in_utf_8(item):
    texts = [item] if isinstance(item, str) else item
    assert size_bytes(item) == sum(len(text.encode()) for text in texts)


async def test_a_batch_that_is_full_by_its_bytes_does_not_wait(monkeypatch):
    """Few large texts fill a request long before there are `batch_size` of them."""
    monkeypatch.setattr(pipeline.pool.batching, "MAX_REQUEST_BYTES", 100)
    batcher = OneSize(32, 8)
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
        batcher, jobs = OneSize(batch_size, 8), numbered(sizes)
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
        batcher = OneSize(batch_size, 8)
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
        batcher, at, turn = OneSize(batch_size, 8), 0, 0
        while at < len(items):
            cut = cuts[turn % len(cuts)]
            batcher.put(job_of(items[at : at + cut]))
            at, turn = at + cut, turn + 1
        batcher.close()
        taken = []
        while (batch := await batcher.take()) is not None:
            taken += batch.items
            assert len(batch) == 1 or sum(map(size_bytes, batch.items)) <= 40
        assert sorted(taken) == items

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.pool.batching, "MAX_REQUEST_BYTES", 40)
        kit.run(main)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_halves_and_parts(sizes):
    """Halves are the batch, in order, none empty; parts are its single inputs."""
    jobs = numbered(sizes)
    batch = Batch(tuple((job, range(len(job.items))) for job in jobs))
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
    batch = Batch(tuple((job, range(len(job.items))) for job in jobs))

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
    batcher = OneSize(4, 8)
    (job,) = numbered([6])
    batcher.put(job)
    first = await batcher.take()
    taking = asyncio.create_task(batcher.take())
    await asyncio.sleep(1)
    assert not taking.done()
    batcher.flush()
    second = await taking
    assert (first.items, second.items) == (["000", "001", "002", "003"], ["004", "005"])


async def test_a_flush_lets_out_no_more_than_what_waited_then():
    batcher = OneSize(4, 8)
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


def texts_of(lengths, start=0):
    """Distinct texts of so many characters, beside the six of their number."""
    return [f"{i:06d}" + "x" * length for i, length in enumerate(lengths, start)]


LENGTHS = st.lists(st.integers(0, 30), max_size=40)
FLOW = st.one_of(
    st.tuples(st.just("put"), LENGTHS),
    st.tuples(st.just("take"), st.integers(1, 9)),
    st.tuples(st.just("flush"), st.none()),
    st.tuples(st.just("refused"), st.integers(1, 12)),
    st.tuples(st.just("answered"), st.integers(1, 12)),
    st.tuples(st.just("size"), st.integers(1, 12)),
)


@settings(max_examples=300, deadline=None)
@given(
    batch_size=st.integers(1, 12),
    overtaking=st.integers(2, 8),
    flow=st.lists(FLOW, max_size=30),
    room=st.sampled_from([60, 1_900_000]),
)
@example(  # what completes a batch of the window before is cut short
    batch_size=1,
    overtaking=2,
    flow=[
        ("put", [0] * 14),
        ("size", 9),
        ("put", [0, 0, 13, 10, 0, 0, 1, 8, 9, 9, *[8] * 5, 0, 0, 0, *[8] * 4]),
    ],
    room=60,
)
def test_no_more_batches_than_stated_overtake_an_input(batch_size, overtaking, flow, room):
    """Whatever comes when, in whatever sizes it is taken, and though bytes cut a batch short."""
    batcher, items, waiting, overtaken = OneSize(batch_size, overtaking), [], set(), {}

    def take(most):
        for _ in range(most):
            if (batch := batcher.take_now()) is None:
                return
            assert len(batch) == 1 or batch.size_bytes <= room
            numbers = {int(item[:6]) for item in batch.items}
            assert len(numbers) == len(batch)
            assert numbers <= waiting
            waiting.difference_update(numbers)
            for older in waiting:
                if older < max(numbers):
                    overtaken[older] = overtaken.get(older, 0) + 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.pool.batching, "MAX_REQUEST_BYTES", room)
        for step, value in flow:
            match step:
                case "put":
                    some = texts_of(value, len(items))
                    waiting |= set(range(len(items), len(items) + len(some)))
                    items += some
                    batcher.put(job_of(some))
                case "take":
                    take(value)
                case "flush":
                    batcher.flush()
                case "size":
                    batcher.size.now = value
                case _:
                    getattr(batcher.size, step)(value)
        batcher.close()
        take(len(items))
    assert not waiting
    assert not batcher.waiting
    assert max(overtaken.values(), default=0) <= overtaking


@settings(max_examples=150, deadline=None)
@given(chunks=st.lists(LENGTHS, max_size=8), batch_size=st.integers(1, 12), eager=st.booleans())
def test_lengths_change_nothing_about_the_number_of_requests(chunks, batch_size, eager):
    """Only the last batch is not full, whether batches are taken at once or at the end."""
    batcher, sizes = OneSize(batch_size, 4), []

    def take():
        while (batch := batcher.take_now()) is not None:
            sizes.append(len(batch))

    count = 0
    for lengths in chunks:
        batcher.put(job_of(texts_of(lengths, count)))
        count += len(lengths)
        if eager:
            take()
    batcher.close()
    take()
    assert sum(sizes) == count
    assert all(size == batch_size for size in sizes[:-1])


def test_texts_of_one_length_go_in_the_order_of_the_table():
    batcher = OneSize(8, 4)
    for start in range(0, 300, 50):
        batcher.put(job_of(texts_of([5] * 50, start)))
    batcher.close()
    taken = []
    while (batch := batcher.take_now()) is not None:
        taken += batch.items
    assert taken == texts_of([5] * 300)


def test_what_is_left_over_are_the_newest_inputs():
    """An old one that waited for others to come would keep its chunk from its commit."""
    batcher, items = OneSize(8, 16), texts_of([7 * i % 30 for i in range(30)])
    batcher.put(job_of(items))
    taken = []
    while (batch := batcher.take_now()) is not None:
        taken += batch.items
    assert sorted(taken) == items[:24]


def test_a_batch_of_two_windows_is_of_similar_length_too():
    """Takers of another size than the window was sorted for leave some of it over."""
    batcher = OneSize(4, 6)
    for start in range(0, 48, 24):
        batcher.put(job_of(texts_of([7 * i % 24 for i in range(24)], start)))
    batches = []
    for size in (4, 5, 5, 7, 8):
        batcher.size.now = size
        batches.append(batcher.take_now())
    assert [len(batch) for batch in batches] == [4, 5, 5, 7, 8]
    lengths = [[len(item) - 6 for item in batch.items] for batch in batches]
    left_over = set(range(24)) - {length for each in lengths[:4] for length in each}
    assert len(left_over) == 3
    assert left_over < set(lengths[4])
    assert max(lengths[4]) - min(lengths[4]) < 8 + max(left_over) - min(left_over)


def test_smaller_batches_than_a_window_was_sorted_for_go_by_length_to_its_end():
    batcher, items = OneSize(16, 8), texts_of([37 * i % 128 for i in range(128)])
    batcher.put(job_of(items))
    batches = [batcher.take_now()]
    batcher.size.now = 4
    while (batch := batcher.take_now()) is not None:
        batches.append(batch)
    assert sorted(item for batch in batches for item in batch.items) == items
    spreads = [max(map(len, batch.items)) - min(map(len, batch.items)) for batch in batches]
    # Of 28 texts in a window of 7 batches, those of a batch are a seventh of all lengths.
    assert max(spreads) < 128 / 7 + 16


def test_short_and_long_batches_go_in_turn():
    """Any few of them stand for all."""
    batcher = OneSize(4, 64)
    batcher.put(job_of(texts_of([37 * i % 256 for i in range(256)])))
    means = [sum(map(len, batcher.take_now().items)) / 4 - 6 for _ in range(64)]
    for start in range(56):
        assert abs(sum(means[start : start + 8]) / 8 - 127.5) < 24


def test_a_batch_that_has_become_due_is_handed_out_when_another_is_finished():
    """A search, or a refusal, makes batches smaller while takers wait for full ones."""

    async def go():
        batcher = OneSize(8, 4)
        batcher.put(job_of(texts_of([1] * 12)))
        first = await batcher.take()
        taking = asyncio.create_task(batcher.take())
        await asyncio.sleep(0)
        batcher.size.now = 4
        batcher.finished()
        assert len(first) == 8
        async with asyncio.timeout(5):
            assert len(await taking) == 4

    asyncio.run(go())


async def test_a_batch_that_a_cancelled_taker_was_given_is_the_next():
    batcher = OneSize(2, 4)
    takers = [asyncio.create_task(batcher.take()) for _ in range(3)]
    await asyncio.sleep(0)
    batcher.put(job_of(["a", "bbbb", "c", "dddd"]))
    takers[0].cancel()
    await asyncio.wait(takers[:1])
    assert takers[0].cancelled()
    async with asyncio.timeout(1):
        batches = [(await taker).items for taker in takers[1:]]
    assert batches == [["bbbb", "dddd"], ["a", "c"]]
    assert batcher.outstanding == 2
    assert not batcher.waiting


class CountedSize(BatchSize):
    """A size that counts how often it is looked at."""

    looks = 0

    @property
    def now(self):
        self.looks += 1
        return self._now

    @now.setter
    def now(self, size):
        self._now = size


async def looks_of(takers):
    """How often the size is looked at while so many wait and inputs come one by one."""
    batcher, size = Batcher(4), CountedSize(64)
    waiting = [asyncio.create_task(batcher.take(size)) for _ in range(takers)]
    await asyncio.sleep(0)
    size.looks = 0
    for i in range(100):
        batcher.put(job_of([f"{i}"]))
    looks = size.looks
    assert batcher.outstanding == 1
    batcher.close()
    assert sum(batch is not None for batch in await asyncio.gather(*waiting)) == 2
    return looks


async def test_inputs_cost_no_more_where_thousands_wait_for_them():
    """A pool that asks faster than its input comes has all its workers waiting for batches."""
    few, many = await looks_of(10), await looks_of(1_000)
    assert 100 <= many <= few


async def test_servers_are_served_in_the_order_in_which_their_workers_came():
    batcher, large, small = Batcher(4), BatchSize(2), BatchSize(1)
    sizes = [large, small, small, large]
    takers = [asyncio.create_task(batcher.take(size)) for size in sizes]
    await asyncio.sleep(0)
    batcher.put(job_of(["a"]))
    assert (await takers[1]).items == ["a"]
    batcher.put(job_of(["b", "c", "d", "e", "f"]))
    batches = [(await takers[i]).items for i in (0, 2, 3)]
    assert batches == [["b", "c"], ["d"], ["e", "f"]]
