"""A plan measures what several requests at once do: servers of known speed, in virtual time."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.client import Target, dialect_of
from pipeline.client.token import Token
from pipeline.probing import judge
from pipeline.probing.asking import Findings, examine

OUT_OF_MEMORY = {"error": "CUDA out of memory. Tried to allocate 1.50 GiB."}


def lengths(count):
    """Numbers of words with a realistic spread."""
    chance = random.Random(1)
    return [min(480, max(1, round(chance.lognormvariate(math.log(37), 0.8)))) for _ in range(count)]


TEXTS = [f"{i:06}" + " word" * words for i, words in enumerate(lengths(20_000))]


@pytest.fixture
def one_at_a_time(kit):
    """A script of a server that takes one request at a time, each for as long as it costs."""

    def make(cost_s, *, most=None):
        free_at = 0.0

        def script(asked):
            nonlocal free_at
            if most is not None and len(asked.items) > most:
                return kit.Said(400, OUT_OF_MEMORY)
            free_at = max(free_at, kit.now()) + cost_s(asked.items)
            return kit.Said(after_s=free_at - kit.now())

        return script

    return make


@pytest.fixture
def measure(kit):
    """Probe as a plan does, with so many requests; never more."""

    async def run(script, *, most_requests=30, texts=TEXTS, info=None, speaks="hf", **settings):
        async with kit.serve(script, speaks=speaks, info=info, latency_s=0.0) as server:
            known = {"dialect": "hf", "batch_size": "auto", "concurrency": 16, "timeout_s": 120.0}
            config = kit.config(server.url, **known | settings)
            target = Target.of(config, None)
            dialect = dialect_of(target.dialect, config)
            found = Findings(config, target, Token(None), True, dialect, most_requests)
            await examine(found, texts, kit.LoopClock(), lambda _: None)
            judged = judge(found)
            assert judged.requests == len(server.requests) <= most_requests
            assert judged.texts == len(server.items)
        assert judged.failure is None
        return judged

    return run


async def test_without_more_requests_one_at_a_time_is_what_is_known(measure):
    found = (await measure(lambda _: None, most_requests=8)).estimate
    assert found is not None
    assert (found.waves, found.most, found.at_once) == ((), None, 1)
    assert "what several at once do was not measured" in found.words


async def test_batches_grow_for_as_long_as_that_helps(measure, one_at_a_time):
    """A request costs a tenth of a second, and a millisecond for each text."""
    found = (await measure(one_at_a_time(lambda items: 0.1 + 0.001 * len(items)))).estimate
    assert (found.texts, found.at_once) == (512, 4)
    assert found.texts_per_second == pytest.approx(512 / 0.612, rel=0.02)
    assert found.least < 512 / 0.612 < found.most < 2 * found.least
    assert "of 512 texts, 4 at once: 837 texts/s, ±15%" in found.words
    assert found.first_texts_per_second == pytest.approx(32 / 0.132, rel=0.02)


async def test_a_size_that_is_refused_is_left(measure, one_at_a_time):
    script = one_at_a_time(lambda items: 0.02 + 0.0004 * len(items), most=256)
    found = (await measure(script)).estimate
    assert found.texts == 128
    assert found.texts_per_second == pytest.approx(128 / 0.0712, rel=0.02)


async def test_requests_are_more_for_as_long_as_that_helps(kit, measure):
    found = (await measure(lambda _: kit.Said(after_s=1), batch_size=32, concurrency=8)).estimate
    assert (found.texts, found.at_once) == (32, 8)
    assert found.texts_per_second == pytest.approx(8 * 32, rel=0.02)
    assert found.most is not None
    assert found.least < 8 * 32 < found.most


async def test_what_was_not_tried_is_said_to_be_unknown(kit, measure):
    """And never multiplied out."""
    found = (await measure(lambda _: kit.Said(after_s=1), batch_size=32, concurrency=64)).estimate
    assert found.texts_per_second == pytest.approx(32 * found.at_once, rel=0.02)
    assert found.at_once < 64
    assert found.most is None
    assert "more at once were not tried" in found.words


@pytest.mark.parametrize("cost", ["words", "padded"])
async def test_the_estimate_is_what_a_run_does(kit, measure, one_at_a_time, cost):
    """Though texts differ in length, and a few requests cannot have them all."""

    def cost_s(items):
        words = [item.count(" ") + 1 for item in items]
        total = sum(words) if cost == "words" else len(words) * max(words)
        return 0.01 + 0.00002 * total

    settings = {"batch_size": 32, "concurrency": 4}
    found = (await measure(one_at_a_time(cost_s), **settings)).estimate
    async with (
        kit.serve(one_at_a_time(cost_s), latency_s=0.0) as server,
        kit.pool(server, **settings) as running,
    ):
        began = kit.now()
        await running.label(TEXTS)
        per_second = len(TEXTS) / (kit.now() - began)
    assert found.least < per_second < found.most
    assert found.texts_per_second == pytest.approx(per_second, rel=0.1)


async def test_a_limit_of_requests_a_second_is_found(kit, measure):
    """Ten at once after a pause, and ten a second: that alone decides."""
    tokens, at = 10.0, kit.now()

    def script(_):
        nonlocal tokens, at
        tokens, at = min(10.0, tokens + 10 * (kit.now() - at)), kit.now()
        if tokens < 1:
            return kit.Said(429, {"error": "Rate limit reached"})
        tokens -= 1
        return kit.Said(after_s=0.01)

    found = await measure(script, batch_size=32)
    assert found.throttled
    assert found.estimate.least < 10 * 32 < found.estimate.most < 3 * found.estimate.least
    assert "requests a second (429)" in found.estimate.words


async def test_a_server_that_throttles_at_once_is_measured_all_the_same(kit, measure):
    """One request a second: the first four at once are refused, but for one."""
    at = -math.inf

    def script(_):
        nonlocal at
        if kit.now() - at < 1:
            return kit.Said(429, {"error": "Rate limit reached"})
        at = kit.now()
        return kit.Said(after_s=1)

    found = await measure(script, batch_size=32)
    assert found.estimate.waves == ()
    assert found.estimate.least < 32 < 2 * found.estimate.most
    assert "requests a second (429)" in found.estimate.words


async def test_a_quota_that_is_used_up_is_waited_for(kit, measure):
    """Each answer says that nothing remains for a second; the wait is part of what is measured."""
    used_up = {"RateLimit": '"api";r=0;t=1'}
    found = await measure(lambda _: kit.Said(headers=used_up, after_s=0.1), batch_size=32)
    assert {wave.seconds >= 1.0 for wave in found.estimate.waves} == {False, True}


async def test_the_stated_rate_is_kept_and_bounds_the_estimate(kit, measure):
    began = kit.now()
    found = await measure(lambda _: kit.Said(after_s=0.01), batch_size=32, rate=5)
    assert (found.requests - 1) / (kit.now() - began) <= 5.1
    assert found.estimate.texts_per_second == found.estimate.most == 5 * 32
    assert "allows 160 texts/s" in found.estimate.words


async def test_what_a_server_tells_is_never_exceeded(kit, measure):
    info = {"model_id": "org/name", "model_type": {"classifier": {"id2label": {}}},
            "max_client_batch_size": 8, "max_concurrent_requests": 64}  # fmt: skip
    found = await measure(None, speaks="tei", info=info, dialect="auto", concurrency=32)
    assert {wave.texts for wave in found.estimate.waves} == {8}
    assert max(wave.at_once for wave in found.estimate.waves) <= 8
    assert found.most_texts_per_request == 8


@pytest.mark.parametrize("settings", [{"most_requests": 12}, {"max_requests": 12}], ids=str)
async def test_no_more_requests_are_sent_than_are_allowed(kit, measure, settings):
    found = await measure(lambda _: kit.Said(after_s=0.1), **settings)
    assert found.requests <= 12
    assert found.estimate.waves


async def test_a_small_table_is_not_spent_on_measuring(kit, measure):
    """A wave takes a part of the texts, and a table that a few requests do needs none."""
    found = await measure(lambda _: kit.Said(after_s=0.1), texts=TEXTS[:400])
    assert (found.estimate.waves, found.requests) == ((), 3)
    found = await measure(lambda _: kit.Said(after_s=0.1), texts=TEXTS[:2_000])
    assert {wave.texts for wave in found.estimate.waves} == {32}


async def test_texts_of_one_setting_are_asked_once(kit, measure):
    """A server may remember what it answered."""
    sent = []

    def script(asked):
        sent.append(list(asked.items))
        return kit.Said(after_s=0.1)

    await measure(script, batch_size=32, concurrency=4)
    waves = [item for items in sent[3:] for item in items]
    assert len(waves) == len(set(waves)) > 0


async def test_an_endpoint_that_fails_while_it_is_measured_leaves_what_is_known(kit, measure):
    script = lambda asked: kit.Said(503, "oh") if asked.number > 4 else kit.Said(after_s=0.1)  # noqa: E731
    found = await measure(script)
    assert (found.estimate.waves, found.state) == ((), "warning")
    assert found.estimate.texts_per_second == pytest.approx(320, rel=0.02)
