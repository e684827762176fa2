"""One answer that does not come holds back the rows that it is for, and no others."""

from __future__ import annotations

import signal
import time

import pytest

pytestmark = [pytest.mark.fault(1), pytest.mark.fault(17)]


def kill(work, process):
    """Kill it once all answers are stored; the server is rid of what it holds after that."""
    time.sleep(0.6)
    killed_at = time.monotonic()
    process.send(signal.SIGKILL)
    work.server.release()
    return work.end(process, killed_at=killed_at)


@pytest.mark.parametrize("out", ["out.parquet", "out"])
def test_the_oldest_chunk_is_answered_last(job, watch, record_property, out):
    """All others are committed meanwhile, and after a kill only what was open is asked.

    The table is so wide that by its bytes each chunk is also a file of a directory.
    """
    work = job("parquet", out)
    held = work.texts[200]
    work.server.script = lambda request: work.server.reply(hold=held in request.texts)
    process = work.begin()

    def others_are_committed():
        found = work.committed_ranges()
        return sum(map(len, found)) == len(work.texts) - found[0].start if found else False

    watch(process, others_are_committed)
    attempt = kill(work, process)
    assert attempt.code == -9
    first, *_, last = attempt.committed
    assert 0 < first.start < last.start
    sent = len(work.server.requests)
    work.server.script = lambda _: None
    work.resume()
    record_property("sent again", work.check())
    (asked,) = (request.texts for request in work.server.requests[sent:])
    assert held in asked
    assert set(asked) <= set(work.texts[: first.start])


def test_the_next_attempt_reads_on_between_holes(job, watch, record_property):
    """Two stragglers, two holes: both are closed, and what lies between them is not asked."""
    work = job(rows=30_000, batch_size=256)
    held = {work.texts[300], work.texts[20_000]}
    work.server.script = lambda asked: work.server.reply(hold=bool(held & set(asked.texts)))
    process = work.begin()
    watch(process, lambda: sum(map(len, work.committed_ranges())) >= 30_000 - 2 * 4_096)
    attempt = kill(work, process)
    starts = {rows.start for rows in attempt.committed}
    assert 0 not in starts
    assert 4 * 4_096 not in starts
    sent = len(work.server.requests)
    work.server.script = lambda _: None
    work.resume()
    record_property("sent again", work.check())
    texts = [text for request in work.server.requests[sent:] for text in request.texts]
    assert held <= set(texts)
    assert len(texts) <= 2 * 256
