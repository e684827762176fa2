"""Finding out how a server wants to be asked (docs/protocol.md: "Request", "Response")."""

from __future__ import annotations

import asyncio
import math

import pytest

from pipeline.errors import EndpointRefused, SettingsError
from pipeline.pool.batching import MAX_REQUEST_BYTES

INFO = {"model_id": "m", "model_sha": "s", "max_client_batch_size": 8,
        "max_concurrent_requests": 512}  # fmt: skip


@pytest.mark.parametrize("speaks", ["hf", "compat"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 103])
async def test_a_server_of_lists_costs_the_ceiling_and_the_canary(kit, speaks, rows):
    """The canary and ceil(distinct / batch size) requests, and nothing is said."""
    texts = kit.texts(rows)
    async with (
        kit.serve(speaks=speaks) as server,
        kit.pool(server, dialect="auto") as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        assert len(server.posts) <= math.ceil(rows / 4) + 1
        assert len(server.requests) - len(server.posts) <= 1
        assert running.notices == []


@pytest.mark.parametrize("batch_size", [32, 4])
@pytest.mark.parametrize("text_pair", [None, "pair"])
async def test_tei_is_found_through_its_page(kit, batch_size, text_pair):
    """No batch is larger than it takes; every text stands in a list of its own."""
    texts = [(t, "other") for t in kit.texts(100)] if text_pair else kit.texts(100)
    async with (
        kit.serve(speaks="tei", info=INFO) as server,
        kit.pool(server, dialect="auto", batch_size=batch_size, text_pair=text_pair) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        assert len(server.posts) == math.ceil(100 / min(8, batch_size))
        assert len(server.requests) == len(server.posts) + 1


@pytest.mark.parametrize("kind", ["classifier", "reranker", "embedding"])
async def test_tei_with_a_model_that_is_no_classifier_is_refused(kit, kind):
    """Its page tells, so nothing is sent to be classified."""
    info = {**INFO, "model_id": "org/name", "model_type": {kind: {}}}
    async with kit.serve(speaks="tei", info=info) as server:
        if kind != "embedding":
            async with kit.pool(server, dialect="auto") as running:
                assert await running.label(kit.texts(8)) == kit.right(kit.texts(8))
            return
        with pytest.raises(EndpointRefused, match=r"org/name .* not a classifier"):
            async with kit.pool(server, dialect="auto") as running:
                await running.label(kit.texts(8))
        assert server.posts == []


async def test_tei_counts_items_and_not_requests(kit):
    """Its permits bound the texts in flight."""
    info = {**INFO, "max_concurrent_requests": 24}
    async with (
        kit.serve(speaks="tei", info=info, latency_s=0.2) as server,
        kit.pool(server, dialect="auto", batch_size=8, concurrency=16) as running,
    ):
        texts = kit.texts(800)
        assert await running.label(texts) == kit.right(texts)
        assert server.peak == 3


async def test_tei_permits_are_counted_in_batches_of_the_size_that_is_sent(kit):
    """A batch size that TEI cuts down to 8 must not cut down the concurrency, too."""
    info = {**INFO, "max_concurrent_requests": 64}
    async with (
        kit.serve(speaks="tei", info=info, latency_s=0.2) as server,
        kit.pool(server, dialect="auto", batch_size=64, concurrency=16) as running,
    ):
        texts = kit.texts(1200)
        assert await running.label(texts) == kit.right(texts)
        assert server.peak == 8


async def test_tei_cannot_be_asked_for_a_function(kit):
    async with kit.serve(speaks="tei", info=INFO) as server:
        with pytest.raises(SettingsError, match="function_to_apply"):
            async with kit.pool(server, dialect="auto", function_to_apply="softmax") as running:
                await running.label(["a"])
        assert server.posts == []


@pytest.mark.parametrize(
    "most",
    [0, -1, "32", True, None, 1e9, []],
    ids=["0", "-1", "text", "true", "null", "1e9", "list"],
)
async def test_nonsense_on_the_page_does_no_harm(kit, most):
    """Nothing is assumed: a garbled page costs speed at the most."""
    info = {**INFO, "max_client_batch_size": most, "max_concurrent_requests": most}
    async with kit.serve(speaks="tei", info=info) as server:
        server._right = lambda asked: (  # a server that takes any size
            200, [kit.labels_of(item) for item in asked.items],
        )  # fmt: skip
        async with kit.pool(server, dialect="auto") as running:
            assert await running.label(kit.texts(10)) == kit.right(kit.texts(10))
        assert len(server.requests) < 20


@pytest.mark.parametrize(
    "page",
    [(404, "not found"), (405, "no"), (401, {"error": "x"}), (500, "boom"), (200, "<html>"),
     (200, []), (200, {}), (307, "")],
    ids=["404", "405", "401", "500", "html", "list", "object", "redirect"],
)  # fmt: skip
async def test_a_page_that_is_not_teis_means_lists(kit, page):
    info = kit.Said(page[0], page[1])
    async with (
        kit.serve(info=info) as server,
        kit.pool(server, dialect="auto") as running,
    ):
        assert await running.label(kit.texts(9)) == kit.right(kit.texts(9))
        assert len(server.posts) == 4


@pytest.mark.parametrize("speaks", ["single", "first", "flat", "liar", "tei"])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("batch_size", [1, 8])
async def test_a_server_without_lists_is_asked_one_text_a_request(kit, speaks, rows, batch_size):
    """Whatever it makes of a list, every label is right and a line says why.

    Nothing that was answered before that was settled is believed.
    """
    texts = kit.texts(rows)
    async with (
        kit.serve(speaks=speaks) as server,
        kit.pool(server, dialect="auto", batch_size=batch_size, concurrency=8) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        assert {k: o for k, (o, _) in running.saved.items()} == {
            kit.key_of(text): kit.outcome_of(text) for text in texts
        }
        assert len(server.posts) <= rows + 16
        if rows > 1 and batch_size > 1:
            (notice,) = running.notices
            assert "One text a request from now on" in notice


@pytest.mark.parametrize(
    ("speaks", "words"),
    [("single", "takes no list"), ("first", "answer for"), ("liar", "different answers")],
)
async def test_the_notice_says_why(kit, speaks, words):
    async with kit.serve(speaks=speaks) as server, kit.pool(server, dialect="auto") as running:
        await running.label(kit.texts(9))
        assert words in running.notices[0]


@pytest.mark.parametrize("dialect", ["hf", "single"])
async def test_an_explicit_dialect_is_trusted(kit, dialect):
    async with kit.serve(speaks=dialect, info=INFO) as server:
        async with kit.pool(server, dialect=dialect) as running:
            assert await running.label(kit.texts(8)) == kit.right(kit.texts(8))
        assert len(server.requests) == (2 if dialect == "hf" else 8)


@pytest.mark.parametrize(
    ("dialect", "speaks"),
    [("hf", "tei"), ("hf", "first"), ("hf", "flat"), ("hf", "single"), ("tei", "single")],
)
async def test_a_wrong_dialect_gives_an_error_and_never_a_label(kit, dialect, speaks):
    """A wrong one that is given explicitly fails; it does not mislabel."""
    async with kit.serve(speaks=speaks, info=INFO) as server:
        try:
            async with kit.pool(server, dialect=dialect, max_outage_s=20) as running:
                outcomes = await running.label(kit.texts(400))
        except Exception as error:  # noqa: BLE001  (checked below)
            assert error.exit_code in (4, 75)  # noqa: PT017
            outcomes = []
        assert all(type(outcome).__name__ == "RowError" for outcome in outcomes)
        assert all(type(o).__name__ == "RowError" for o, _ in running.saved.values())


async def test_two_near_ties_are_no_proof_against_batches(kit):
    """One text whose label falls the other way within a batch is rounding; a second decides."""

    def script(asked):
        answers = [kit.labels_of(item)[:1] for item in asked.items]
        if len(asked.items) > 1 and asked.items[0] == "text 0":
            answers[0] = [{"label": "other", "score": 0.5001}]
        return kit.Said(body=answers)

    async with kit.serve(script) as server, kit.pool(server, dialect="auto") as running:
        outcomes = await running.label(kit.texts(40))
        assert outcomes[1:] == kit.right(kit.texts(40))[1:]
        assert running.notices == []
        assert len(server.posts) <= 10 + 2


async def test_the_first_batch_may_be_smaller_than_the_next(kit):
    """Where one text comes first and many follow, batching is checked all the same."""
    texts = kit.texts(40)
    async with (
        kit.serve(speaks="liar") as server,
        kit.pool(server, dialect="auto", batch_size=8) as running,
    ):
        running.pool.demand.block(True)
        first = await running.ask(texts[:1])
        running.pool.demand.block(False)
        async with asyncio.timeout(60):
            rest = await running.label(texts[1:])
        assert first + rest == kit.right(texts)


async def test_nothing_else_is_asked_before_the_dialect_is_settled(kit):
    """An answer that has to wait to be believed would be paid for and lost by a kill."""
    slow = []

    def script(asked):
        if len(asked.items) > 1 and not slow:
            slow.append(asked.at)
            return kit.Said(after_s=5.0)
        assert not slow or asked.at >= slow[0] + 5.0
        return None

    async with (
        kit.serve(script) as server,
        kit.pool(server, dialect="auto", concurrency=32) as running,
    ):
        texts = kit.texts(400)
        assert await running.label(texts) == kit.right(texts)
        assert slow


@pytest.mark.parametrize("speaks", ["hf", "liar"])
async def test_a_large_first_text_that_fills_its_request_alone(kit, speaks):
    """It is not sent twice to find out about lists; batching is checked all the same."""
    large = "long review " * (MAX_REQUEST_BYTES // 12)
    texts = [large, *kit.texts(40)]

    def script(asked):
        size_bytes = sum(map(len, asked.items))
        return kit.Said(413, {"error": "too large"}) if size_bytes > MAX_REQUEST_BYTES else None

    async with (
        kit.serve(script, speaks=speaks) as server,
        kit.pool(server, dialect="auto", batch_size=8) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        assert len(running.notices) == (speaks == "liar")
        assert sum(large in asked.items for asked in server.posts) <= 1 + (speaks == "liar")
