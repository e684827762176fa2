"""Cancellation of `aclassify` at every await, turn by turn of the loop (fault 9)."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import aclassify
from pipeline.job.status import status_of
from pipeline.store import LocalStore

pytestmark = [pytest.mark.fault(9), pytest.mark.usefixtures("small_chunks")]

TEXTS = [f"text {i}" for i in range(60)]
TABLE = pa.table({"text": TEXTS})
# The first and the last turns, where most opens and closes, are tried more closely than the rest.
BORDER = 100
CLOSE = 3


def descriptors():
    """What this process has open, but for the threads' and the test's own."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this very listing
            found.add((path.name, str(path.readlink())))
    return {each for each in found if "/proc/" not in each[1]}


def threads():
    """The threads but for those of the loop's own pool, which wait for the next work."""
    return {
        thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")
    }


@pytest.fixture
async def tidy(monkeypatch, tmp_path):
    """Give a check that all is as it was: tasks, threads, descriptors, temporary directories."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await asyncio.to_thread(lambda: None)
    before = threads()
    open_before = descriptors()

    async def check(*, thorough):
        # A closed connection lets go of its socket a turn later, and the server, which is a thread
        # of this process, of its end when it comes to it.
        for _ in range(5_000):
            if descriptors() <= open_before:
                break
            await asyncio.sleep(0.001)
        assert descriptors() <= open_before
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert threads() <= before
        assert list(temporary.iterdir()) == []
        if thorough:
            gc.collect()  # whoever is never asked for its exception complains when it goes
        assert complaints == []

    return check


async def cancelled_after(turns, server, checkpoint):
    """Cancel a call after so many turns of the loop; gives its error, None if it was done."""
    work = asyncio.create_task(
        aclassify(
            TABLE, endpoint=server.url, checkpoint=checkpoint, dialect="hf", batch_size=8,
            concurrency=2, grace_s=1,
        )
    )  # fmt: skip
    for _ in range(turns):
        if work.done():
            break
        await asyncio.sleep(0)
    if work.done():
        assert (await work)["error"].null_count == len(TEXTS)
        return None
    work.cancel()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await work
    return str(cancelled.value)


def take_what_is_kept(cancelled):
    """Take a temporary checkpoint away: it is there if something was answered, and is named."""
    left = list(Path(tempfile.gettempdir()).iterdir())
    assert [f'`checkpoint="{each}"`' in cancelled for each in left] == [True] * len(left)
    assert bool(left) == ("after storing" in cancelled)
    for each in left:
        found = status_of(each)
        assert found.answers or found.committed_rows
        shutil.rmtree(each)


@pytest.mark.parametrize(
    "stride", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("kept", [False, True], ids=["no checkpoint", "checkpoint"])
async def test_cancelled_after_every_turn(server, tmp_path, tidy, record_property, kept, stride):
    """Nothing is left but what is named; with a checkpoint, no stored text is sent again.

    A call takes some 350 turns of the loop. It goes on until a call was done before its turn came.
    """
    turns = tries = done = 0
    while done < 2:
        checkpoint = tmp_path / f"kept {turns}" if kept else None
        server.requests.clear()
        cancelled = await cancelled_after(turns, server, checkpoint)
        if cancelled is not None and not kept:
            take_what_is_kept(cancelled)
        await tidy(thorough=turns % 20 == 0)
        tries += 1
        if kept:
            await asyncio.to_thread(server.wait_for, lambda: not server.in_flight)
            stored = committed_texts(checkpoint, server)
            sent = len(server.requests)
            found = await aclassify(
                TABLE, endpoint=server.url, checkpoint=checkpoint, dialect="hf", batch_size=8
            )
            assert found["text"].to_pylist() == TEXTS
            assert found["error"].null_count == len(TEXTS)
            again = {text for each in server.requests[sent:] for text in each.texts}
            assert not again & stored
        done += cancelled is None
        turns += min(stride, CLOSE) if turns < BORDER else stride
    record_property("tries", tries)


def committed_texts(checkpoint, server):
    """The texts that a checkpoint must not ask for again: those of committed rows."""
    state = LocalStore(checkpoint / "labelled.parquet", checkpoint).load()
    return set() if state is None else set(TEXTS[: state.rows])
