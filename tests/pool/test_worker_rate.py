"""The promise of the rate (fault 20), and what 429s teach (row 21)."""

from __future__ import annotations

import asyncio
import random
import time

import pytest
from aiohttp import web

from pipeline.pool.turnstile import Turnstile
from pipeline.system.clock import Clock

pytestmark = pytest.mark.fault(20)


@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.parametrize("rate", [0.2, 0.5, 1, 3, 10, 50, 200])
async def test_no_second_holds_more_than_the_rate(kit, rate, dialect):
    """Every sliding window of a second holds at most 1.02 times the rate plus one.

    Seen from the server; at the start, after idle gaps, with retries, 429s and pauses. And no
    more requests are in flight than the concurrency.
    """
    chance = random.Random(5)

    def script(asked):
        draw = chance.random()
        if draw < 0.05:
            return kit.Said(500, b"boom")
        if draw < 0.07:
            return kit.Said(429, b"slow", {"Retry-After": "1"})
        return kit.Said(how="reset") if draw < 0.1 else None

    async with (
        kit.serve(script, latency_s=0.1) as server,
        kit.pool(server, rate=rate, batch_size=1, concurrency=8, dialect=dialect) as running,
    ):
        running.pool.demand.block(True)  # what is asked for goes out at once
        for turn in range(3):
            texts = [f"{turn} {i}" for i in range(max(5, min(int(2 * rate), 120)))]
            assert await running.ask(texts) == kit.right(texts)
            await asyncio.sleep(7.3)
        assert server.most_in_a_second() <= 1.02 * rate + 1
        assert server.peak <= 8


@pytest.mark.parametrize("rate", [5, 50])
async def test_the_rate_is_used_to_the_full(kit, rate):
    """The promise is not kept by being slow."""
    async with (
        kit.serve(latency_s=0.1) as server,
        kit.pool(server, rate=rate, batch_size=1, concurrency=32) as running,
    ):
        began = kit.now()
        await running.label(kit.texts(20 * rate))
        assert kit.now() - began <= 1.02 * 20 + 1


async def test_retries_take_a_token_too(kit):
    async with (
        kit.serve(lambda a: kit.Said(500, b"x") if a.number % 5 == 0 else None) as server,
        kit.pool(server, rate=10, batch_size=1) as running,
    ):
        await running.label(kit.texts(100))
        assert len(server.requests) > 110
        assert server.most_in_a_second() <= 1.02 * 10 + 1


@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.parametrize("most", [1, 3, 10])
async def test_max_requests_bounds_what_is_sent(kit, most, dialect):
    """All that the server gets counts, the question what it is too."""
    async with kit.serve() as server:
        with pytest.raises(Exception, match="max_requests") as stopped:
            async with kit.pool(server, max_requests=most, dialect=dialect) as running:
                await running.label(kit.texts(400))
        assert stopped.value.exit_code == 75
        assert len(server.posts) <= most  # asking what the server is costs nothing
        if dialect == "hf":
            assert len(running.saved) == 4 * most


