"""Cancellation of `aclassify` at every await, callback by callback of the loop (fault 9)."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import aclassify
from pipeline.job.status import status_of
from pipeline.store import LocalStore

pytestmark = [pytest.mark.fault(9), pytest.mark.usefixtures("small_chunks")]

TEXTS = [f"text {i}" for i in range(60)]
TABLE = pa.table({"text": TEXTS})


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


@contextmanager
def called_after(callbacks, delay_s, then):
    """Call `then` so long after so many callbacks were scheduled; 0: in the same turn or the next.

    Turns do not count: how many pass while a thread or the server is at work depends on the
    machine. Callbacks follow from what the call does, so their number is about the same everywhere.
    """
    loop = asyncio.get_running_loop()
    schedule, left = loop.call_soon, callbacks

    def call_soon(*args, **options):
        nonlocal left
        left -= 1
        if left == 0:
            loop.call_later(delay_s, then) if delay_s else schedule(then)
        return schedule(*args, **options)

    loop.call_soon = call_soon
    try:
        yield
    finally:
        del loop.call_soon


async def cancelled_after(callbacks, delay_s, server, checkpoint):
    """Cancel a call after so many callbacks of the loop; gives its error, None if it was done."""
    work = asyncio.create_task(
        aclassify(
            TABLE, endpoint=server.url, checkpoint=checkpoint, dialect="hf", batch_size=8,
            concurrency=2, grace_s=1,
        )
    )  # fmt: skip
    asked = []
    with called_after(callbacks, delay_s, lambda: asked.append(work.cancel())):
        await asyncio.wait([work])
    assert work.cancelled() == any(asked)
    if work.cancelled():
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await work
        return str(cancelled.value)
    assert (await work)["error"].null_count == len(TEXTS)
    return None


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
    "stride", [5, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("delay_s", [0, 0.001], ids=["at once", "in a thread's work"])
@pytest.mark.parametrize("kept", [False, True], ids=["no checkpoint", "checkpoint"])
async def test_cancelled_after_every_callback(
    server, tmp_path, tidy, record_property, kept, delay_s, stride
):
    """Nothing is left but what is named; with a checkpoint, no stored text is sent again.

    A call takes some 150 callbacks. It goes on until a call was done before its turn came.
    """
    tries = done = 0
    while done < 2:
        checkpoint = tmp_path / f"kept {tries}" if kept else None
        server.requests.clear()
        cancelled = await cancelled_after(1 + tries * stride, delay_s, server, checkpoint)
        if cancelled is not None and not kept:
            take_what_is_kept(cancelled)
        await tidy(thorough=tries % 20 == 0)
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
    assert tries * stride > 100
    record_property("tries", tries)


def committed_texts(checkpoint, server):
    """The texts that a checkpoint must not ask for again: those of committed rows."""
    state = LocalStore(checkpoint / "labelled.parquet", checkpoint).load()
    return set() if state is None else set(TEXTS[: state.rows])
