"""What the event log tells: attempts, waits and work, however long it is and where it is torn."""

import json
import re

import pytest

from pipeline.report.charts import NARROW, WIDE, latency_chart
from pipeline.report.history import read_history
from pipeline.store.files import DiskFile

BEGAN = 1_700_000_000.0


@pytest.fixture
def history(tmp_path):
    """Read a log of events, each as (second, name, facts)."""

    def read(*events, tail=""):
        log = tmp_path / "events.jsonl"
        lines = [
            json.dumps({"at": BEGAN + at, "event": name, **facts}) for at, name, facts in events
        ]
        log.write_text("\n".join([*lines, tail]))
        return read_history(DiskFile(log))

    return read


def started(at, resumed=0, **facts):
    return at, "RunStarted", {"resumed_rows": resumed, **facts}


def ended(at, state="stopped", code=75):
    return at, "RunEnded", {"state": state, "exit_code": code, "message": state}


def part(at, rows=10):
    return at, "PartCommitted", {"rows": rows}


def requests(at, *, ok=2, failed=0, inputs=10, **facts):
    counts = {"ok": ok, "server error": failed}
    latency = {"median_s": 0.1, "p95_s": 0.2, "slowest_s": 0.3}
    plain = {"sent": ok + failed, "retries": failed, "inputs": inputs, "failed_inputs": 0}
    told = {name: count for name, count in counts.items() if count}
    return at, "Requests", {"ended": told, **plain, **latency, **facts}


def test_no_log(tmp_path):
    assert read_history(DiskFile(tmp_path / "nowhere")).attempts == []


def test_attempts_follow_each_other_without_the_time_between(history):
    """Stopped, killed, continued: the time between them is nobody's work."""
    found = history(
        started(0), requests(5), part(9), ended(10),
        started(100, 10), requests(105), part(108),  # killed
        started(1_000, 20), requests(1_004, failed=1), part(1_005), ended(1_006, "complete", 0),
    )  # fmt: skip
    assert [attempt.seconds for attempt in found.attempts] == [10, 8, 6]
    assert [attempt.worked_before_s for attempt in found.attempts] == [0, 10, 18]
    assert [attempt.state for attempt in found.attempts] == ["stopped", None, "complete"]
    assert [attempt.requests for attempt in found.attempts] == [2, 2, 3]
    assert sum(attempt.retries for attempt in found.attempts) == 1
    assert found.seconds == 24
    assert sum(span.inputs for span in found.spans) == pytest.approx(30)
    assert sum(span.ended.total() for span in found.spans) == 7
    assert found.spans[-1].to_s <= 24


@pytest.mark.parametrize(
    "before",
    [
        [started(0), requests(5), part(9), ended(10, "complete", 0)],
        [started(0), requests(5), part(9), ended(10)],
    ],
    ids=["complete", "thrown away"],
)
def test_the_run_before_is_not_this_one(history, before):
    """A log outlasts its run: what was done for another is not counted."""
    found = history(*before, started(100), requests(103, inputs=7), ended(104))
    assert [attempt.began - BEGAN for attempt in found.attempts] == [100]
    assert sum(span.inputs for span in found.spans) == pytest.approx(7)


def test_a_run_that_begins_again_by_itself_is_one_attempt(history):
    found = history(started(0), part(2), started(3, again=True), requests(5), part(6), ended(7))
    assert len(found.attempts) == 1
    assert found.attempts[0].committed_rows == 10


def test_waits(history):
    """From when trouble began to when it ended; pauses of a 429 last as long as they were to."""
    loading = {"reason": "model loading", "detail": "503", "seconds": 20.0}
    throttled = {"reason": "throttled", "detail": "429", "seconds": 2.0}
    found = history(
        started(0),
        (1, "Waiting", {**loading, "so_far_s": 0.5}),
        (5, "Waiting", {**loading, "so_far_s": 4.5}),
        (8, "WaitEnded", {"reason": "model loading", "seconds": 7.5}),
        (20, "Waiting", throttled),
        (21, "Waiting", throttled),
        (30, "Waiting", throttled),
        (50, "Waiting", {"reason": "endpoint down", "detail": "refused", "seconds": None}),
        (55, "Notice", {"message": "something"}),
    )  # fmt: skip
    waits = [(wait.reason, wait.from_s, wait.to_s) for wait in found.waits]
    assert waits == [
        ("model loading", 0.5, 8),
        ("throttled", 20, 23),
        ("throttled", 30, 32),
        ("endpoint down", 50, 55),
    ]


