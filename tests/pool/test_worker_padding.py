"""Batches of similar length: what a server that pads its batches computes in vain."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from pipeline.pool.batching import Batcher, BatchSize, Job

CHUNK = 4_096


def texts(count):
    """Distinct texts whose words have the spread of real ones, of 6 bytes a word."""
    draw = random.Random(5)
    words = [min(480, round(draw.lognormvariate(math.log(37), 0.9))) for _ in range(count)]
    return [f"{i:05d} " + "abcde " * (count - 1) for i, count in enumerate(words)]


def padding(requests):
    """Padded bytes over real bytes."""
    lengths = [[len(text) for text in asked] for asked in requests]
    return sum(max(each) * len(each) for each in lengths) / sum(map(sum, lengths))


async def asked_of(kit, given, **settings):
    """The texts of each request of a run that reads chunks as the pool wants them."""
    async with kit.serve(latency_s=0.05) as server, kit.pool(server, **settings) as pool:
        asking = []
        for at in range(0, len(given), CHUNK):
            await pool.pool.demand.hungry()
            asking.append(asyncio.create_task(pool.ask(given[at : at + CHUNK])))
            await asyncio.sleep(0)
        pool.pool.demand.end()
        outcomes = [outcome for some in asking for outcome in await some]
    assert outcomes == kit.right(given)
    return [asked.items for asked in server.posts]


@pytest.mark.parametrize(
    ("concurrency", "batch_size", "most"),
    [(32, 32, 1.15), (32, 128, 1.15), (64, 32, 1.1), (4, 32, 1.75)],
    ids=["the defaults", "larger batches", "more in flight", "few in flight"],
)
async def test_little_of_a_batch_is_padding(kit, concurrency, batch_size, most):
    """The more batches may overtake an input, the closer are its neighbours in length."""
    given = texts(12_000)
    in_order = [given[at : at + batch_size] for at in range(0, len(given), batch_size)]
    assert padding(in_order) > 4.5
    requests = await asked_of(kit, given, concurrency=concurrency, batch_size=batch_size)
    assert sorted(text for asked in requests for text in asked) == given
    assert len(requests) == math.ceil(len(given) / batch_size)
    assert padding(requests) <= most


async def test_lengths_are_mixed_over_the_run(kit):
    """At any time batches of all lengths are under way: no slow stretch, no burst of long ones."""
    given = texts(12_000)
    requests = await asked_of(kit, given, concurrency=32, batch_size=32)
    longest = [max(map(len, asked)) for asked in requests]
    overall = sum(longest) / len(longest)
    for at in range(0, len(longest) - 32, 32):
        some = longest[at : at + 32]
        assert 0.6 * overall < sum(some) / len(some) < 1.5 * overall


@pytest.mark.parametrize(
    ("sizes", "least"),
    [((512, 256, 64), 1.12), ((512, 512, 256), 1.12), ((100, 32), 1.2)],
    ids=["multiples", "one smaller", "no multiples"],
)
def test_servers_that_take_other_sizes_share_what_goes_together(sizes, least):
    """However their turns fall, few odd pieces are left to the largest."""
    given, most = texts(100_000), 64
    batcher, takers = Batcher(most), [BatchSize(size) for size in sizes]
    for at in range(0, len(given), CHUNK):
        batcher.put(Job(given[at : at + CHUNK]))
    turns, requests, waits, oldest = random.Random(2), [], [True] * len(given), 0
    while oldest < 50_000:
        # The larger its batches are, the faster is a server, and the more turns it has.
        taker = takers[len(requests)] if len(requests) < len(takers) else None
        items = batcher.take_now(taker or turns.choices(takers, sizes)[0]).items
        requests.append(items)
        numbers = [int(text[:5]) for text in items]
        for number in numbers:
            waits[number] = False
        oldest = waits.index(True, oldest)
        assert max(numbers) - oldest < most * max(sizes)
    assert padding(requests) <= least
