"""Progress: what people and collectors of logs see of a run while it works."""

import io
import json
from datetime import datetime, timedelta

import pytest

from pipeline.events import (
    ChunkLookedUp,
    NothingToRetry,
    PartCommitted,
    Requests,
    RunEnded,
    RunStarted,
    WaitEnded,
    Waiting,
    Why,
)
from pipeline.observers.progress import SPEED_OVER_S, JsonProgress, PlainProgress
from pipeline.observers.words import clock

AT = 1_790_000_000.5
STARTED = RunStarted(100_000, 0, "out.parquet", "http://x", None)


def requests(**facts):
    """What one tick told; `ok` requests were good."""
    ended = {(200, None): facts.pop("ok", 0)}
    plain = {"sent": 0, "retries": 0, "in_flight": 0, "peak_in_flight": 0, "seconds": ()}
    plain |= {"inputs": 0, "failed_inputs": 0, "limit": 32, "rate": None}
    return Requests(ended=ended, **{**plain, **facts})


class Shown:
    """A progress whose clock moves as the test says; `line` is what it would show now."""

    def __init__(self, kind=PlainProgress):
        self.now = 1_000.0
        self.stream = io.StringIO()
        self.progress = kind(self.stream, lambda: self.now, lambda: AT)

    def line(self):
        self.progress._draw()
        return self.lines()[-1]

    def lines(self):
        """The lines without the time, which each begins with."""
        lines = self.stream.getvalue().splitlines()
        if isinstance(self.progress, JsonProgress):
            return lines
        assert all(line.startswith(f"{clock(AT)} ") for line in lines)
        return [line.removeprefix(f"{clock(AT)} ") for line in lines]


@pytest.fixture
async def shown():
    """Inside of a running loop, since that is where events come."""
    found = Shown()
    yield found
    found.progress.close()


async def test_a_line_holds_what_there_is_to_know(shown):
    shown.progress(STARTED)
    shown.now += 10
    shown.progress(ChunkLookedUp(rows=4_096, distinct=4_000, hits=40, asked=3_960))
    shown.progress(requests(sent=130, retries=3, in_flight=28, rate=120.0, failed_inputs=2, ok=9))
    shown.progress(PartCommitted(0, 5_000, 1))
    assert shown.line() == (
        "5,000 of 100,000 rows (5%), 3 min 10 s left, 500 rows/s, 28 of 32 in flight, "
        "at most 120 requests/s, 3 retries, 2 errors, 40 known"
    )


async def test_what_there_is_not_is_left_out(shown):
    shown.progress(STARTED)
    shown.now += 10
    shown.progress(requests(in_flight=4, limit=4))
    assert shown.line() == "0 of 100,000 rows (0%), 0 rows/s, 4 of 4 in flight"


@pytest.mark.parametrize(
    ("rate", "words"), [(0.2, "0.2"), (18.62, "18.6"), (120.0, "120"), (1_234.5, "1,234")]
)
async def test_a_rate_is_told_to_three_digits(shown, rate, words):
    shown.progress(STARTED)
    shown.progress(requests(rate=rate))
    assert shown.line().endswith(f"at most {words} requests/s")


async def test_the_time_left_is_by_the_speed_of_the_last_minute(shown):
    """A slow beginning, or a fast one out of the cache, says nothing of the hour to come."""
    shown.progress(STARTED)
    for _ in range(100):
        shown.now += 1
        shown.progress(PartCommitted(0, 500, 0))
        shown.line()
    assert "1 min 40 s left, 500 rows/s" in shown.line()
    for _ in range(int(SPEED_OVER_S) + 1):
        shown.now += 1
        shown.progress(PartCommitted(0, 10, 0))
        shown.line()
    assert "1 h 22 min left, 10 rows/s" in shown.line()


async def test_the_time_left_counts_from_the_end_of_a_wait(shown):
    """Half an hour of loading says nothing of how fast the model is."""
    shown.progress(STARTED)
    shown.progress(Waiting(Why.LOADING, None, "503 loading"))
    shown.now += 1_800
    shown.line()
    shown.progress(WaitEnded(Why.LOADING, 1_800.0))
    shown.now += 10
    shown.progress(PartCommitted(0, 1_000, 1))
    assert "16 min 30 s left, 100 rows/s" in shown.line()
    assert shown.line().endswith(", 1 error")


