"""Rows that the server rejects (fault 16): they carry the error, the others a label."""

from __future__ import annotations

import math

import pytest

from pipeline.errors import EndpointRefused, TooManyErrors
from pipeline.events import OneTextARequest, SmallerBatches
from pipeline.outcomes import RowError

pytestmark = pytest.mark.fault(16)


def poisoned(kit, poison, status=400, how="whole"):
    """A script that fails every request which holds one of the texts in `poison`."""

    def script(asked):
        if poison & set(asked.items):
            return kit.Said(status, {"error": "The size of tensor a"}, how=how)
        return None

    return script


def check(kit, texts, outcomes, poison):
    for text, outcome in zip(texts, outcomes, strict=True):
        if text in poison:
            assert isinstance(outcome, RowError)
        else:
            assert outcome == kit.outcome_of(text)


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("at", [0, 17, 31])
async def test_one_poison_row_in_a_batch(kit, status, at):
    """At most 2 log2(32) extra requests, and the poison is not retried alone."""
    texts = kit.texts(32)
    poison = {texts[at]}
    async with (
        kit.serve(poisoned(kit, poison, status)) as server,
        kit.pool(server, batch_size=32) as running,
    ):
        outcomes = await running.label(texts)
        check(kit, texts, outcomes, poison)
        assert outcomes[at] == RowError(f"{status} The size of tensor a")
        assert len(server.requests) <= 1 + 2 * math.log2(32)
        assert [asked.items for asked in server.requests].count([texts[at]]) == 1
        assert not any(event.failed for event in running.events if hasattr(event, "failed")
                       and event.items > 1)  # fmt: skip


@pytest.mark.parametrize("at", [0, 5, 31, 5000, 9999])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_one_poison_row_in_ten_thousand(kit, at, dialect):
    """At most 2 log2(batch) + 1 extra requests, beside what meeting the endpoint costs anyway."""
    texts = kit.texts(10_000)
    poison = {texts[at]}
    async with kit.serve(poisoned(kit, poison)) as server:
        async with kit.pool(server, batch_size=32, dialect=dialect) as running:
            check(kit, texts, await running.label(texts), poison)
        without = math.ceil(10_000 / 32) + (dialect == "auto")
        assert len(server.posts) - without <= 2 * math.log2(32) + 1
        assert running.notices == []


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_many_poison_rows(kit, share, dialect):
    texts = kit.texts(400)
    poison = {text for i, text in enumerate(texts) if (i * 7919) % 1000 < 1000 * share}
    async with (
        kit.serve(poisoned(kit, poison)) as server,
        kit.pool(server, batch_size=16, dialect=dialect) as running,
    ):
        outcomes = await running.label(texts)
        check(kit, texts, outcomes, poison)
        assert len(running.saved) == 400


@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("dialect", ["hf", "auto", "single"])
async def test_a_request_that_is_wrong_itself_stops_the_run(kit, batch_size, dialect):
    """100 inputs rejected and none answered: the settings are wrong, not each row."""
    async with kit.serve(lambda _: kit.Said(422, {"error": "no such parameter"})) as server:
        with pytest.raises(EndpointRefused, match="no such parameter") as refused:
            async with kit.pool(server, batch_size=batch_size, dialect=dialect) as running:
                await running.label(kit.texts(2000))
        assert len(server.requests) < 300
    assert refused.value.exit_code == 4


async def test_a_hundred_poison_rows_after_an_answer_do_not_stop_the_run(kit):
    texts = kit.texts(300)
    poison = set(texts[4:])
    async with kit.serve(poisoned(kit, poison)) as server, kit.pool(server) as running:
        check(kit, texts, await running.label(texts), poison)


@pytest.mark.parametrize("allowed", [0, 3])
async def test_max_errors_is_respected(kit, allowed):
    """One more than is allowed stops the run with exit 3; what was answered is kept."""
    texts = kit.texts(200)
    poison = set(texts[5::10])
    async with kit.serve(poisoned(kit, poison)) as server:
        with pytest.raises(TooManyErrors, match="max_errors") as stopped:
            async with kit.pool(server, max_errors=allowed, concurrency=1) as running:
                await running.label(texts)
    assert stopped.value.exit_code == 3
    failed = [o for o, _ in running.saved.values() if isinstance(o, RowError)]
    assert len(failed) == allowed + 1
    assert len(running.saved) > allowed + 1


async def test_as_many_errors_as_are_allowed_are_no_reason_to_stop(kit):
    texts = kit.texts(40)
    poison = set(texts[::10])
    async with (
        kit.serve(poisoned(kit, poison)) as server,
        kit.pool(server, max_errors=4) as running,
    ):
        check(kit, texts, await running.label(texts), poison)


