"""Servers that work through a list text by text, unless `parameters.batch_size` tells otherwise."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.events import SmallerBatches, TextsTogether
from pipeline.outcomes import RowError

UNKNOWN = {"error": "_batch_encode_plus() got an unexpected keyword argument 'batch_size'"}
AUTO = {"batch_size": "auto", "exact_scores": False}
FIXED = {"batch_size": 16, "exact_scores": False}


def size_told(asked):
    return asked.body["parameters"].get("batch_size")


class Toolkit:
    """One request at a time: 4 ms a text, or `together_s` a text of a batch that was told of.

    `shifts` is what padding changes the scores by, `relabels` makes it change labels, too.
    `says` is the answer to a request that tells.
    """

    def __init__(self, kit, *, together_s=0.0005, shifts=1e-6, relabels=False, says=None):
        self.kit, self.together_s, self.shifts = kit, together_s, shifts
        self.relabels, self.says = relabels, says
        self.turn = asyncio.Lock()

    async def __call__(self, asked):
        told = size_told(asked)
        if told and self.says is not None:
            return self.says
        async with self.turn:
            a_text_s = self.together_s if told else 0.004
            await asyncio.sleep(0.003 + a_text_s * len(asked.items))
        if not told:
            return None
        answers = []
        for item in asked.items:
            labels = self.kit.labels_of(f"wrong {item}" if self.relabels else item)
            answers.append([{**each, "score": each["score"] - self.shifts} for each in labels][:1])
        return self.kit.Said(body=answers)


def tellers(server):
    """Return the requests that told of their batch."""
    return [asked for asked in server.posts if size_told(asked)]


def right_but_for(outcomes, right, most):
    """Return True if all labels are right, and no score is off by more."""
    return all(
        got[0][0] == wanted[0][0] and abs(got[0][1] - wanted[0][1]) <= most
        for got, wanted in zip(outcomes, right, strict=True)
    )


@pytest.mark.parametrize("settings", [AUTO, FIXED, AUTO | {"dialect": "auto"}])
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
async def test_a_server_that_does_more_is_told(kit, settings, pairs):
    """The number told is that of the texts; a text alone is never told of."""
    items = kit.texts(6000)
    if pairs:
        items = [(text, "pair") for text in items]
    async with (
        kit.serve(Toolkit(kit)) as server,
        kit.pool(server, **settings) as running,
    ):
        outcomes = await running.label(items)
        assert right_but_for(outcomes, kit.right(items), 2e-6)
        told = tellers(server)
        assert len({item for asked in told for item in asked.items}) > len(items) / 2
        assert all(size_told(asked) == len(asked.items) > 1 for asked in told)
        assert running.events.count(TextsTogether()) == 1
        # What was sent twice is the batch that was asked both ways, and the canary.
        sent_twice = len(server.items) - len(set(server.items))
        assert sent_twice <= len(told[0].items) + (settings["batch_size"] == "auto")


@pytest.mark.parametrize("settings", [AUTO, FIXED])
async def test_a_server_that_does_no_more_is_told_no_longer(kit, settings):
    items = kit.texts(6000)
    async with (
        kit.serve(Toolkit(kit, together_s=0.004)) as server,
        kit.pool(server, **settings) as running,
    ):
        assert right_but_for(await running.label(items), kit.right(items), 2e-6)
        assert 1 < len(tellers(server)) <= 60
        assert not tellers(server)[0].number > 100
        assert not size_told(server.posts[-1])
        assert TextsTogether() not in running.events


@pytest.mark.parametrize("settings", [AUTO, FIXED])
@pytest.mark.parametrize("bad", [None, 1500])
async def test_a_refusal_costs_one_request(kit, settings, bad):
    """No batch is split for it, no size sinks, and no row is blamed for it."""
    items = kit.texts(3000)
    toolkit = Toolkit(kit, says=kit.Said(400, UNKNOWN))

    async def script(asked):
        if bad is not None and items[bad] in asked.items:
            return kit.Said(400, {"error": "too long"})
        return await toolkit(asked)

    async with kit.serve(script) as server, kit.pool(server, **settings) as running:
        outcomes = await running.label(items)
        if bad is not None:
            assert isinstance(outcomes.pop(bad), RowError)
            items.pop(bad)
        assert outcomes == kit.right(items)
        (told,) = tellers(server)
        sizes = [len(asked.items) for asked in server.posts if asked.number > told.number]
        assert max(sizes) >= len(told.items)
        if bad is None:
            assert server.statuses.count(400) == 1
        assert not [each for each in running.events if isinstance(each, SmallerBatches)]


@pytest.mark.parametrize("settings", [AUTO, FIXED])
@pytest.mark.parametrize("way", [{"relabels": True}, {"shifts": 1e-4}], ids=["labels", "scores"])
async def test_a_server_that_answers_otherwise_is_not_believed(kit, settings, way):
    """Not one of these answers is taken."""
    items = kit.texts(3000)
    async with (
        kit.serve(Toolkit(kit, **way)) as server,
        kit.pool(server, **settings) as running,
    ):
        assert await running.label(items) == kit.right(items)
        assert len(tellers(server)) == 1


@pytest.mark.parametrize(
    "said",
    [("garbage", 200, "whole"), (UNKNOWN, 500, "whole"), ([], 200, "whole"), (None, 200, "reset")],
    ids=["unreadable", "500", "no answers", "connection lost"],
)
async def test_a_server_that_fails_over_it_ends_no_run(kit, said):
    items = kit.texts(3000)
    body, status, how = said
    toolkit = Toolkit(kit, says=kit.Said(status, body, how=how))
    async with kit.serve(toolkit) as server, kit.pool(server, **AUTO) as running:
        assert await running.label(items) == kit.right(items)
        assert len(tellers(server)) <= 8


@pytest.mark.parametrize(
    "settings",
    [
        {"exact_scores": True},
        {"dialect": "single"},
        {"dialect": "vllm"},
        {"batch_size": 1},
    ],
    ids=["exact scores", "single", "vLLM", "one text a request"],
)
async def test_nobody_is_told_who_need_not_be(kit, settings):
    items = kit.texts(1500)

    async def script(asked):
        assert "batch_size" not in asked.body.get("parameters", {})
        await asyncio.sleep(0.002 * len(asked.items))
        if asked.path != "/classify":
            return None
        labels = [kit.labels_of(item)[0] for item in asked.items]
        data = [
            {"index": i, "label": each["label"], "probs": [each["score"]], "num_classes": 1}
            for i, each in enumerate(labels)
        ]
        return kit.Said(body={"data": data})

    async with kit.serve(script) as server, kit.pool(server, **AUTO | settings) as running:
        assert await running.label(items) == kit.right(items)
        assert len(server.posts) > 20


async def test_a_padded_batch_for_which_memory_lacks_makes_them_smaller(kit):
    """It takes any number one by one, and 40 together."""
    items = kit.texts(12_000)
    toolkit = Toolkit(kit)

    async def script(asked):
        if size_told(asked) and len(asked.items) > 40:
            return kit.Said(400, {"error": "CUDA out of memory."})
        return await toolkit(asked)

    async with kit.serve(script) as server, kit.pool(server, **AUTO) as running:
        assert right_but_for(await running.label(items), kit.right(items), 2e-6)
        assert {len(asked.items) for asked in tellers(server)[-50:-5]} == {32}
        assert server.statuses.count(400) <= 8


@pytest.mark.parametrize(("settings", "goes_on"), [(AUTO, True), (FIXED, False)])
async def test_measuring_costs_nothing_once_nothing_is_left_to_find_out(kit, settings, goes_on):
    async with kit.serve(Toolkit(kit)) as server, kit.pool(server, **settings) as running:
        await running.label(kit.texts(6000))
        (asking,) = running.pool._servers
        assert (asking.attempts.search is not None) == goes_on


async def test_the_vertex_mode_is_told_too(kit):
    items = kit.texts(6000)

    async def script(asked):
        told = size_told(asked)
        await asyncio.sleep((0.0005 if told else 0.004) * len(asked.items))
        answers = [kit.labels_of(item)[:1] for item in asked.items]
        return kit.Said(body={"predictions": answers})

    async with kit.serve(script) as server, kit.pool(server, dialect="vertex", **AUTO) as running:
        assert await running.label(items) == kit.right(items)
        assert len(tellers(server)) > 20


async def test_nothing_is_tried_once_all_is_asked(kit):
    """A batch is sent twice only if texts wait that may go out in the other way."""
    async with (
        kit.serve(Toolkit(kit)) as server,
        kit.pool(server, **FIXED) as running,
    ):
        await running.label(kit.texts(16 * 24))
        assert len(server.items) == 16 * 24


async def test_a_probe_tells_nobody(kit, probe):
    """Its requests are too few to measure by."""
    async with kit.serve(Toolkit(kit)) as server:
        found = await probe(server, exact_scores=False)
        assert found.failure is None
        assert len(server.posts) > 3
        assert not tellers(server)
