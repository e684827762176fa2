"""Several addresses of one model: each takes what it can; one that fails takes nothing along."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from pipeline.errors import EndpointRefused, SettingsError, StoppedEarly


def urls(*servers):
    return [server.url for server in servers]


def texts_of(server):
    return Counter(item for asked in server.requests for item in asked.items)


@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_each_takes_its_share_by_what_it_does(kit, dialect):
    texts = kit.texts(4_000)
    async with kit.serve(latency_s=0.1) as fast, kit.serve(latency_s=0.4) as slow:
        async with kit.pool(urls(fast, slow), model="org/m", dialect=dialect, concurrency=8,
                            batch_size=8) as running:  # fmt: skip
            assert await running.label(texts) == kit.right(texts)
        share = len(fast.requests) / (len(fast.requests) + len(slow.requests))
        assert 0.75 < share < 0.85
        # Together no more in flight than stated.
        assert max(told.peak_in_flight for told in running.told) <= 8


async def test_the_rate_is_that_of_all(kit):
    texts = kit.texts(400)
    async with kit.serve() as one, kit.serve() as other:
        began = kit.now()
        async with kit.pool(urls(one, other), model="m", rate=20, batch_size=1) as running:
            await running.label(texts)
        assert 400 / 20 <= kit.now() - began < 1.1 * 400 / 20


@pytest.mark.parametrize("status", [503, 500, 401, 404, "refused"])
async def test_one_that_is_down_takes_nothing_with_it(kit, status):
    texts = kit.texts(4_000)
    async with kit.serve(latency_s=0.2) as well, kit.serve(lambda _: kit.Said(status)) as ill:
        addresses = urls(well, ill)
        if status == "refused":
            await ill.stop()
        async with kit.pool(addresses, model="m", max_outage_s=20) as running:
            began = kit.now()
            assert await running.label(texts) == kit.right(texts)
            # It did not wait for the other one.
            assert kit.now() - began < 1.1 * 4_000 / 4 / 2 * 0.2
        assert not set(texts) & set(texts_of(ill))
        assert any(f"{ill.url.rstrip('/')}" in said for said in running.notices)


async def test_one_that_dies_gives_back_what_it_held_and_comes_back(kit):
    texts = kit.texts(8_000)
    async with kit.serve(latency_s=0.2) as stays, kit.serve(latency_s=0.2) as dies:
        async with kit.pool(urls(stays, dies), model="m", max_outage_s=30) as running:
            asking = asyncio.create_task(running.label(texts))
            await asyncio.sleep(5)
            before = len(dies.requests)
            assert before > 20
            await dies.stop()
            await asyncio.sleep(100)
            assert len(dies.requests) <= before + 4
            await dies.start()
            assert await asking == kit.right(texts)
        assert len(dies.requests) > before + 20
        said = [each for each in running.notices if dies.url.rstrip("/") in each]
        assert ["left out" in each for each in said] == [True, False]
        assert "works again" in said[1]


async def test_one_that_loads_joins_when_it_is_ready(kit):
    texts = kit.texts(6_000)
    ready = asyncio.Event()

    def loading(_asked):
        if not ready.is_set():
            return kit.Said(503, {"error": "Model m is currently loading", "estimated_time": 20.0})
        return kit.Said()

    async with kit.serve(latency_s=0.2) as well, kit.serve(loading, latency_s=0.2) as late:
        async with kit.pool(urls(well, late), model="m") as running:
            asking = asyncio.create_task(running.label(texts))
            await asyncio.sleep(20)
            assert len(late.requests) < 10
            ready.set()
            assert await asking == kit.right(texts)
        assert sum(texts_of(late)[text] for text in texts) > 400


async def test_another_model_is_left_out_and_named(kit):
    texts = kit.texts(400)

    def other(_asked):
        return kit.Said(headers={"x-sha": "beef" * 10})

    same = kit.Said(headers={"x-sha": "cafe" * 10})
    async with kit.serve(lambda _: same, latency_s=0.1) as one, kit.serve(other) as wrong:
        async with kit.pool(urls(one, wrong), model="m") as running:
            assert await running.label(texts) == kit.right(texts)
        (said,) = [each for each in running.notices if "another model" in each]
        assert "beef" in said
        assert "cafe" in said
        assert not (set(texts) & set(texts_of(one))) or not (set(texts) & set(texts_of(wrong)))


async def test_a_bad_row_is_found_on_whichever_server(kit):
    texts = kit.texts(400)
    bad = {texts[7], texts[200], texts[399]}

    def script(asked):
        if bad & set(asked.items):
            return kit.Said(400, {"error": "The size of tensor a (502) must match"})
        return kit.Said()

    async with (
        kit.serve(script, latency_s=0.1) as one,
        kit.serve(script, latency_s=0.1) as other,
        kit.pool(urls(one, other), model="m") as running,
    ):
        outcomes = await running.label(texts)
    right = kit.right(texts)
    for text, outcome, wanted in zip(texts, outcomes, right, strict=True):
        assert (outcome == wanted) is (text not in bad)


@pytest.mark.parametrize(("status", "ends"), [(401, EndpointRefused), (503, StoppedEarly)])
async def test_the_run_ends_with_the_last_one(kit, status, ends):
    def script(_asked):
        return kit.Said(status)

    async with kit.serve(script) as one, kit.serve(script) as other:
        with pytest.raises(ends):
            async with kit.pool(urls(one, other), model="m", max_outage_s=20) as running:
                await running.label(kit.texts(40))


async def test_max_requests_counts_all(kit):
    async with kit.serve() as one, kit.serve() as other:
        with pytest.raises(StoppedEarly, match="Sent 20 requests"):
            async with kit.pool(urls(one, other), model="m", max_requests=20) as running:
                await running.label(kit.texts(400))
        assert len(one.requests) + len(other.requests) == 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": ["http://a", "http://b"]}, "model"),
        ({"endpoint": ["http://a", "http://b"], "model": "m", "concurrency": 1}, "concurrency"),
        ({"endpoint": ["http://a", "hf"], "model": "m"}, "endpoint"),
        ({"endpoint": ["local"], "model": "m"}, "endpoint"),
        ({"endpoint": []}, "endpoint"),
    ],
)
def test_a_list_that_cannot_be_is_refused(kit, settings, words):
    with pytest.raises(SettingsError, match=words):
        kit.config(**settings)


@pytest.mark.parametrize("begins", [[503], [502, 502, 502, 502, 502, 502, 502]])
@pytest.mark.parametrize("then", [401, "page"])
async def test_one_that_loads_and_then_refuses_does_not_end_the_run(kit, begins, then):
    """A new address behind an ingress: 503 or 502 for a while, then 401, or a web page."""
    texts, said = kit.texts(4_000), iter(begins)

    def script(_asked):
        status = next(said, None)
        if status is not None:
            return kit.Said(status, {"error": "Model m is currently loading"})
        if then == "page":
            return kit.Said(403, "<html>Forbidden</html>", {"Content-Type": "text/html"})
        return kit.Said(401, {"error": "Invalid token"})

    async with kit.serve(latency_s=0.2) as well, kit.serve(script) as ill:
        async with kit.pool(urls(well, ill), model="m", max_outage_s=60) as running:
            assert await running.label(texts) == kit.right(texts)
        assert not set(texts) & set(texts_of(ill))


@pytest.mark.parametrize("status", [502, 504, 500, "reset"])
@pytest.mark.parametrize("at", [0, 17, 39])
async def test_a_text_that_fails_everywhere_is_found_everywhere(kit, status, at):
    """It is not passed on from one server to the next without end."""
    texts = kit.texts(40)
    bad = texts[at]

    def script(asked):
        if bad in asked.items:
            return kit.Said(how="reset") if status == "reset" else kit.Said(status)
        return kit.Said()

    async with (
        kit.serve(script, latency_s=0.1) as one,
        kit.serve(script, latency_s=0.1) as other,
        kit.pool(urls(one, other), model="m", max_outage_s=300) as running,
    ):
        outcomes = await asyncio.wait_for(running.label(texts), 600)
        assert len(one.requests) + len(other.requests) < 200
    for text, outcome, wanted in zip(texts, outcomes, kit.right(texts), strict=True):
        assert (outcome == wanted) is (text != bad)


async def test_one_that_is_told_to_wait_takes_no_more(kit):
    texts = kit.texts(400)

    def throttled(asked):
        return kit.Said(429, headers={"Retry-After": "300"}) if asked.number > 4 else kit.Said()

    async with kit.serve(latency_s=0.1) as well, kit.serve(throttled) as waits:
        async with kit.pool(urls(well, waits), model="m", concurrency=2) as running:
            began = kit.now()
            assert await running.label(texts) == kit.right(texts)
        assert kit.now() - began < 60


@pytest.mark.parametrize("dialect", ["single", "hf"])
async def test_the_limits_of_a_stated_dialect_are_those_of_each(kit, dialect):
    texts = kit.texts(1_000)
    async with kit.serve(latency_s=0.1) as one, kit.serve(latency_s=0.1) as other:
        settings = {"model": "m", "dialect": dialect, "concurrency": 16, "batch_size": "auto"}
        async with kit.pool(urls(one, other), **settings) as running:
            assert await running.label(texts) == kit.right(texts)
        if dialect == "single":
            assert max(each.in_flight for each in one.requests) == 8
