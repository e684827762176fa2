"""Outages and loading models (faults 13 and 14)."""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest

from pipeline.errors import Cause, Retryable, StoppedEarly
from pipeline.events import WaitEnded, Why
from pipeline.pool.budget import BUDGET_RESERVE, BUDGET_SHARE
from pipeline.pool.gate import PROBE_FIRST_S, PROBE_GROWTH, Gate

HTML = b"<html>503 Service Temporarily Unavailable</html>"
LOADING = {"error": "Model X is currently loading", "estimated_time": 20.0}


def most_requests(successes, concurrency, outage_s):
    """Successes, retry budget, what was in flight, and the probes.

    The budget is 20 and a fifth of the successes, and the reserve is granted once more when the
    gate opens. There is a probe at once, then after 0.5, 1, 2, ... 30 s at the earliest.
    """
    probes, at, wait_s = 2, 0.0, 0.5
    while at < outage_s:
        at += wait_s
        wait_s = min(2 * wait_s, 30.0)
        probes += 1
    return successes * (1 + BUDGET_SHARE) + 2 * BUDGET_RESERVE + 2 * concurrency + probes


@pytest.mark.parametrize("from_s", [0.0, 0.5], ids=["from-the-start", "in-the-middle"])
@pytest.mark.parametrize("lasts_s", [10.0, 300.0])
@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("status", [503, 500])
@pytest.mark.fault(13)
async def test_an_outage_is_outlasted(kit, from_s, lasts_s, concurrency, status):
    """Row 13: all rows are labelled, and retries do not multiply the outage."""
    texts = kit.texts(600)
    began = kit.now()

    def script(_):
        down = from_s <= kit.now() - began < from_s + lasts_s
        return kit.Said(status, HTML, {"Content-Type": "text/html"}) if down else None

    async with kit.serve(script, latency_s=0.05) as server:
        async with kit.pool(server, concurrency=concurrency) as running:
            assert await running.label(texts) == kit.right(texts)
        assert server.statuses.count(200) <= 150 + len(running.waits) + 1
        assert len(server.requests) <= most_requests(150, concurrency, lasts_s)
        recovered = [event for event in running.events if isinstance(event, WaitEnded)]
        # Short outages are outlasted by retries alone; the longest wait between two probes bounds
        # how late the end of a longer one is noticed.
        assert len(recovered) == 1 or (not recovered and lasts_s < 60)
        assert kit.now() - began <= from_s + lasts_s + 33 + 20


@pytest.mark.fault(13)
async def test_a_refused_connection_is_outlasted(kit):
    """Row 13: nobody listens for a while, then somebody does."""
    texts = kit.texts(200)
    async with kit.serve(latency_s=0.05) as server, kit.pool(server) as running:
        asking = asyncio.create_task(running.label(texts))
        await asyncio.sleep(0.3)
        await server.stop()
        await asyncio.sleep(20.0)
        before = len(server.requests)
        await server.start()
        assert await asking == kit.right(texts)
        assert 0 < before < 50
        assert running.causes.count("connection lost") <= 20 + 4 + 10


@pytest.mark.parametrize("kind", ["html", "refused", "timeout", "reset"])
@pytest.mark.parametrize("answered_before", [True, False])
@pytest.mark.parametrize("max_outage_s", [60.0, 600.0])
@pytest.mark.fault(13)
async def test_an_outage_for_good_stops_resumably(kit, kind, answered_before, max_outage_s):
    """Row 13: exit 75 within max_outage_s, and what was answered is kept.

    A server that never listened may be loading its model, so max_loading_s bounds that.
    """
    good = 10 if answered_before else 0
    how = {"html": kit.Said(503, HTML), "timeout": kit.Said(how="never")}
    bad = how.get(kind, kit.Said(how="reset"))

    def script(asked):
        return bad if asked.number >= good else None

    async with kit.serve(script) as server:
        if kind == "refused" and not answered_before:
            await server.stop()
        never_listened = kind == "refused" and not answered_before
        limit = "max_loading_s" if never_listened else "max_outage_s"
        limits = {"max_outage_s": 30.0, limit: max_outage_s}
        with pytest.raises(StoppedEarly, match=limit) as stopped:  # noqa: PT012  (what happens inside is the test)
            async with kit.pool(server, **limits, timeout_s=2) as running:
                asking = asyncio.create_task(running.label(kit.texts(4000)))
                if kind == "refused" and answered_before:
                    await asyncio.sleep(0.1)
                    await server.stop()
                began = kit.now()
                await asking
        # The budget of retries is spent before it is an outage.
        # The first failure may have come while the server was still closing.
        assert max_outage_s - 0.1 <= kit.now() - began <= max_outage_s + 60
        attempts = len(running.causes)
        assert attempts <= most_requests(len(running.saved) / 4, 4, max_outage_s)
    assert stopped.value.exit_code == 75
    right = {kit.key_of(text): (kit.outcome_of(text), None) for text in kit.texts(4000)}
    assert running.saved.items() <= right.items()
    answered = server.statuses.count(200)
    # Where the server goes away, answers on their way are lost with it.
    assert len(running.saved) == 4 * answered or (kind == "refused" and len(running.saved) > 0)


