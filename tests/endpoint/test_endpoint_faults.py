"""Every fault of a rehearsal is the real thing, as a client sees it."""

from __future__ import annotations

import asyncio
import math

import aiohttp
import pytest

from pipeline.endpoint.faults import (
    POISON_ERROR,
    ColdStart,
    Fault,
    FaultOptions,
    Faults,
    Hint,
)
from pipeline.errors import SettingsError

BODY = {"inputs": ["I love it", "I hate it"], "parameters": {"top_k": 1}}
GOOD_LABELS = ["positive", "negative"]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share_500": 1.5}, "share_500 is 1.5"),
        ({"share_hang": -0.1}, "share_hang is -0.1"),
        ({"share_reset": math.nan}, "share_reset is nan"),
        ({"share_500": 0.6, "share_wrong": 0.5}, "sum to 1.1"),
        ({"cold_start_s": -1}, "cold_start_s is -1"),
        ({"cold_start_s": math.inf}, "cold_start_s is inf"),
        ({"latency_ms": -5}, "latency_ms is -5"),
        ({"rate_limit": 0}, "rate_limit is 0"),
        ({"poison": ""}, "poison is empty"),
    ],
)
def test_impossible_option_is_refused(options, says):
    with pytest.raises(SettingsError, match=says):
        FaultOptions(**options)


def test_shares_that_sum_to_one_are_possible():
    assert FaultOptions(share_500=0.7, share_502=0.2, share_reset=0.1)


def drawn(count=20_000, **options):
    faults = Faults(FaultOptions(**options))
    return [faults.draw() for _ in range(count)]


def test_faults_come_in_their_shares():
    draws = drawn(share_500=0.3, share_hang=0.1, share_wrong=0.2, seed=5)
    assert draws.count(Fault.ERROR_500) / len(draws) == pytest.approx(0.3, abs=0.02)
    assert draws.count(Fault.HANG) / len(draws) == pytest.approx(0.1, abs=0.02)
    assert draws.count(None) / len(draws) == pytest.approx(0.4, abs=0.02)
    assert abs(draws.count(Fault.TOO_FEW) - draws.count(Fault.NOT_JSON)) <= 1
    assert set(draws) == {None, Fault.ERROR_500, Fault.HANG, Fault.TOO_FEW, Fault.NOT_JSON}


def test_a_seed_repeats_its_decisions():
    options = {"count": 200, "share_500": 0.3, "share_reset": 0.3}
    assert drawn(seed=1, **options) == drawn(seed=1, **options)
    assert drawn(seed=1, **options) != drawn(seed=2, **options)


def test_rate_limit_is_a_sliding_window(clock):
    """No window of one second, wherever it starts, lets more than the limit through."""
    faults = Faults(FaultOptions(rate_limit=2), clock=clock)
    times = [0.0, 0.5, 0.75, 0.875, 1.0, 1.25, 1.5, 1.75, 2.0]
    allowed = []
    for time in times:
        clock.now = 100.0 + time
        if faults.admit().allowed:
            allowed.append(time)
    assert allowed == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_rate_limit_tells_what_remains_and_for_how_long(clock):
    faults = Faults(FaultOptions(rate_limit=2), clock=clock)
    clock.now = 100.25
    first, second = faults.admit(), faults.admit()
    clock.now = 100.5
    refused = faults.admit()
    assert [each.allowed for each in (first, second, refused)] == [True, True, False]
    assert [each.remaining for each in (first, second, refused)] == [1, 0, 0]
    assert refused.wait_s == 0.75


async def test_cold_start_counts_down_from_the_first_request(serving, clock):
    served = await serving(cold_start_s=5, clock=clock)
    clock.now += 60
    loading = "Model sentiment is currently loading"
    assert await served.ask(BODY) == (503, {"error": loading, "estimated_time": 5.0})
    clock.now += 3
    assert await served.ask(BODY) == (503, {"error": loading, "estimated_time": 2.0})
    clock.now += 2
    assert (await served.ask(BODY))[0] == 200


async def test_cold_start_is_each_models_own(serving, clock):
    served = await serving(cold_start_s=5, clock=clock)
    assert (await served.ask(BODY))[0] == 503
    clock.now += 5
    assert (await served.ask(BODY))[0] == 200
    status, answer = await served.ask(BODY, "/models/language")
    assert (status, answer["estimated_time"]) == (503, 5.0)


async def test_cold_start_can_count_from_the_start(serving, clock):
    served = await serving(cold_start_s=5, cold_start_from=ColdStart.START, clock=clock)
    clock.now += 4
    assert (await served.ask(BODY))[1]["estimated_time"] == 1.0
    clock.now += 1
    assert (await served.ask(BODY))[0] == 200


async def test_wait_for_model_holds_the_request(serving, clock):
    """With the header the answer comes once the model is loaded; without it, at once as a 503."""
    served = await serving(cold_start_s=0.2, clock=clock)
    assert (await served.ask(BODY))[0] == 503
    held = asyncio.create_task(served.ask(BODY, headers={"x-wait-for-model": "true"}))
    while (await served.stats())["requests"] < 2:
        pass
    assert (await served.ask(BODY))[0] == 503
    assert not held.done()
    clock.now += 1
    status, [[good], [bad]] = await held
    assert (status, [good["label"], bad["label"]]) == (200, GOOD_LABELS)
    assert (await served.stats())["statuses"] == {"200": 1, "503": 2}


async def test_only_true_waits_for_the_model(serving, clock):
    served = await serving(cold_start_s=3600, clock=clock)
    assert (await served.ask(BODY, headers={"x-wait-for-model": "false"}))[0] == 503


