"""The drift guard: one output holds the labels of one revision of the model."""

from __future__ import annotations

import pytest

from pipeline.errors import RevisionMoved, StoppedEarly
from pipeline.rows import DriftGuard, Revision


def telling(kit, *revisions, every=5):
    """A script whose answers tell one revision after the other."""

    def script(asked):
        sha = revisions[min(asked.number // every, len(revisions) - 1)]
        return kit.Said(headers={} if sha is None else {"x-sha": sha})

    return script


async def test_drift_within_a_run_stops(kit):
    """The run is resumable, and its rows have labels of one revision.

    The answers of the new one are paid for, so they are stored, under its own name.
    """
    async with kit.serve(telling(kit, "one", "two")) as server:
        with pytest.raises(StoppedEarly, match="allow_drift") as stopped:
            async with kit.pool(server) as running:
                await running.label(kit.texts(400))
        assert len(server.requests) <= 5 + 4
    assert stopped.value.exit_code == 75
    assert "one" in str(stopped.value)
    assert "two" in str(stopped.value)
    assert [told for _, told in running.saved.values()].count("one") == 5 * 4
    assert {told for _, told in running.saved.values()} == {"one", "two"}
    assert running.answered == 5 * 4


async def test_drift_that_is_allowed_is_told(kit):
    async with (
        kit.serve(telling(kit, "one", "two")) as server,
        kit.pool(server, allow_drift=True, concurrency=1) as running,
    ):
        assert await running.label(kit.texts(80)) == kit.right(kit.texts(80))
        (notice,) = running.notices
        assert "two" in notice
        assert running.drift.revision.name == "two"
        assert {told for _, told in running.saved.values()} == {"one", "two"}


@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_drift_before_a_resume_stops_with_nothing_labelled(kit, dialect):
    async with kit.serve(telling(kit, "two")) as server:
        with pytest.raises(StoppedEarly, match="allow_drift"):
            async with kit.pool(server, expected="one", dialect=dialect) as running:
                await running.label(kit.texts(400))
        assert len(server.posts) <= 1 + 4
    assert running.answered == 0
    assert {told for _, told in running.saved.values()} == {"two"}


async def test_a_resume_on_the_same_revision_goes_on(kit):
    async with (
        kit.serve(telling(kit, "one")) as server,
        kit.pool(server, expected="one") as running,
    ):
        assert await running.label(kit.texts(40)) == kit.right(kit.texts(40))
        assert running.notices == []


async def test_a_server_that_tells_none_is_not_guarded(kit):
    async with (
        kit.serve(telling(kit, "one", None, "one", every=2)) as server,
        kit.pool(server, concurrency=1) as running,
    ):
        assert await running.label(kit.texts(40)) == kit.right(kit.texts(40))
        assert running.drift.revision.name == "one"


@pytest.mark.parametrize(
    ("current", "allow_drift", "stored", "accepted"),
    [
        (None, False, None, True),
        (None, False, "one", False),
        ("one", False, "one", True),
        ("one", False, "two", False),
        ("one", False, None, True),
        ("one", True, "two", True),
    ],
)
def test_which_stored_answers_are_used(current, allow_drift, stored, accepted):
    drift = DriftGuard(Revision(current), lambda _: None, allow_drift=allow_drift)
    assert drift.accepts(stored) is accepted


def test_what_stored_answers_tell_is_only_assumed():
    """The endpoint's first answer decides; only after it another one is a drift."""
    drift = DriftGuard(Revision(), lambda _: None, allow_drift=False)
    drift.assume("one")
    assert [drift.accepts(stored) for stored in ("one", "two", None)] == [True, False, True]
    with pytest.raises(RevisionMoved) as moved:
        drift.observe("two")
    assert moved.value.revision == "two"
    drift.observe("one")
    assert drift.revision == ("one", True)
    drift.assume("three")
    assert drift.revision == ("one", True)
    with pytest.raises(StoppedEarly):
        drift.observe("two")