def a_cold_start(kit, ready_s, *, holds, body):
    """A model that loads for `ready_s`; with `holds`, wait-for-model is honoured."""
    began = kit.now()

    async def script(asked):
        left_s = ready_s - (kit.now() - began)
        if left_s <= 0:
            return None
        if holds and asked.headers.get("x-wait-for-model") == "true":
            await asyncio.sleep(left_s)
            return None
        return kit.Said(503, body)

    return script, began + ready_s


@pytest.mark.parametrize("holds", [True, False], ids=["wait-for-model-held", "ignored"])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
@pytest.mark.parametrize("body", [LOADING, {"error": "Model X is currently loading"}],
                         ids=["estimated", "no-estimate"])  # fmt: skip
@pytest.mark.fault(14)
async def test_a_cold_start_costs_a_handful_of_requests(kit, holds, dialect, body):
    """Row 14: at concurrency 64, at most 5 answers of 503, and no row fails."""
    texts = kit.texts(800)
    script, _ = a_cold_start(kit, 10.0, holds=holds, body=body)
    async with kit.serve(script, latency_s=0.05) as server:
        async with kit.pool(server, concurrency=64, dialect=dialect) as running:
            assert await running.label(texts) == kit.right(texts)
        assert server.statuses.count(503) <= 5
        assert len(server.posts) <= 200 + (dialect == "auto") + 5