async def test_rows_that_were_done_before_are_no_speed(shown):
    shown.progress(RunStarted(100_000, 50_000, "out.parquet", "http://x", "m"))
    shown.now += 10
    shown.progress(PartCommitted(0, 100, 0))
    assert shown.lines() == ["100,000 rows, 50,000 of them done before, endpoint http://x, model m"]
    assert "50,100 of 100,000 rows (50%), 1 h 23 min left, 10 rows/s" in shown.line()


async def test_a_wait_stands_in_the_line_until_an_answer_comes(shown):
    shown.progress(STARTED)
    shown.progress(Waiting(Why.LOADING, 20.0, "503 loading"))
    assert shown.lines()[-1] == "waiting: model loading, 0 s of about 20 s (HTTP 503 loading)"
    shown.now += 12
    assert shown.line() == "0 of 100,000 rows (0%), model loading, 12 s of about 20 s"
    shown.progress(WaitEnded(Why.LOADING, 14.0))
    assert shown.lines()[-1] == "going on after 14 s (model loading)"
    assert "loading" not in shown.line()
    shown.progress(Waiting(Why.THROTTLED, 5.0, "429 slow down"))
    shown.now += 2
    assert shown.line().endswith("throttled, going on in 3 s")
    shown.progress(requests(ok=1))
    assert "throttled" not in shown.line()


async def test_a_pause_that_has_passed_is_no_wait(shown):
    shown.progress(STARTED)
    shown.progress(Waiting(Why.THROTTLED, 5.0, "429 slow down"))
    shown.now += 5
    assert shown.line().endswith("0 rows/s, 0 of 0 in flight")


async def test_a_wait_is_announced_once(shown):
    """Each 429 says so, and a probe of an endpoint that is down too: a log needs it once."""
    shown.progress(STARTED)
    for _ in range(50):
        shown.progress(Waiting(Why.THROTTLED, 0.5, "429 slow down"))
        shown.now += 0.1
        shown.progress(requests(ok=1))
    for so_far_s in range(20):
        shown.progress(Waiting(Why.OUTAGE, 1.0, "503 no", float(so_far_s)))
    assert [line.partition(",")[0].partition(" for")[0] for line in shown.lines()[1:]] == [
        "waiting: throttled",
        "waiting: endpoint down",
    ]


async def test_the_end_is_told_while_the_output_is_put_together(shown):
    shown.progress(STARTED)
    shown.progress(PartCommitted(0, 100_000, 0))
    assert shown.line() == "100,000 of 100,000 rows (100%), putting the output together"


async def test_nobody_who_reads_is_no_reason_to_stop(tmp_path):
    class Closed(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    progress = PlainProgress(Closed())
    progress(STARTED)
    progress._tick()
    progress(NothingToRetry())
    progress(RunEnded("complete", 0, None))
    progress.close()


def test_lines_come_while_nothing_happens(label, server, write_csv, monkeypatch, tmp_path):
    """The endpoint is silent until the progress has been told twenty times."""
    monkeypatch.setattr(PlainProgress, "every_s", 0.01)
    silent = "0 of 3 rows (0%), 0 rows/s, 1 of 4 in flight, at most 50 requests/s"

    class Counted(io.StringIO):
        def write(self, text):
            if self.getvalue().count(silent) >= 20:
                server.release()
            return super().write(text)

    stream = Counted()
    server.script = lambda _: server.reply(hold=True)
    source = write_csv("in.csv", ["a", "b", "c"])
    label(source, tmp_path / "out.parquet", observers=(PlainProgress(stream),), rate=50)
    assert sum(line.endswith(silent) for line in stream.getvalue().splitlines()) >= 20


def test_the_limits_that_are_told_are_those_in_force(label, server, write_csv, tmp_path):
    """Also a rate that a 429 taught, where none was stated."""
    told = []
    server.script = lambda each: (
        server.reply(429, {"error": "slow"}, headers={"Retry-After": "0"})
        if each.number == 30
        else server.reply(delay_s=0.01)
    )
    source = write_csv("in.csv", [f"text {i}" for i in range(60)])
    label(source, tmp_path / "out.parquet", observers=(told.append,), batch_size=1, concurrency=6)
    ticks = [event for event in told if isinstance(event, Requests)]
    assert {1 <= tick.limit <= 6 for tick in ticks} == {True}
    throttled = [any(status == 429 for status, _ in tick.ended) for tick in ticks]
    first = throttled.index(True)
    assert all(tick.rate is None for tick in ticks[:first])
    assert ticks[first].rate > 0


# As lines of JSON


def logged(stderr):
    lines = [json.loads(line) for line in stderr.splitlines()]
    for line in lines:
        assert {"time", "level", "event", "message"} <= set(line)
        assert line["level"] in ("info", "warning", "error")
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)
    return lines


