"""Ending early: in order, and by cancellation at any moment (faults 8 and 9)."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from pipeline.errors import Interrupted, StoppedEarly
from pipeline.responses import Keys, ResponseStores
from pipeline.rows import Dedup

REASON = Interrupted("Stopped by SIGTERM.", signal_number=15)


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.1, 0.25, 0.33, 1.0])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.fault(8)
async def test_stop_keeps_what_is_in_flight(kit, after_s, dialect):
    """Nothing more is sent; every answer that was under way is saved; `ask` raises the reason."""
    async with kit.serve(latency_s=0.1) as server:
        async with kit.pool(server, concurrency=8, dialect=dialect) as running:
            asking = asyncio.create_task(running.label(kit.texts(4000)))
            await asyncio.sleep(after_s)
            sent = len(server.posts)
            running.stop.ask(REASON)
            with pytest.raises(Interrupted) as raised:
                await asking
            assert raised.value is REASON
            with pytest.raises(Interrupted):
                await running.ask(["later"])
        assert len(server.posts) <= sent + 8
        answered = {item for asked in server.posts[dialect == "auto" :] for item in asked.items}
        assert set(running.saved) == {kit.key_of(item) for item in answered}
        assert all(outcome is not None for outcome, _ in running.saved.values())
    assert kit.nothing_left() == []


@pytest.mark.fault(8)
async def test_stop_ends_workers_that_wait(kit):
    """Waiting for a pause, a backoff, the gate or input is ended at once."""
    down = kit.Said(503, {"error": "loading", "estimated_time": 500})
    for script, settings in (
        (lambda _: kit.Said(429, b"slow", {"Retry-After": "500"}), {}),
        (lambda _: down, {}),
        (lambda _: kit.Said(500, b"x"), {}),
        (None, {"rate": 0.01}),
    ):
        async with kit.serve(script) as server:
            async with kit.pool(server, **settings) as running:
                asking = asyncio.create_task(running.label(kit.texts(40)))
                await asyncio.sleep(3.0)
                stopped_at = kit.now()
                running.stop.ask(REASON)
                with pytest.raises(Interrupted):
                    await asking
            assert kit.now() - stopped_at < 0.1
    assert kit.nothing_left() == []


@pytest.mark.fault(8)
async def test_the_grace_bounds_the_wait_for_answers(kit):
    async with kit.serve(lambda _: kit.Said(how="never")) as server:
        async with kit.pool(server, grace_s=3, timeout_s=100) as running:
            asking = asyncio.create_task(running.label(kit.texts(40)))
            await asyncio.sleep(1)
            running.stop.ask(REASON)
            with pytest.raises(Interrupted):
                await asking
            stopped_at = kit.now()
        assert 2.9 <= kit.now() - stopped_at < 3.5
    assert kit.nothing_left() == []


@pytest.mark.fault(8)
async def test_the_first_reason_counts(kit):
    async with kit.serve(latency_s=1) as server, kit.pool(server) as running:
        asking = asyncio.create_task(running.label(["a"]))
        await asyncio.sleep(0.1)
        running.stop.ask(REASON)
        running.stop.ask(StoppedEarly("later"))
        with pytest.raises(Interrupted):
            await asking
        assert running.stop.reason is REASON


@pytest.mark.fault(8)
async def test_failures_after_stop_are_no_news(kit):
    """What was in flight may fail; it is neither retried nor reported in place of the reason."""
    async with kit.serve(lambda _: kit.Said(500, b"x", after_s=1)) as server:
        async with kit.pool(server) as running:
            asking = asyncio.create_task(running.label(kit.texts(40)))
            await asyncio.sleep(0.5)
            running.stop.ask(REASON)
            with pytest.raises(Interrupted):
                await asking
        assert len(server.requests) == 1


async def test_a_pool_without_work_ends(kit):
    async with kit.serve() as server:
        async with kit.pool(server, dialect="auto") as running:
            assert await running.label([]) == []
        assert server.requests == []
    assert kit.nothing_left() == []


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.parametrize("answers", ["well", "throttled", "loading", "poison"])
@pytest.mark.fault(9)
async def test_cancellation_at_any_moment_leaves_nothing(kit, tmp_path, dialect, answers):
    """Row 9: CancelledError goes through, the session is closed, no task and no error is left.

    Whatever turn of the loop it comes in.
    """

    def script(asked):
        bad = {
            "throttled": kit.Said(429, b"slow", {"Retry-After": "1"}),
            "loading": kit.Said(503, {"error": "loading", "estimated_time": 1}),
            "poison": kit.Said(400, b"bad row"),
        }.get(answers)
        return bad if asked.number % 3 == 1 else None

    keys = Keys({})
    clients = []

    async def work(server, path):
        async with kit.pool(server, concurrency=3, dialect=dialect) as running:
            clients.append(running.client)
            opened = Dedup(
                partial(ResponseStores, path),
                lambda _: None,
                running.drift,
                running.allowance,
                running.stop,
            )
            async with opened as dedup:
                texts = kit.texts(24)
                running.pool.demand.expect()
                running.pool.demand.expect()
                running.pool.demand.end()
                async with asyncio.TaskGroup() as group:
                    for chunk in (texts[:14], texts[8:]):
                        group.create_task(
                            dedup.outcomes(chunk, keys.of(chunk), running.pool.ask, rows=14)
                        )

    async with kit.serve(script, latency_s=0.0) as server:
        finished = 0
        for turn, count in enumerate([*range(0, 60, 3), *range(60, 500, 37)]):
            task = asyncio.create_task(work(server, tmp_path / f"store{turn}"))
            await turns(count)
            task.cancel()
            try:
                await task
                finished += 1
            except asyncio.CancelledError:
                assert task.cancelled()
            mine = [
                one for one in asyncio.all_tasks()
                if one.get_name().startswith(("worker", "group-commit"))
            ]  # fmt: skip
            assert mine == []
            assert all(client._wire.closed for client in clients)
        assert len(clients) > 20
    assert kit.nothing_left() == []


@pytest.mark.fault(9)
async def test_a_cancelled_chunk_does_not_disturb_the_others(kit):
    async with kit.serve(latency_s=0.1) as server, kit.pool(server) as running:
        running.pool.demand.expect()
        running.pool.demand.expect()
        running.pool.demand.end()
        texts = kit.texts(40)
        one, two = (asyncio.create_task(running.answers(part)) for part in (texts[:20], texts[20:]))
        await asyncio.sleep(0.15)
        one.cancel()
        assert await two == kit.right(texts[20:])
        with pytest.raises(asyncio.CancelledError):
            await one


@pytest.mark.parametrize("after_s", [0.05, 0.45])
async def test_an_error_inside_ends_the_pool_with_it(kit, after_s):
    """An exception of the caller drains the pool and goes through."""
    async with kit.serve(latency_s=0.1) as server:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  (what happens inside is the test)
            async with kit.pool(server) as running:
                asking = asyncio.create_task(running.label(kit.texts(400)))
                await asyncio.sleep(after_s)
                raise ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            await asking
        assert len(running.saved) == sum(len(asked.items) for asked in server.requests)
    assert kit.nothing_left() == []
