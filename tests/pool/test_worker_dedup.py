"""Each input is asked once: in flight, within the run, and across runs."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.rows.dedup
from pipeline.config import RunConfig
from pipeline.errors import EndpointRefused, StoppedEarly
from pipeline.events import ChunkLookedUp
from pipeline.outcomes import RowError
from pipeline.responses import Keys, ResponseStore, ResponseStores
from pipeline.rows import Allowance, Dedup, DriftGuard, Revision
from pipeline.system.threads import Stop

KEYS = Keys({"model": "m"})


class Asking:
    """What stands for the pool: notes what is asked and answers it when it is let."""

    def __init__(self, kit, *, fails=frozenset(), held=False):
        self.kit, self.fails = kit, fails
        self.asked = []
        self.go = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, items, arrived, provisional):
        self.asked += items
        await self.go.wait()
        outcomes = [
            RowError("bad") if item in self.fails else self.kit.outcome_of(item) for item in items
        ]
        arrived(range(len(items)), outcomes, "sha")


@asynccontextmanager
async def dedup_over(path, *, expected=None, store=ResponseStores, stop=None):
    events = []
    drift = DriftGuard(Revision(expected), events.append, allow_drift=False)
    allowance = Allowance(RunConfig(input="a.csv", output="b.parquet", endpoint="local"), 0, 0)
    async with Dedup(
        partial(store, path), events.append, drift, allowance, stop or Stop()
    ) as dedup:
        dedup.events = events
        yield dedup


def outcomes_of(dedup, asking, items):
    return dedup.outcomes(items, KEYS.of(items), asking, rows=len(items))


async def test_identical_inputs_in_flight_wait_for_one_request(kit, tmp_path):
    asking = Asking(kit, held=True)
    async with dedup_over(tmp_path / "s") as dedup:
        chunks = [["a", "b"], ["b", "c"], ["a", "b", "c"], ["d"]]
        tasks = [asyncio.create_task(outcomes_of(dedup, asking, chunk)) for chunk in chunks]
        await asyncio.sleep(1)
        assert sorted(asking.asked) == ["a", "b", "c", "d"]
        asking.go.set()
        assert await asyncio.gather(*tasks) == [kit.right(chunk) for chunk in chunks]
        looked_up = [event for event in dedup.events if isinstance(event, ChunkLookedUp)]
        assert sum(e.rows for e in looked_up) == 8
        assert sum(e.distinct for e in looked_up) == 4
        assert sum(e.asked for e in looked_up) == 4
        assert sum(e.hits for e in looked_up) == 0


@settings(max_examples=40, deadline=None)
@given(
    chunks=st.lists(
        st.lists(st.integers(0, 12).map(str), min_size=1, max_size=8, unique=True), max_size=8
    ),
    fails=st.sets(st.integers(0, 12).map(str), max_size=3),
    pauses=st.lists(st.sampled_from([0.0, 0.1, 0.5]), min_size=8, max_size=8),
)
def test_fan_out_over_chunks(kit, tmp_path_factory, chunks, fails, pauses):
    """Every chunk gets the right outcome of each of its inputs, and each is asked once.

    Errors as well, and whenever the chunks come.
    """

    async def main():
        asking = Asking(kit, fails=fails)
        path = tmp_path_factory.mktemp("fan") / "store"
        tasks = []
        async with dedup_over(path) as dedup:
            for chunk, pause_s in zip(chunks, pauses, strict=False):
                tasks.append(asyncio.create_task(outcomes_of(dedup, asking, chunk)))
                await asyncio.sleep(pause_s)
            found = await asyncio.gather(*tasks)
        for chunk, outcomes in zip(chunks, found, strict=True):
            assert outcomes == [
                RowError("bad") if item in fails else kit.outcome_of(item) for item in chunk
            ]
        assert len(asking.asked) == len(set(asking.asked))

    kit.run(main)


async def test_a_claim_that_fails_reaches_those_who_wait_for_it(kit, tmp_path):
    stopped = StoppedEarly("outage")
    asking = Asking(kit)
    waiting = asyncio.Event()

    async def fail(items, arrived, provisional):
        await waiting.wait()
        raise stopped

    async with dedup_over(tmp_path / "s") as dedup:
        first = asyncio.create_task(outcomes_of(dedup, fail, ["a", "b"]))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(outcomes_of(dedup, asking, ["b", "c"]))
        await asyncio.sleep(0.1)
        waiting.set()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert results == [stopped, stopped]


async def test_answers_are_durable_within_half_a_second(kit, tmp_path):
    asking = Asking(kit)
    async with dedup_over(tmp_path / "s") as dedup:
        await outcomes_of(dedup, asking, ["a", "b"])
        await asyncio.sleep(0.5)
        other = ResponseStore(tmp_path / "s")
        assert len(other.get(KEYS.of(["a", "b"]))) == 2
        other.close()


async def test_what_came_last_is_durable_at_the_end(kit, tmp_path):
    asking = Asking(kit)
    async with dedup_over(tmp_path / "s") as dedup:
        await outcomes_of(dedup, asking, ["a", "b"])
    store = ResponseStore(tmp_path / "s")
    assert len(store.get(KEYS.of(["a", "b"]))) == 2
    store.close()


async def test_what_comes_during_the_last_group_commit_is_durable(kit, tmp_path):
    """Answers that arrive while a commit is being written are in the next one, even at the end."""
    loop, writing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class SlowStore(ResponseStores):
        def put(self, answers):
            loop.call_soon_threadsafe(writing.set)
            assert go_on.wait(20)
            super().put(answers)

    async with dedup_over(tmp_path / "s", store=SlowStore) as dedup:
        dedup.save(KEYS.of(["a"]), [kit.outcome_of("a")], "sha")
        await writing.wait()
        dedup.save(KEYS.of(["b"]), [kit.outcome_of("b")], "sha")
        # The end comes while the commit is still being written.
        loop.call_soon(loop.call_soon, go_on.set)
    store = ResponseStore(tmp_path / "s")
    known = store.get(KEYS.of(["a", "b"]))
    store.close()
    assert len(known) == 2


async def test_a_commit_that_fails_is_told_at_once_and_at_the_end(kit, tmp_path):
    """The run stops at once, and a failure of the last group is not lost either."""

    class FullStore(ResponseStores):
        def put(self, answers):
            raise StoppedEarly("disk full")

    asking, stop = Asking(kit), Stop()
    with pytest.raises(StoppedEarly, match="disk full"):  # noqa: PT012  (what happens inside is the test)
        async with dedup_over(tmp_path / "s", store=FullStore, stop=stop) as dedup:
            await outcomes_of(dedup, asking, ["a"])
            await asyncio.sleep(1)
            assert str(stop.reason) == "disk full"


async def test_a_duplicate_of_a_bad_row_costs_nothing(kit, tmp_path):
    asking = Asking(kit, fails={"bad"})
    async with dedup_over(tmp_path / "s") as dedup:
        for _ in range(3):
            assert await outcomes_of(dedup, asking, ["bad", "a"]) == [
                RowError("bad"), kit.outcome_of("a"),
            ]  # fmt: skip
            await asyncio.sleep(1)
        assert asking.asked == ["bad", "a"]


async def test_errors_are_asked_again_in_another_run(kit, tmp_path):
    for _ in range(2):
        asking = Asking(kit, fails={"bad"})
        async with dedup_over(tmp_path / "s") as dedup:
            await outcomes_of(dedup, asking, ["bad"])
        assert asking.asked == ["bad"]


async def test_remembered_errors_are_bounded(kit, tmp_path, monkeypatch):
    """Past the bound a duplicate is asked again, and the memory stays flat."""
    monkeypatch.setattr(pipeline.rows.dedup, "MOST_FAILED", 2)
    texts = ["a", "b", "c", "d"]
    asking = Asking(kit, fails=set(texts))
    async with dedup_over(tmp_path / "s") as dedup:
        for _ in range(2):
            assert await outcomes_of(dedup, asking, texts) == [RowError("bad")] * 4
            await asyncio.sleep(1)
        assert asking.asked == [*texts, "c", "d"]
        assert len(dedup._failed) == 2


async def test_claims_do_not_pile_up(kit, tmp_path):
    asking = Asking(kit)
    async with dedup_over(tmp_path / "s") as dedup:
        for turn in range(5):
            await outcomes_of(dedup, asking, [f"{turn} {i}" for i in range(10)])
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.5)
        assert dedup._claims == {}
        assert dedup._unsaved == []


async def test_stored_answers_of_another_revision_are_asked_again(kit, tmp_path):
    asking = Asking(kit)
    async with dedup_over(tmp_path / "s") as dedup:
        await outcomes_of(dedup, asking, ["a", "b"])
    for expected, asks in (("sha", []), (None, []), ("newer", ["a", "b"])):
        again = Asking(kit)
        async with dedup_over(tmp_path / "s", expected=expected) as dedup:
            assert await outcomes_of(dedup, again, ["a", "b"]) == kit.right(["a", "b"])
        assert again.asked == asks
        if asks:
            break


async def test_an_answer_of_another_revision_hides_none_behind_it(kit, tmp_path):
    """What an earlier attempt was told by the live model counts, whatever a shared cache holds."""
    keys = KEYS.of(["a", "b"])
    for name, revision in (("cache", "old"), ("journal", "live")):
        store = ResponseStore(tmp_path / name)
        store.put([([key], [kit.outcome_of("ab"[i])], revision) for i, key in enumerate(keys)])
        store.close()

    def both(path):
        return ResponseStores(path, [tmp_path / "journal"])

    asking = Asking(kit)
    async with dedup_over(tmp_path / "cache", expected="live", store=both) as dedup:
        assert await outcomes_of(dedup, asking, ["a", "b"]) == kit.right(["a", "b"])
        (looked_up,) = [event for event in dedup.events if isinstance(event, ChunkLookedUp)]
    assert (asking.asked, looked_up.hits, looked_up.distinct) == ([], 2, 2)


async def test_a_pool_behind_it_answers_each_distinct_input_once(kit, tmp_path):
    """With 60% duplicates, requests equal the ceiling of distinct texts over batch size."""
    texts = [f"text {i * 7919 % 400}" for i in range(1000)]
    chunks = [list(dict.fromkeys(texts[at : at + 100])) for at in range(0, 1000, 100)]
    async with kit.serve() as server, kit.pool(server, batch_size=8) as running:
        async with Dedup(
            partial(ResponseStores, tmp_path / "s"),
            lambda _: None,
            running.drift,
            running.allowance,
            running.stop,
        ) as dedup:
            for _ in chunks:
                running.pool.demand.expect()
            running.pool.demand.end()
            tasks = [
                asyncio.create_task(
                    dedup.outcomes(chunk, KEYS.of(chunk), running.pool.ask, rows=100)
                )
                for chunk in chunks
            ]
            found = await asyncio.gather(*tasks)
        assert found == [kit.right(chunk) for chunk in chunks]
        assert len(server.requests) == 50


async def test_a_refusal_reaches_every_chunk(kit, tmp_path):
    async with kit.serve(lambda _: kit.Said(401, b"no")) as server:
        with pytest.raises(EndpointRefused):  # noqa: PT012  (what happens inside is the test)
            async with (
                kit.pool(server) as running,
                Dedup(
                    partial(ResponseStores, tmp_path / "s"),
                    lambda _: None,
                    running.drift,
                    running.allowance,
                    running.stop,
                ) as dedup,
            ):
                for _ in range(3):
                    running.pool.demand.expect()
                running.pool.demand.end()
                results = await asyncio.gather(
                    *(
                        dedup.outcomes(c, KEYS.of(c), running.pool.ask, rows=2)
                        for c in (["a", "b"], ["b", "c"], ["c", "d"])
                    ),
                    return_exceptions=True,
                )
                assert {type(result) for result in results} == {EndpointRefused}
                raise results[0]