def test_json_lines_of_a_run(cli, server, write_csv, tmp_path):
    """Each line on stderr is one object; stdout is what it is without."""
    server.script = lambda each: (
        server.reply(503, {"error": "Model x is currently loading", "estimated_time": 0.1})
        if each.number == 0
        else None
    )
    source = write_csv("in.csv", ["a", "b", "c", ""])
    ended = cli(
        "run", source, "--endpoint", server.url, "-o", tmp_path / "out.parquet", "--log-format",
        "json", "--json", "--max-errors", 1,
    )  # fmt: skip
    assert ended.code == 0
    lines = logged(ended.stderr)
    kinds = [line["event"] for line in lines]
    assert (kinds[-1], lines[-1]["level"]) == ("ended", "info")
    assert [kind for kind in kinds if kind != "notice"] == [
        "started",
        "waiting",
        "going_on",
        "ended",
    ]
    started = lines[kinds.index("started")]
    assert (started["rows"], started["endpoint"]) == (4, server.url)
    summary = ended.json
    for key in ("state", "exit_code", "rows", "requests", "retries", "errors"):
        assert lines[-1][key] == summary[key], key


def test_json_lines_of_progress_have_the_numbers():
    shown = Shown(JsonProgress)
    shown.progress(requests(sent=7, in_flight=5, rate=2.0))
    line = json.loads(shown.line())
    assert (line["event"], line["level"]) == ("progress", "info")
    assert (line["in_flight"], line["concurrency_limit"], line["rate_limit"]) == (5, 32, 2.0)
    assert (line["requests"], line["waiting"]) == (7, None)
    shown.progress(Waiting(Why.THROTTLED, 4.0, "429 slow"))
    assert json.loads(shown.line())["waiting"] == "throttled, going on in 4 s"


@pytest.mark.parametrize(
    ("arguments", "status", "code", "state"),
    [
        (["in.csv", "--batchsize-of", "3"], None, 2, None),
        (["in.csv", "--rate", "-1"], None, 2, "refused"),
        (["missing.csv"], None, 2, "refused"),
        (["in.csv"], 401, 4, "stopped"),
        (["in.csv", "--max-requests", "1", "--batch-size", "1"], None, 75, "stopped"),
    ],
)
def test_json_lines_of_a_failure_end_with_its_message(
    cli, server, write_csv, arguments, status, code, state
):
    """The message once, as the last line; a flag that does not exist is told before any log."""
    if status:
        server.script = lambda _: server.reply(status, {"error": "no such token"})
    write_csv("in.csv", ["a", "b", "c"])
    ended = cli(
        "run", *arguments, "--endpoint", server.url, "-o", "out.parquet", "--log-format", "json"
    )
    assert ended.code == code
    assert ended.stdout == ""
    if state is None:
        assert "No such option" in ended.stderr
        return
    *before, last = logged(ended.stderr)
    assert (last["event"], last["level"]) == ("ended", "error")
    assert (last["state"], last["exit_code"]) == (state, code)
    assert last["message"] not in [line["message"] for line in before]
    assert len(last["message"]) > 20
