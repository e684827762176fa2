"""The drift guard: one output holds the labels of one revision of the model."""

from __future__ import annotations

import pytest

from pipeline.errors import StoppedEarly
from pipeline.workers import Revision


def telling(kit, *revisions, every=5):
    """A script whose answers tell one revision after the other."""

    def script(asked):
        sha = revisions[min(asked.number // every, len(revisions) - 1)]
        return kit.Said(headers={} if sha is None else {"x-sha": sha})

    return script


async def test_drift_within_a_run_stops(kit):
    """The answers of the new revision are not saved; the run is resumable."""
    async with kit.serve(telling(kit, "one", "two")) as server:
        with pytest.raises(StoppedEarly, match="--allow-drift") as stopped:
            async with kit.pool(server) as running:
                await running.label(kit.texts(400))
        assert len(server.requests) <= 5 + 4
    assert stopped.value.exit_code == 75
    assert "one" in str(stopped.value)
    assert "two" in str(stopped.value)
    assert {told for _, told in running.saved.values()} == {"one"}
    assert len(running.saved) == 5 * 4


async def test_drift_that_is_allowed_is_told(kit):
    async with (
        kit.serve(telling(kit, "one", "two")) as server,
        kit.pool(server, allow_drift=True, concurrency=1) as running,
    ):
        assert await running.label(kit.texts(80)) == kit.right(kit.texts(80))
        (notice,) = running.notices
        assert "two" in notice
        assert running.revision.current == "two"
        assert {told for _, told in running.saved.values()} == {"one", "two"}


@pytest.mark.parametrize("dialect", ["hf", "auto"])
async def test_drift_before_a_resume_stops_with_nothing_saved(kit, dialect):
    async with kit.serve(telling(kit, "two")) as server:
        with pytest.raises(StoppedEarly, match="allow-drift"):
            async with kit.pool(server, expected="one", dialect=dialect) as running:
                await running.label(kit.texts(400))
        assert len(server.posts) <= 1 + 4
    assert running.saved == {}


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
        assert running.revision.current == "one"


@pytest.mark.parametrize(
    ("expected", "allow_drift", "stored", "accepted", "current"),
    [
        (None, False, None, True, None),
        (None, False, "one", True, "one"),
        ("one", False, "one", True, "one"),
        ("one", False, "two", False, "one"),
        ("one", False, None, True, "one"),
        ("one", True, "two", True, "one"),
    ],
)
def test_which_stored_answers_are_used(expected, allow_drift, stored, accepted, current):
    revision = Revision(expected, lambda _: None, allow_drift=allow_drift)
    assert revision.accepts(stored) is accepted
    assert revision.current == current


def test_stored_answers_of_two_revisions_are_not_mixed():
    revision = Revision(None, lambda _: None, allow_drift=False)
    assert [revision.accepts(stored) for stored in ("one", "two", None, "one")] == [
        True, False, True, True,
    ]  # fmt: skip
