"""The adaptive limit (fault 21), by scenarios as data, in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pool.concurrency import QUEUE_FLOOR, AdaptiveLimit

pytestmark = pytest.mark.fault(21)

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Endpoint:
    """A model of a server: latency and overload by how many requests are in it."""

    latency_s: Callable[[int, float], float]
    overloads: Callable[[int, float], bool] = lambda _n, _t: False
    inside: int = 0
    peak: int = 0
    refused: int = 0
    served: int = 0


@dataclass
class Scenario:
    """`limit` is the range of the mean limit in the second half; `served` per second, at least."""

    name: str
    make: Callable[[], Endpoint]
    limit: tuple[float, float]
    served_per_s: float
    refused_share: float = 0.0
    most: int = 64
    seconds: float = 40.0


def queue_of(workers, service_s):
    """So many requests are worked on at once, the others queue without bound."""
    return lambda inside, _: service_s * max(1.0, inside / workers)


def jittered(latency_s, share):
    chance = random.Random(3)
    return lambda _n, _t: latency_s * (1 + share * (2 * chance.random() - 1))


SCENARIOS = [
    Scenario("no limit", lambda: Endpoint(lambda _n, _t: 0.1), (60, 64), 550),
    Scenario("jitter of half", lambda: Endpoint(jittered(0.1, 0.5)), (60, 64), 500),
    Scenario("slow but wide", lambda: Endpoint(lambda _n, _t: 2.0), (30, 64), 10),
    Scenario("knee at 32", lambda: Endpoint(queue_of(32, 0.1)), (32, 64), 300),
    Scenario("knee at 4", lambda: Endpoint(queue_of(4, 0.05)), (8, 24), 75),
    Scenario("single-threaded, unbounded queue", lambda: Endpoint(queue_of(1, 0.05)), (1, 20), 19),
    Scenario(
        "refuses above 20", lambda: Endpoint(lambda _n, _t: 0.1, lambda n, _: n > 20),
        (10, 21), 110, refused_share=0.1,
    ),
    Scenario(
        "refuses above 1", lambda: Endpoint(lambda _n, _t: 0.1, lambda n, _: n > 1),
        (1, 3), 5, refused_share=0.55,
    ),
    Scenario(
        "drops to 5 after 10 s",
        lambda: Endpoint(lambda _n, _t: 0.1, lambda n, t: n > (40 if t < 10 else 5)),
        (3, 8), 50, refused_share=0.1,
    ),
    Scenario(
        "recovers after 10 s",
        lambda: Endpoint(lambda _n, _t: 0.1, lambda n, t: t < 10 and n > 2),
        (40, 64), 250, refused_share=0.1,
    ),
    Scenario("most is 1", lambda: Endpoint(lambda _n, _t: 0.1), (1, 1), 9, most=1),
]  # fmt: skip


async def simulate(kit, scenario):
    """Workers as the pool's use the limit against the endpoint; gives it and the limits seen."""
    endpoint = scenario.make()
    limit = AdaptiveLimit(scenario.most, kit.LoopClock())
    began = kit.now()
    limits = []

    async def work():
        while (at := kit.now() - began) < scenario.seconds:
            await limit.acquire()
            try:
                endpoint.inside += 1
                endpoint.peak = max(endpoint.peak, endpoint.inside)
                assert 1 <= limit.in_flight <= scenario.most
                at = kit.now() - began
                if endpoint.overloads(endpoint.inside, at):
                    await asyncio.sleep(0.02)
                    endpoint.refused += 1
                    limit.overloaded()
                else:
                    seconds = endpoint.latency_s(endpoint.inside, at)
                    await asyncio.sleep(seconds)
                    endpoint.served += 1
                    limit.succeeded(seconds)
                if at > scenario.seconds / 2:
                    limits.append(limit.limit)
                assert 1 <= limit.limit <= scenario.most
            finally:
                endpoint.inside -= 1
                limit.release()

    await asyncio.gather(*(work() for _ in range(scenario.most)))
    assert limit.in_flight == 0
    return endpoint, limits


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_limit_follows_the_endpoint(kit, scenario):
    """Row 21: ranges of the limit, of what is served and of what is refused."""
    endpoint, limits = kit.run(lambda: simulate(kit, scenario))
    mean = sum(limits) / len(limits)
    assert scenario.limit[0] <= mean <= scenario.limit[1]
    assert endpoint.served >= scenario.served_per_s * scenario.seconds
    assert endpoint.refused <= scenario.refused_share * (endpoint.served + endpoint.refused)
    assert endpoint.peak <= scenario.most


EVENTS = st.one_of(
    st.tuples(st.just("succeeded"), st.floats(0, 100)),
    st.tuples(st.just("overloaded"), st.just(0)),
    st.tuples(st.just("acquire"), st.just(0)),
    st.tuples(st.just("release"), st.just(0)),
    st.tuples(st.just("cancel"), st.just(0)),
    st.tuples(st.just("sleep"), st.floats(0, 10)),
    st.tuples(st.just("cap"), st.integers(-1, 40)),
)


