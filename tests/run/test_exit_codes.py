"""Each way a run can end: its exit code, one message, and what is kept."""

import asyncio
import signal
import socket

import pyarrow.parquet as pq
import pytest

from pipeline.errors import EndpointRefused, StoppedEarly, TooManyErrors

SIGNALS = [signal.SIGINT, signal.SIGTERM]
TOKEN = "hf_never_to_be_seen"


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i}" for i in range(3_000)])


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


def _one_message(ended):
    """The run's own words on stderr, after the line that says what it began."""
    begun, _, message = ended.stderr.partition("\n")
    assert "3,000 rows" in begun
    return message


def test_0_when_every_row_has_a_label(cli, server, source, output):
    ended = cli("run", source, "--endpoint", server.url, "-o", output)
    assert ended.code == 0
    assert "3,000 labelled" in ended.stdout
    assert "0 with errors" in ended.stdout


@pytest.mark.parametrize(
    ("max_errors", "code"), [((), 3), (("--max-errors", "1"), 0), (("--max-errors", "50%"), 0)]
)
def test_3_when_complete_rows_carry_errors(cli, server, write_csv, output, max_errors, code):
    """Errors within `max_errors` are expected ones, and no reason to wake anybody."""
    source = write_csv("in.csv", ["good", "", "bad"])
    ended = cli("run", source, "--endpoint", server.url, "-o", output, *max_errors)
    assert ended.code == code
    assert "1 with errors" in ended.stdout
    assert "'error'" in ended.stdout
    assert pq.read_table(output)["error"].to_pylist() == [None, "null text", None]


@pytest.mark.parametrize("max_errors", ["10", "1%"])
def test_3_as_soon_as_more_rows_failed_than_allowed(cli, server, source, output, max_errors):
    refuses = server.reply(400, {"error": "this row is no good"})
    # All rows, but not the plain text that tells whether it is the rows.
    server.script = lambda each: refuses if any("text" in text for text in each.texts) else None
    ended = cli(
        "run", source, "--endpoint", server.url, "-o", output, "--max-errors", max_errors, "--json"
    )
    assert ended.code == 3
    assert "max_errors" in ended.stderr
    assert "this row is no good" in ended.stderr
    assert ended.json["state"] == "stopped"
    assert not output.exists()
    # Splitting a batch of 32 down to its rows takes 63 requests.
    assert len(server.requests) <= 63 * 32


def test_after_too_many_errors_the_run_continues_with_a_higher_limit(label, server, source, output):
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if "text 7" in each.texts else None
    )
    with pytest.raises(TooManyErrors):
        label(source, output, max_errors=0)
    summary = label(source, output, max_errors=1)
    assert (summary["exit_code"], summary["errors"], summary["labelled"]) == (0, 1, 2_999)


@pytest.mark.parametrize(
    ("status", "mend"),
    [
        (401, "HF_TOKEN"),
        (402, "credits"),
        (403, "permission"),
        (404, "model"),
        (410, "--endpoint hf"),
    ],
)
def test_4_when_the_endpoint_refuses(cli, server, source, output, status, mend):
    """One clear message, at most one request a worker, and the token nowhere."""
    server.script = lambda _: server.reply(status, {"error": "the server's words"})
    ended = cli(
        "run", source, "--endpoint", server.url, "-o", output, "--concurrency", 8, "--json",
        HF_TOKEN=TOKEN,
    )  # fmt: skip
    assert ended.code == 4
    message = _one_message(ended)
    assert message.count("\n") == 1
    assert f"{status} the server's words" in message
    assert mend in message
    assert ended.json["message"] == message.strip()
    assert (ended.json["state"], ended.json["exit_code"]) == ("stopped", 4)
    assert 1 <= len(server.requests) <= 8
    assert all(each.headers["Authorization"] == f"Bearer {TOKEN}" for each in server.requests)
    _assert_nowhere(TOKEN, ended, output)


def _assert_nowhere(token, ended, output):
    assert token not in ended.stdout + ended.stderr
    for path in output.parent.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_4_once_the_work_goes_on_keeps_what_was_done(label, server, source, output):
    """A token that expires in the middle: mended, the run continues and pays for nothing twice."""
    server.script = lambda each: (
        server.reply(401, {"error": "expired"}) if each.number >= 40 else None
    )
    with pytest.raises(EndpointRefused):
        label(source, output, concurrency=4)
    refused = {text for each in server.requests if not each.answered for text in each.texts}
    assert len(server.requests) <= 44 + 1  # what was answered before is asked once more
    server.script = lambda _: None
    assert label(source, output)["state"] == "complete"
    assert server.sent_twice() == refused


def test_the_token_is_in_no_file_of_a_run_that_is_complete(cli, server, source, output):
    ended = cli("run", source, "--endpoint", server.url, "-o", output, HF_TOKEN=TOKEN)
    assert ended.code == 0
    assert server.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    _assert_nowhere(TOKEN, ended, output)


def test_75_at_max_requests(cli, server, source, output):
    command = ("run", source, "--endpoint", server.url, "-o", output)
    ended = cli(*command, "--max-requests", 20, "--json")
    assert ended.code == 75
    assert "max_requests" in ended.stderr
    assert len(server.requests) == ended.json["requests"] == 20
    assert not output.exists()
    assert cli(*command).code == 0
    assert len(server.requests) == 94
    assert not server.sent_twice()


