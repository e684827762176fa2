"""The harness itself: right answers come back, and time is virtual."""

from __future__ import annotations

import asyncio
import time


async def test_a_pool_labels_what_the_server_answers(kit):
    texts = kit.texts(10)
    async with kit.serve() as server, kit.pool(server) as running:
        assert await running.label(texts) == kit.right(texts)
        assert len(server.requests) == 3
        assert running.answered == 10
        assert set(running.saved) == {kit.key_of(text) for text in texts}


async def test_time_is_virtual_and_exact(kit):
    """An hour passes in an instant, and side by side sleeps do not add up."""
    real, began = time.monotonic(), kit.now()
    await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(1800))
    assert 3600 <= kit.now() - began < 3600.01
    assert time.monotonic() - real < 60


async def test_threads_are_waited_for_in_earnest(kit):
    began = kit.now()
    async with asyncio.timeout(1.0):
        await asyncio.to_thread(time.sleep, 0.01)
    assert kit.now() - began < 0.1