def test_the_rate_in_real_time(kit):
    """The one test on the real clock: two seconds at 50 requests/s, with an idle gap."""
    arrivals = []

    async def answer(request):
        arrivals.append(time.monotonic())
        body = await request.json()
        return web.json_response([kit.labels_of(item)[:1] for item in body["inputs"]])

    async def main():
        app = web.Application()
        app.router.add_post("/", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        async with kit.pool(url, rate=50, batch_size=1, concurrency=16, clock=Clock()) as running:
            running.pool.demand.block(True)
            await running.ask([f"a {i}" for i in range(60)])
            await asyncio.sleep(0.3)
            await running.ask([f"b {i}" for i in range(40)])
        await runner.cleanup()

    asyncio.run(main(), debug=False)
    assert len(arrivals) == 100
    windows = [sum(at <= other < at + 1.0 for other in arrivals) for at in arrivals]
    assert max(windows) <= 1.02 * 50 + 1


async def test_a_pause_never_cuts_a_longer_one(kit):
    turnstile = Turnstile(None, kit.LoopClock())
    began = kit.now()
    turnstile.pause(10)
    turnstile.pause(2)
    assert await turnstile.pass_through(lambda: True)
    assert 10 <= kit.now() - began < 10.01


async def test_a_pause_that_grows_while_waiting_is_waited_for(kit):
    turnstile = Turnstile(10, kit.LoopClock())
    began = kit.now()
    turnstile.pause(5)
    waiting = asyncio.create_task(turnstile.pass_through(lambda: True))
    await asyncio.sleep(3)
    turnstile.pause(20)
    await waiting
    assert kit.now() - began >= 23


async def test_what_is_wanted_no_more_takes_no_token(kit):
    turnstile = Turnstile(1, kit.LoopClock())
    began = kit.now()
    assert not await turnstile.pass_through(lambda: False)
    assert await turnstile.pass_through(lambda: True)
    assert kit.now() - began < 0.01


def throttling(limit, seconds):
    """Send through a turnstile for so long to a server that admits so many in the last second.

    Gives the time of each request and whether it was throttled.
    """

    async def main(kit):
        turnstile = Turnstile(None, kit.LoopClock())
        admitted, log = [], []
        began = kit.now()
        while (at := kit.now() - began) < seconds:
            await turnstile.pass_through(lambda: True)
            now = kit.now()
            admitted[:] = [one for one in admitted if one > now - 1.0]
            if len(admitted) < limit(at):
                admitted.append(now)
                log.append((at, False))
            else:
                log.append((at, True))
                turnstile.throttled()
                turnstile.pause(0.25)
            await asyncio.sleep(0.004)
        return log

    return main


@pytest.mark.parametrize(
    ("limit", "seconds", "share_used", "share_throttled"),
    [
        pytest.param(lambda _: 100, 60, 0.85, 0.02, id="steady 100"),
        pytest.param(lambda _: 10, 60, 0.7, 0.05, id="steady 10"),
        pytest.param(lambda _: 2, 120, 0.4, 0.2, id="steady 2"),
        pytest.param(lambda s: 100 if s < 20 else 30, 80, 0.6, 0.035, id="drops to 30"),
        pytest.param(lambda s: 30 if s < 10 else 100, 160, 0.35, 0.03, id="rises to 100"),
    ],
)
def test_the_turnstile_learns_the_rate_of_the_server(
    kit, limit, seconds, share_used, share_throttled
):
    """Row 21 for the rate: near the limit, few 429s."""
    log = kit.run(lambda: throttling(limit, seconds)(kit))
    admitted = sum(not refused for _, refused in log)
    possible = sum(limit(second) for second in range(seconds))
    assert admitted >= share_used * possible
    assert len(log) - admitted <= share_throttled * len(log) + 5


@pytest.mark.parametrize("stated", [None, 50.0])
async def test_a_learned_rate_never_exceeds_the_stated_one(kit, stated):
    turnstile = Turnstile(stated, kit.LoopClock())
    for _ in range(50):
        await turnstile.pass_through(lambda: True)
    turnstile.throttled()
    for _ in range(200):
        await asyncio.sleep(30)
        await turnstile.pass_through(lambda: True)
        assert turnstile.rate is None or turnstile.rate > 0
        assert stated is None or turnstile.rate <= stated


@pytest.mark.parametrize("looks", [True, False])
async def test_the_stated_rate_outlives_what_a_429_taught(kit, looks):
    """Also once that is forgotten, and whoever looks at the rate in between."""
    turnstile = Turnstile(50.0, kit.LoopClock())
    for _ in range(100):
        await turnstile.pass_through(lambda: True)
    turnstile.throttled()
    for _ in range(120):
        await asyncio.sleep(1)
        if looks:
            assert turnstile.rate <= 50
    times = []
    for _ in range(200):
        await turnstile.pass_through(lambda: True)
        times.append(kit.now())
    assert max(sum(at <= other < at + 1.0 for other in times) for at in times) <= 1.02 * 50 + 1