@settings(max_examples=60, deadline=None)
@given(most=st.integers(1, 40), events=st.lists(EVENTS, max_size=150))
def test_whatever_happens_the_limit_stays_within_its_bounds(kit, most, events):  # noqa: C901
    """Never below 1, never above the maximum, and no permit is lost or made."""

    async def main():  # noqa: C901  (one branch for each kind of event)
        limit = AdaptiveLimit(most, kit.LoopClock())
        ceiling, holders, waiting = most, 0, []
        for name, value in events:
            if name == "acquire":
                waiting.append(asyncio.create_task(limit.acquire()))
            elif name == "release" and holders:
                holders -= 1
                limit.release()
            elif name == "cancel" and waiting:
                waiting.pop().cancel()
            elif name == "sleep":
                await asyncio.sleep(value)
            elif name == "cap":
                ceiling = max(1, min(ceiling, value))
                limit.cap(value)
            elif name in ("succeeded", "overloaded"):
                getattr(limit, name)(*([value] if name == "succeeded" else []))
            for _ in range(3):
                await asyncio.sleep(0)
            holders += sum(task.done() and not task.cancelled() for task in waiting)
            waiting = [task for task in waiting if not task.done()]
            assert 1 <= limit.limit <= ceiling
            assert limit.in_flight == holders
        for _ in range(1000):
            if not holders and not waiting:
                break
            if holders:
                holders -= 1
                limit.release()
            for _ in range(3):
                await asyncio.sleep(0)
            holders += sum(task.done() and not task.cancelled() for task in waiting)
            waiting = [task for task in waiting if not task.done()]
        assert limit.in_flight == holders == len(waiting) == 0

    kit.run(main)


async def test_permits_are_given_first_come_first_served(kit):
    limit = AdaptiveLimit(1, kit.LoopClock())
    await limit.acquire()
    order = []

    async def wait(name):
        await limit.acquire()
        order.append(name)
        limit.release()

    tasks = [asyncio.create_task(wait(name)) for name in range(5)]
    await asyncio.sleep(0)
    limit.release()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_a_worker_is_let_in_only_where_its_request_would_find_a_permit(kit):
    """What takes a batch and then waits holds one of a size that a search has left behind."""
    limit = AdaptiveLimit(2, kit.LoopClock())
    limit.aim(2)
    inside, go = [], asyncio.Event()

    async def work(name):
        await limit.room()
        inside.append(name)
        await go.wait()
        if name == 1:
            limit.leave()  # there was nothing to take
            return
        await limit.acquire()
        await asyncio.sleep(0)
        limit.release()

    tasks = [asyncio.create_task(work(name)) for name in range(5)]
    await asyncio.sleep(0.1)
    assert inside == [0, 1]
    await limit.acquire()  # a retry needs no room
    limit.release()
    tasks[2].cancel()
    limit.aim(3)
    await asyncio.sleep(0.1)
    assert inside == [0, 1, 3]
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert inside == [0, 1, 3, 4]
    assert limit.in_flight == 0
    await limit.room()


async def test_a_worker_that_sent_nothing_is_let_in_again(kit):
    """Its batch had been passed on, say; nobody waits for what it left."""
    limit = AdaptiveLimit(1, kit.LoopClock())
    turns = []

    async def work(name):
        for _ in range(3):
            await limit.room()
            turns.append(name)
            await asyncio.sleep(0)
        limit.leave()

    await asyncio.wait_for(asyncio.gather(work("a"), work("b")), 5)
    assert sorted(turns) == ["a"] * 3 + ["b"] * 3


async def test_answers_that_come_together_raise_the_limit_as_answers_one_by_one_do(kit):
    """By a quarter a round trip, though the first of them leaves the limit not used to the full."""
    clock = kit.LoopClock()
    limit = AdaptiveLimit(32, clock)
    answered: list[asyncio.Future[None]] = []

    async def work():
        while True:
            await limit.room()
            await limit.acquire()
            answered.append(asyncio.get_running_loop().create_future())
            await answered[-1]
            limit.succeeded(0.1)
            limit.release()

    workers = [asyncio.create_task(work()) for _ in range(32)]
    limits = []
    for _ in range(12):
        await asyncio.sleep(0.1)
        limits.append(limit.limit)
        together, answered[:] = answered[:], []
        for each in together:
            each.set_result(None)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert limits[:5] == [4, 5, 6, 7, 9]
    assert limits[-1] == 32


async def test_no_more_batches_are_held_than_requests_may_be_in_flight(kit):
    held = []

    def script(_asked):
        held.append(running.pool._batcher.outstanding)
        return kit.Said(after_s=0.05)

    async with (
        kit.serve(script) as server,
        kit.pool(server, dialect="hf", batch_size="auto", concurrency=32) as running,
    ):
        await running.label([f"text {i}" for i in range(4_000)])
    assert max(held) <= server.peak < 32


async def test_latency_alone_never_lowers_below_the_floor(kit):
    """Below it, a busy client inflates what it measures: no evidence against the server."""
    scenario = Scenario("", lambda: Endpoint(queue_of(1, 0.05)), (0, 0), 0, seconds=60)
    _, limits = await simulate(kit, scenario)
    assert min(limits) >= int(QUEUE_FLOOR) - 1


@pytest.mark.parametrize(
    ("aim", "burst", "then"),
    [
        pytest.param(16, 16, 11, id="the limit was used to the full"),
        pytest.param(64, 10, 7, id="what was in flight counts, not what might have been"),
    ],
)
async def test_an_overload_among_answers_that_come_together_lowers_the_limit_by_a_step(
    kit, aim, burst, then
):
    """The last one of a burst finds nothing else in flight, but others were."""
    limit = AdaptiveLimit(64, kit.LoopClock())
    limit.aim(aim)
    for _ in range(burst):
        await limit.acquire()
    await asyncio.sleep(0.1)
    for _ in range(burst - 1):
        limit.succeeded(0.1)
        limit.release()
    limit.overloaded()
    assert limit.limit == then
    limit.release()
    assert limit.limit == then