@pytest.mark.parametrize("most", [1, 5, 8])
@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_batches_shrink_to_what_the_server_takes(kit, most, dialect):
    """A batch refused though its halves are fine was too large: the next ones are smaller."""
    texts = kit.texts(640)

    def script(asked):
        return kit.Said(413, {"error": "too large"}) if len(asked.items) > most else None

    async with kit.serve(script) as server:
        async with kit.pool(server, batch_size=32, dialect=dialect, concurrency=4) as running:
            assert await running.label(texts) == kit.right(texts)
        largest_power = 2 ** int(math.log2(most))
        # Each of the batches in flight at the first refusal is split down to what is taken.
        refused = 4 * (32 // largest_power - 1) + 4
        assert server.statuses.count(413) <= refused
        assert len(server.requests) <= 640 / largest_power + refused + 40
        assert any(isinstance(each, SmallerBatches | OneTextARequest) for each in running.events)


async def test_batches_grow_back_after_a_refusal_by_chance(kit):
    """Two refusals for a reason that passes do not make the rest of the run slow."""
    texts = kit.texts(32 * 400)
    refused = []

    def script(asked):
        if len(refused) < 2 and asked.number > 3 and len(asked.items) > 8:
            refused.append(asked.number)
            return kit.Said(400, {"error": "CUDA out of memory"})
        return None

    async with kit.serve(script) as server:
        async with kit.pool(server, batch_size=32, concurrency=4) as running:
            assert await running.label(texts) == kit.right(texts)
        assert len(refused) == 2
        assert any(isinstance(event, SmallerBatches) for event in running.events)
        sizes = [len(asked.items) for asked in server.requests]
        assert set(sizes[-100:]) == {32}
        assert len(sizes) <= 400 + 130


async def test_refusals_of_one_moment_count_once(kit):
    """Many batches in flight, all refused for a passing reason: full size is tried again soon."""
    texts = kit.texts(32 * 1500)
    began = []

    def script(asked):
        began.append(kit.now())
        moment = 0.5 < kit.now() - began[0] < 0.55
        refused = moment and len(asked.items) > 16
        return kit.Said(400, {"error": "CUDA out of memory"}) if refused else None

    async with kit.serve(script, latency_s=0.05) as server:
        async with kit.pool(server, batch_size=32, concurrency=32) as running:
            assert await running.label(texts) == kit.right(texts)
        assert server.statuses.count(400) > 4
        assert len(server.requests) < 1500 + 250


async def test_a_limit_of_the_server_is_tried_again_ever_less_often(kit):
    texts = kit.texts(8 * 3000)

    def script(asked):
        return kit.Said(413, {"error": "too large"}) if len(asked.items) > 8 else None

    async with kit.serve(script) as server:
        async with kit.pool(server, batch_size=32, concurrency=2) as running:
            assert await running.label(texts) == kit.right(texts)
        tried = [asked.number for asked in server.requests if len(asked.items) > 8]
        first = [number for number in tried if number < 20]
        assert 1 <= len(tried) - len(first) <= 6
        assert len(server.requests) <= 3000 + 2 * len(tried)


@pytest.mark.parametrize("bad", [99, 100, 150])
@pytest.mark.parametrize("pairs", [False, True])
async def test_a_table_that_begins_with_bad_rows_is_labelled(kit, bad, pairs):
    """Many refusals and no answer: a plain text tells rows at fault from a request.

    It is asked after 6 refusals in a row, then after twice as many each time.
    """
    items = [("text", str(i)) for i in range(200)] if pairs else kit.texts(200)
    poison = set(items[:bad])
    settings = {"batch_size": 1, "concurrency": 1, "text_pair": "pair" if pairs else None}
    async with kit.serve(poisoned(kit, poison)) as server:
        async with kit.pool(server, **settings) as running:
            check(kit, items, await running.label(items), poison)
        assert len(server.requests) == 200 + 4


async def test_a_request_that_is_wrong_for_every_text_stops_the_run(kit):
    """Where the plain text is refused as well, it is not the rows."""
    async with kit.serve(lambda _: kit.Said(400, {"error": "no such function"})) as server:
        with pytest.raises(EndpointRefused, match="function_to_apply") as stopped:
            async with kit.pool(server, batch_size=1, concurrency=1) as running:
                await running.label(kit.texts(200))
        assert len(server.requests) == 7
    assert "no such function" in str(stopped.value)


@pytest.mark.parametrize("kind", ["500", "never", "reset"])
@pytest.mark.parametrize("at", [0, 20])
async def test_a_row_that_the_server_fails_on_is_given_up(kit, kind, at):
    """A text that crashes the model: its row carries the error, all others are labelled.

    Also where it stands in the very first batch.
    """
    texts = kit.texts(40)
    poison = {texts[at]}
    how = "whole" if kind == "500" else kind
    async with kit.serve(poisoned(kit, poison, 500, how)) as server:
        async with kit.pool(server, timeout_s=2, max_outage_s=120) as running:
            check(kit, texts, await running.label(texts), poison)
        assert len(server.requests) < 150


async def test_what_is_asked_to_test_an_outage_is_not_blamed_on_another_row(kit):
    """A probe with texts that were answered before, refused now: nobody else's error."""
    texts = kit.texts(400)
    began = kit.now()

    def script(asked):
        if 0.5 < kit.now() - began < 100:
            return kit.Said(500, b"down")
        if kit.now() - began >= 100 and asked.items == texts[:1] and not refused:
            refused.append(asked.number)
            return kit.Said(400, {"error": "CUDA out of memory"})
        return None

    refused = []
    async with kit.serve(script, latency_s=0.05) as server, kit.pool(server) as running:
        outcomes = await running.label(texts)
        assert refused
        assert outcomes == kit.right(texts)