@pytest.mark.fault(14)
async def test_all_workers_resume_within_a_round_trip_of_readiness(kit):
    """Row 14: where the server holds the probe, nobody waits longer than the probe."""
    texts = kit.texts(800)
    script, ready_at = a_cold_start(kit, 10.0, holds=True, body=LOADING)
    async with (
        kit.serve(script, latency_s=0.05) as server,
        kit.pool(server, concurrency=64) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        # The probe's answer is there one latency after readiness; its fellows start at once.
        fellows = [asked.at for asked in server.requests if asked.at > ready_at]
        assert min(fellows) <= ready_at + 0.05 + 0.01
        assert sum(at <= ready_at + 0.07 for at in fellows) >= 3


@pytest.mark.fault(14)
async def test_a_model_that_is_unloaded_in_the_middle(kit):
    """Row 14: later on, at most the requests in flight get a 503 beside the probes."""
    texts = kit.texts(2000)
    loading = kit.Said(503, LOADING)

    def script(_):
        return loading if 2.0 <= kit.now() - began < 12.0 else None

    async with kit.serve(script, latency_s=0.2) as server:
        began = kit.now()
        async with kit.pool(server, concurrency=16) as running:
            assert await running.label(texts) == kit.right(texts)
        assert server.statuses.count(503) <= 16 + 7


@pytest.mark.fault(14)
async def test_loading_without_end_stops_within_max_loading(kit):
    """Loading time counts against max_loading_s, and not against retries or outages."""
    async with kit.serve(lambda _: kit.Said(503, LOADING)) as server:
        began = kit.now()
        with pytest.raises(StoppedEarly, match="max_loading_s") as stopped:
            async with kit.pool(server, max_loading_s=900, max_outage_s=10) as running:
                await running.label(kit.texts(40))
        assert 900 <= kit.now() - began <= 905
        assert len(server.requests) < 100
    assert stopped.value.exit_code == 75
    assert running.saved == {}


@pytest.mark.fault(14)
async def test_a_held_probe_that_times_out_counts_as_loading(kit):
    """A server may hold the request for the model for longer than one attempt may take."""
    script, _ = a_cold_start(kit, 60.0, holds=True, body=LOADING)
    async with kit.serve(script) as server:
        async with kit.pool(server, timeout_s=7, max_outage_s=5) as running:
            assert await running.label(kit.texts(40)) == kit.right(kit.texts(40))
        assert server.statuses.count(503) == 1


@pytest.mark.fault(14)
async def test_an_estimate_that_is_too_long_is_not_believed(kit):
    """`estimated_time` of half an hour for a model that is there in ten seconds."""
    body = {"error": "loading", "estimated_time": 1809.2}
    script, ready_at = a_cold_start(kit, 10.0, holds=False, body=body)
    async with kit.serve(script) as server, kit.pool(server) as running:
        await running.label(kit.texts(40))
        assert kit.now() < ready_at + 30


def token_bucket(per_s):
    """A limit of the momentary rate, with a burst of a tenth of a second."""
    level, seen_at = 0.0, 0.0

    def admits(now):
        nonlocal level, seen_at
        level, seen_at = max(0.0, level - per_s * (now - seen_at)), now
        if level + 1 > per_s / 10:
            return False
        level += 1
        return True

    return admits


def sliding_window(per_s):
    """A limit of the requests in the last second."""
    admitted = deque()

    def admits(now):
        while admitted and admitted[0] <= now - 1.0:
            admitted.popleft()
        if len(admitted) >= per_s:
            return False
        admitted.append(now)
        return True

    return admits


@pytest.mark.parametrize("holds", [True, False], ids=["wait-for-model-held", "ignored"])
@pytest.mark.parametrize(
    ("limit", "hint"),
    [
        pytest.param(sliding_window, {}, id="sliding-window"),
        # As the embedded endpoint does it: each 429 costs a pause of the whole pool.
        pytest.param(sliding_window, {"Retry-After": "1"}, id="sliding-window-with-a-hint"),
        pytest.param(token_bucket, {}, id="token-bucket"),
    ],
)
def test_a_rough_endpoint_is_used_near_its_limit(kit, holds, limit, hint):
    """2,000 rows, one a request, within 1.10 times the ideal 30 s, with at most 2% of 429s.

    100 requests/s are allowed (429 above), 50 ms latency, 1% of 500s, 0.5% of resets, and a cold
    start of 10 s. Where the server does not hold the probe, the model may be ready for as long as
    the probe waits just then.
    """

    async def main():
        chance, admits = random.Random(7), limit(100)
        texts = kit.texts(2000)
        loading, _ = a_cold_start(kit, 10.0, holds=holds, body=LOADING)

        async def script(asked):
            if said := await loading(asked):
                return said
            if not admits(kit.now()):
                return kit.Said(429, {"error": "Rate limit reached"}, hint)
            if chance.random() < 0.01:
                return kit.Said(500, b"boom")
            return kit.Said(how="reset") if chance.random() < 0.005 else None

        async with kit.serve(script, latency_s=0.05) as server:
            began = kit.now()
            async with kit.pool(server, batch_size=1, concurrency=32) as running:
                assert await running.label(texts) == kit.right(texts)
            return kit.now() - began, server.statuses.count(429), len(server.requests)

    seconds, throttled, requests = kit.run(main)
    assert throttled <= 0.02 * requests
    probe_waits_s = PROBE_FIRST_S * (1 + PROBE_GROWTH + PROBE_GROWTH**2) * 1.1 - 10.0
    assert seconds <= 1.10 * 30 + (0 if holds else probe_waits_s)


@pytest.mark.fault(14)
async def test_a_gate_that_closes_while_its_probe_is_leaving_makes_others_wait(kit):
    """The probe is answered, and at once another worker meets a 503: nobody may spin meanwhile."""
    loading = Retryable(Cause.LOADING, "503 loading", status=503)
    gate = Gate(kit.config(), kit.LoopClock(), lambda _: None)
    gate.close(Why.LOADING, loading, kit.now())
    assert await gate.enter()
    gate.open()
    gate.close(Why.LOADING, loading, kit.now())
    third = asyncio.create_task(gate.enter())
    await asyncio.sleep(5)
    assert not third.done()
    gate.leave()
    assert await third
