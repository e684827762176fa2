"""Hints when to come back (fault 12): honoured, jittered, shared, and capped."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.errors import StoppedEarly

pytestmark = pytest.mark.fault(12)

RATE_LIMITED = {"error": "Rate limit reached"}


def retry_after(date):
    return {"Retry-After": format_datetime(date, usegmt=True)}


def gap_s(server, number):
    """How long no request started before request `number`."""
    return server.requests[number].at - max(asked.at for asked in server.requests[:number])


@pytest.mark.parametrize(
    ("headers", "least_s", "most_s"),
    [
        pytest.param({"Retry-After": "7"}, 7.0, 7.8, id="seconds"),
        pytest.param({"Retry-After": "300"}, 300.0, 331.0, id="minutes"),
        pytest.param({"RateLimit": '"api";r=0;t=3'}, 3.0, 3.4, id="RateLimit r=0"),
        pytest.param({}, 0.05, 1.0, id="absent"),
        pytest.param({"Retry-After": "-5"}, 0.05, 1.0, id="negative"),
        pytest.param({"Retry-After": "later"}, 0.05, 1.0, id="garbage"),
        pytest.param({"RateLimit": '"api";r=9;t=300'}, 0.05, 1.0, id="RateLimit r=9"),
    ],
)
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["least-jitter", "most-jitter"])
async def test_a_hint_pauses_all_workers(kit, headers, least_s, most_s, share):
    """No request starts during the pause, whichever worker got the 429; then all go on."""

    def script(asked):
        return kit.Said(429, RATE_LIMITED, headers) if asked.number == 40 else None

    texts = kit.texts(400)
    async with (
        kit.serve(script, latency_s=0.1) as server,
        kit.pool(server, concurrency=8, clock=kit.LoopClock(share)) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        refused_at = server.requests[40].at + 0.1
        since = [asked.at - refused_at for asked in server.requests]
        # Answers of the same instant may be read before the 429, and send their next request.
        following = [seconds for seconds in since if seconds > 0.001]
        assert len(server.requests) == 101
        assert server.statuses.count(429) == 1
        # What was sent before the answer came is on its way; after it nothing starts.
        assert least_s <= min(following) <= most_s


async def test_a_date_is_honoured(kit):
    """Dates are on the wall clock, which is not virtual: an hour hence is an hour's pause."""
    later = datetime.now(UTC) + timedelta(hours=1)

    def script(asked):
        return kit.Said(429, RATE_LIMITED, retry_after(later)) if asked.number == 1 else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, concurrency=1, max_outage_s=7200) as running,
    ):
        await running.label(kit.texts(12))
        assert 3500 < gap_s(server, 2) < 3600 * 1.1 + 60


async def test_a_date_in_the_past_is_no_pause(kit):
    past = retry_after(datetime(2020, 1, 1, tzinfo=UTC))

    def script(asked):
        return kit.Said(429, RATE_LIMITED, past) if asked.number == 1 else None

    async with kit.serve(script) as server, kit.pool(server, concurrency=1) as running:
        assert await running.label(kit.texts(12)) == kit.right(kit.texts(12))
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "1000000000"},
        {"RateLimit": '"api";r=0;t=1000000000'},
        {"Retry-After": "601"},
        {"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"},
    ],
    ids=["10^9", "RateLimit-10^9", "just-beyond", "year-9999"],
)
@pytest.mark.parametrize("number", [0, 10])
async def test_a_pause_beyond_the_cap_stops_resumably_at_once(kit, headers, number):
    """Beyond max_outage_s nobody waits: exit 75, with what was answered kept."""

    def script(asked):
        return kit.Said(429, RATE_LIMITED, headers) if asked.number >= number else None

    async with kit.serve(script) as server:
        began = kit.now()
        with pytest.raises(StoppedEarly, match="max_outage_s") as stopped:
            async with kit.pool(server, max_outage_s=600) as running:
                await running.label(kit.texts(400))
        assert kit.now() - began < 5
        assert server.statuses.count(429) <= 4
        assert len(running.saved) == 4 * number
    assert stopped.value.exit_code == 75


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": "0"}, {"Retry-After": "2"}, {"RateLimit": '"a";r=0;t=0'}],
    ids=["no-hint", "zero", "seconds", "RateLimit-zero"],
)  # fmt: skip
async def test_throttling_for_good_stops_within_max_outage(kit, headers):
    """Whatever the hint says, an endpoint that only throttles ends the run resumably."""

    def script(asked):
        return kit.Said(429, RATE_LIMITED, headers) if asked.number >= 10 else None

    async with kit.serve(script) as server:
        began = kit.now()
        with pytest.raises(StoppedEarly) as stopped:  # noqa: PT012  (what happens inside is the test)
            async with kit.pool(server, max_outage_s=60) as running:
                # An endless wait shows as a timeout, in virtual time.
                async with asyncio.timeout(3600):
                    await running.label(kit.texts(400))
        assert kit.now() - began < 90
        assert server.statuses.count(429) < 100
    assert stopped.value.exit_code == 75


async def test_a_rate_limit_used_up_after_success_pauses(kit):
    """A 200 that says that nothing remains is believed, so that no 429 is needed."""

    def script(asked):
        left = '"api";r=0;t=55' if asked.number == 5 else '"api";r=3;t=55'
        return kit.Said(headers={"RateLimit": left, "RateLimit-Policy": '"api";q=500;w=300'})

    async with kit.serve(script) as server, kit.pool(server, concurrency=1) as running:
        await running.label(kit.texts(40))
        gaps = [gap_s(server, number) for number in range(1, 10)]
        assert [number for number, gap in enumerate(gaps, 1) if gap > 1] == [6]
        assert 55 <= gaps[5] < 61


async def test_a_rate_limit_of_ages_after_success_does_not_pause_for_ages(kit):
    """A garbled hint on a good answer costs at most max_outage_s."""

    def script(asked):
        return kit.Said(headers={"RateLimit": '"a";r=0;t=1000000000'} if asked.number == 0 else {})

    async with kit.serve(script) as server:
        began = kit.now()
        try:
            async with kit.pool(server, max_outage_s=60) as running:
                await running.label(kit.texts(40))
        except StoppedEarly:
            pass
        assert kit.now() - began < 70


async def test_the_wait_is_told(kit):
    def script(asked):
        return kit.Said(429, RATE_LIMITED, {"Retry-After": "7"}) if asked.number == 1 else None

    async with kit.serve(script) as server, kit.pool(server, concurrency=1) as running:
        await running.label(kit.texts(12))
        (wait,) = running.waits
        assert "Rate limit reached" in wait.detail
        assert 7 <= wait.seconds <= 7.7


async def test_one_early_429_does_not_slow_the_whole_run(kit):
    """The first request meets a quota that is used up; after the pause the endpoint takes all.

    fault 21 (recovers): what one 429 taught must not outlast the limit by minutes.
    """

    def script(asked):
        return kit.Said(429, RATE_LIMITED, {"Retry-After": "2"}) if asked.number == 0 else None

    async with kit.serve(script, latency_s=0.05) as server:
        began = kit.now()
        async with kit.pool(server, concurrency=8) as running:
            await running.label(kit.texts(2000))
        # 500 requests of 50 ms, 8 at once, take 3 s without any limit.
        assert kit.now() - began < 60