def test_a_pause_ends_with_its_attempt(history):
    pause = {"reason": "throttled", "detail": "429", "seconds": 60.0}
    found = history(started(0), (4, "Waiting", pause), (5, "Notice", {"message": "killed then"}),
                    started(90), (91, "Waiting", pause), ended(93))  # fmt: skip
    assert [(wait.from_s, wait.to_s) for wait in found.waits] == [(4, 5), (6, 8)]


def test_a_log_of_days_is_summed_up(history):
    """A bounded number of spans, which together have all that was done."""
    seconds = 40_000
    found = history(started(0), *(requests(at + 1) for at in range(seconds)), ended(seconds))
    assert len(found.spans) <= 120
    assert sum(span.inputs for span in found.spans) == pytest.approx(10 * seconds)
    for span in found.spans[1:-1]:
        assert span.inputs_per_second == pytest.approx(10, rel=0.01)
        assert (span.median_s, span.slowest_s) == (pytest.approx(0.1), 0.3)


def test_a_line_that_covers_two_seconds_is_in_both(history):
    """So that ticks that are a little longer than a second leave no gaps."""
    lines = [requests(0.5 + 1.07 * i) for i in range(1, 26)]
    found = history(started(0), *lines, ended(27))
    assert [span.from_s for span in found.spans] == list(range(27))
    for span in found.spans[2:26]:
        assert span.inputs_per_second == pytest.approx(10 / 1.07, rel=0.01)


def test_a_log_of_before_is_read(history):
    """Lines without what was added to them later."""
    old = {"ended": {"ok": 3, "timeout": 1}, "inputs": 5, "failed_inputs": 0, "median_s": 0.5,
           "slowest_s": 1.0}  # fmt: skip
    found = history(started(0), (2, "Requests", old), ended(4))
    assert found.attempts[0].requests == 4
    (span,) = [span for span in found.spans if span.median_s is not None]
    assert (span.median_s, span.p95_s, span.ended["timeout"]) == (0.5, None, 1)


def test_senders(history):
    """How fast each worker was told to be, and how often workers and addresses were left out."""

    def workers(at, **speeds):
        told = [{"name": n, "in_flight": 1, "answers_per_second": s} for n, s in speeds.items()]
        return at, "Workers", {"wanted": 2, "at_work": told}

    old = started(0, endpoint="http://old")
    found = history(
        old, ended(5, "complete", 0), started(10, endpoint="http://a, http://b"),
        workers(11, one=10.0, two=20.0), workers(21, one=20.0, three=5.0),
        (22, "WorkerLost", {"worker": "two", "why": "killed", "unanswered": 3}),
        (23, "AddressLost", {"address": "http://b", "why": "down"}),
        (24, "AddressLost", {"address": "http://b", "why": "still down"}), ended(30),
    )  # fmt: skip
    told = {name: (each.answers_per_second, each.lost) for name, each in found.workers.items()}
    assert told == {"one": (15, 0), "two": (20, 1), "three": (5, 0)}
    lost = {name: (each.lost, each.why) for name, each in found.addresses.items()}
    assert lost == {"http://a": (0, ""), "http://b": (2, "still down")}


def test_no_line_across_a_time_without_answers(history):
    """At a cold start refusals come fast, which is no latency of the model."""
    found = history(
        started(0), *(requests(at) for at in range(1, 5)),
        *(requests(at, ok=0, failed=1, inputs=0) for at in range(5, 20)),
        *(requests(at) for at in range(20, 30)), ended(30),
    )  # fmt: skip
    without = history(started(0), *map(requests, range(1, 31)), ended(30))

    def lines(drawn):
        """Paths that go somewhere."""
        return len(re.findall(r'<path[^>]*d="M[^"]*L[^"]*"[^>]*stroke="var', drawn))

    for width in (WIDE, NARROW):
        drawn, whole = (str(latency_chart(each, width)) for each in (found, without))
        assert lines(drawn) - lines(whole) == 3
        # A dot for each second with answers, of which no line is needed.
        assert drawn.count('class="mark"') == 3 * 14
        assert whole.count('class="mark"') == 3 * 30


def test_torn_lines_are_passed_over(history):
    for tail in ('{"at": 1700000', "null\n", '"text"\n{}\n', "\x00\x00\x00"):
        found = history(started(0), requests(2), ended(4), tail=tail)
        assert len(found.attempts) == 1
        assert sum(span.inputs for span in found.spans) == pytest.approx(10)