async def ask_with_headers(served):
    async with served.session.post(served.url, json=BODY) as response:
        return response.status, response.headers, await response.json()


async def test_rate_limit_with_retry_after(serving, clock):
    served = await serving(rate_limit=1, clock=clock)
    status, headers, _ = await ask_with_headers(served)
    assert status == 200
    assert "Retry-After" not in headers
    clock.now += 0.25
    status, headers, answer = await ask_with_headers(served)
    assert status == 429
    assert answer["error"].startswith("Rate limit reached")
    assert headers["Retry-After"] == "1"
    assert "RateLimit" not in headers
    clock.now += 0.75
    assert (await ask_with_headers(served))[0] == 200


async def test_rate_limit_with_ratelimit_headers_on_every_answer(serving, clock):
    """RateLimit comes with a 200 too: it binds only where nothing remains."""
    served = await serving(rate_limit=2, rate_hint=Hint.RATELIMIT, clock=clock)
    seen = [await ask_with_headers(served) for _ in range(3)]
    assert [status for status, _, _ in seen] == [200, 200, 429]
    assert [headers["RateLimit"] for _, headers, _ in seen] == [
        '"api";r=1;t=1',
        '"api";r=0;t=1',
        '"api";r=0;t=1',
    ]
    for _, headers, _ in seen:
        assert headers["RateLimit-Policy"] == '"fixed window";"api";q=2;w=1'
        assert "Retry-After" not in headers


async def test_rate_limit_without_a_hint(serving, clock):
    served = await serving(rate_limit=1, rate_hint=Hint.NONE, clock=clock)
    await ask_with_headers(served)
    status, headers, _ = await ask_with_headers(served)
    assert status == 429
    assert not {"Retry-After", "RateLimit", "RateLimit-Policy"} & set(headers)


async def test_error_500(serving):
    served = await serving(share_500=1)
    assert await served.ask(BODY) == (500, {"error": "Internal Server Error"})
    assert await served.stats() == {
        "requests": 1,
        "texts": 0,
        "statuses": {"500": 1},
        "faults": {"500": 1},
    }


async def test_error_502_is_a_page_of_html(serving):
    served = await serving(share_502=1)
    async with served.session.post(served.url, json=BODY) as response:
        assert response.status == 502
        assert response.content_type == "text/html"
        assert "<title>502 Bad Gateway</title>" in await response.text()


async def test_reset_is_a_connection_error(serving):
    served = await serving(share_reset=1)
    with pytest.raises(aiohttp.ClientConnectionError):
        await served.ask(BODY)
    stats = await served.stats()
    assert (stats["faults"], stats["statuses"]) == ({"reset": 1}, {})


async def test_reset_is_a_rst_on_the_wire(serving):
    """The kernel reports a reset: an orderly end would read as an empty answer."""
    served = await serving(share_reset=1)
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()


async def test_hang_lasts_until_the_client_gives_up(serving):
    served = await serving(share_hang=1)
    with pytest.raises(TimeoutError):
        await served.ask(BODY, timeout=aiohttp.ClientTimeout(total=0.2))
    stats = await served.stats()
    assert (stats["faults"], stats["statuses"]) == ({"hang": 1}, {})


async def test_server_ends_although_requests_hang(serving, sentiment):
    """Stopping the server lets go of a hanging request instead of waiting for it."""
    from pipeline.endpoint.server import Endpoint, listening

    app = Endpoint([sentiment], faults=FaultOptions(share_hang=1)).application()
    async with aiohttp.ClientSession() as session:
        async with listening(app, host="127.0.0.1", port=0) as url:
            hanging = asyncio.create_task(session.post(url, json=BODY))
            stats = {"requests": 0}
            while not stats["requests"]:
                async with session.get(url + "/stats") as response:
                    stats = await response.json()
        with pytest.raises(aiohttp.ClientConnectionError):
            await hanging


async def test_truncated_answer_is_a_payload_error(serving):
    served = await serving(share_truncated=1)
    async with served.session.post(served.url, json=BODY) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    stats = await served.stats()
    assert (stats["faults"], stats["statuses"]) == ({"truncated": 1}, {"200": 1})


async def test_wrong_answers_alternate(serving):
    """A 200 with one list too few, then a 200 that is not JSON, and again."""
    served = await serving(share_wrong=1)
    for _ in range(2):
        status, [[only]] = await served.ask(BODY)
        assert (status, only["label"]) == (200, GOOD_LABELS[0])
        async with served.session.post(served.url, json=BODY) as response:
            assert response.status == 200
            assert response.content_type == "text/html"
            assert (await response.text()).startswith("<!DOCTYPE html>")
    assert (await served.stats())["faults"] == {"too few": 2, "not json": 2}


@pytest.mark.parametrize(
    "inputs",
    ["some venom here", ["fine", "venom"], [{"text": "fine", "text_pair": "venomous"}]],
    ids=["single", "list", "pair"],
)
async def test_poison_fails_its_whole_request(serving, inputs):
    served = await serving(poison="venom")
    assert await served.ask({"inputs": inputs}) == (400, {"error": POISON_ERROR})
    assert (await served.ask(BODY))[0] == 200
    assert (await served.stats())["texts"] == 2


async def test_latency_is_added(serving):
    served = await serving(latency_ms=100)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    assert (await served.ask(BODY))[0] == 200
    assert loop.time() - begun >= 0.099


async def test_same_seed_fails_the_same_requests(serving):
    async def statuses(seed):
        served = await serving(share_500=0.5, seed=seed)
        return [(await served.ask(BODY))[0] for _ in range(30)]

    first = await statuses(1)
    assert set(first) == {200, 500}
    assert await statuses(1) == first
    assert await statuses(2) != first