def test_75_at_the_deadline(cli, server, source, output):
    """Also where the endpoint has stopped answering: what is in flight gets `grace_s` only."""
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    command = ("run", source, "--endpoint", server.url, "-o", output)
    ended = cli(*command, "--deadline", "1s", "--grace-s", 0.1)
    assert ended.code == 75
    assert "deadline" in _one_message(ended)
    assert "Traceback" not in ended.stderr
    assert not output.exists()
    answered = server.answered_texts
    server.release()
    server.script = lambda _: None
    before = len(server.requests)
    assert cli(*command).code == 0
    again = {text for each in server.requests[before:] for text in each.texts}
    assert len(answered) >= 10 * 32
    assert not answered & again


@pytest.fixture
def nobody_listens():
    """A port of this machine that refuses connections while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_75_when_the_endpoint_stays_down(cli, source, output, nobody_listens):
    ended = cli(
        "run", source, "--endpoint", nobody_listens, "-o", output, "--max-loading-s", 1, "--json"
    )
    assert ended.code == 75
    assert "nothing listens at" in ended.stderr
    assert "max_loading_s" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (ended.json["state"], ended.json["labelled"]) == ("stopped", 0)
    assert ended.json["requests"] <= 10
    assert not output.exists()


def test_75_when_the_model_keeps_loading(label, server, source, output):
    loading = {"error": "Model x is currently loading", "estimated_time": 0.2}
    server.script = lambda _: server.reply(503, loading)
    with pytest.raises(StoppedEarly, match="max_loading_s"):
        label(source, output, max_loading_s=1)
    assert len(server.requests) <= 10
    assert "x-wait-for-model" not in server.requests[0].headers
    assert server.requests[-1].headers["x-wait-for-model"] == "true"


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT-130", "SIGTERM-143"])
@pytest.mark.fault(8)
def test_130_and_143_after_draining(
    server, start, label, write_csv, output, committed, eventually, number
):
    """Every answer that was paid for is kept: over both runs each text is sent exactly once."""
    texts = [f"text {i}" for i in range(10_000)]
    source = write_csv("in.csv", texts)
    server.script = lambda _: server.reply(delay_s=0.02)
    running = start(
        "run", source, "--endpoint", server.url, "-o", output, "--concurrency", 8, "--json",
    )  # fmt: skip
    eventually(lambda: committed(output))
    running.send(number)
    ended = running.ended()
    assert ended.code == 128 + number
    assert (ended.json["state"], ended.json["exit_code"]) == ("stopped", 128 + number)
    for words in ("Traceback", "never retrieved", "was destroyed", "Error"):
        assert words not in ended.stderr
    assert signal.Signals(number).name in ended.stderr
    assert not output.exists()
    assert len(server.texts) == len(server.answered_texts) < len(texts)
    assert ended.json["labelled"] == sum(part["rows"] for part in committed(output))

    server.script = lambda _: None
    summary = label(source, output)
    assert summary["resumed_rows"] == ended.json["labelled"] > 0
    assert sorted(server.texts) == sorted(texts)
    at_once = output.with_name("at_once.parquet")
    label(source, at_once)
    assert output.read_bytes() == at_once.read_bytes()


@pytest.mark.parametrize("number", SIGNALS, ids=["SIGINT-130", "SIGTERM-143"])
@pytest.mark.fault(8)
def test_a_second_signal_stops_at_once(server, start, cli, source, output, number, eventually):
    """No answer is waited for, and the run is resumable all the same."""
    server.script = lambda each: server.reply(hold=True) if each.number >= 40 else None
    command = ("run", source, "--endpoint", server.url, "-o", output, "--concurrency", 4)
    running = start(*command, "--grace-s", "1h", "--json")
    server.wait_for(lambda: len(server.requests) > 40)
    running.send(number)
    log = output.with_name(f"{output.name}.run") / "events.jsonl"
    eventually(lambda: '"Stopping"' in log.read_text())  # or both would merge into one
    running.send(number)
    ended = running.ended()
    assert ended.code == 128 + number
    assert "Traceback" not in ended.stderr
    assert ended.json["exit_code"] == 128 + number
    held = {text for each in server.requests if not each.answered for text in each.texts}
    server.release()
    server.script = lambda _: None
    assert cli(*command).code == 0
    assert server.sent_twice() == held
    assert pq.read_metadata(output).num_rows == 3_000


@pytest.mark.fault(8)
def test_a_signal_while_nothing_is_answered_yet(server, start, source, output):
    """The model is loading, nothing is in flight: there is nothing to wait for."""
    server.script = lambda _: server.reply(503, {"error": "loading", "estimated_time": 600})
    running = start("run", source, "--endpoint", server.url, "-o", output)
    server.wait_for(lambda: len(server.requests) >= 2)
    running.send(signal.SIGTERM)
    ended = running.ended()
    assert ended.code == 143
    assert "Traceback" not in ended.stderr
    assert len(server.requests) <= 4


async def test_the_fixtures_leave_no_task_behind():
    """A run in this process cleans up: the loop of a later test has nothing of it."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
