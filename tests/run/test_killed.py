"""SIGKILL at any moment: the same command continues, and nothing is lost or paid for twice."""

import random
import signal

import pytest


@pytest.fixture
def source(write_csv, many_texts):
    return write_csv("in.csv", many_texts)


@pytest.fixture
def uninterrupted(label, server, source, tmp_path):
    """The bytes of an output whose run was not interrupted."""
    output = tmp_path / "uninterrupted.parquet"
    assert label(source, output)["state"] == "complete"
    server.reset()
    return output.read_bytes()


@pytest.mark.fault(1)
def test_killed_halfway_sends_nothing_again_that_was_answered(
    server, start, cli, source, tmp_path, uninterrupted, committed, until_stored
):
    """All that was stored survives SIGKILL; what was in flight is all that is sent again."""
    output = tmp_path / "out.parquet"
    server.script = lambda request: server.reply(hold=True) if request.number >= 500 else None
    command = ("run", source, "--endpoint", server.url, "-o", output)
    first = start(*command)
    store = output.with_name("out.parquet.run") / "responses.journal"
    server.wait_for(lambda: sum(each.answered for each in server.requests) == 500)
    until_stored(store, len(server.answered_texts))
    server.wait_for(lambda: server.in_flight > 0)
    first.send(signal.SIGKILL)
    assert first.ended().code == -signal.SIGKILL
    assert not output.exists()
    answered, rows = server.answered_texts, sum(part["rows"] for part in committed(output))

    server.release()
    server.script = lambda _: None
    second = cli(*command, "--json")
    assert second.code == 0, second.stderr
    assert output.read_bytes() == uninterrupted
    assert second.json["resumed_rows"] == rows
    assert not server.sent_twice() & answered
    assert len(server.sent_twice()) <= 32 * 32


@pytest.mark.parametrize("kills", [1, 2])
@pytest.mark.fault(1)
def test_killed_while_all_flows(
    server, start, source, tmp_path, uninterrupted, committed, eventually, kills
):
    """No text of a row that was committed is sent again, whenever the kill came."""
    chance = random.Random(kills)
    output = tmp_path / "out.parquet"
    # The last rows are held, so that no run comes to its end.
    server.script = lambda each: server.reply(
        delay_s=0.004, hold="review number 19000" in each.texts
    )
    command = ("run", source, "--endpoint", server.url, "-o", output, "--concurrency", 4)
    for _ in range(kills):
        process = start(*command)
        more = len(server.requests) + 100 + chance.randrange(100)
        server.wait_for(lambda: len(server.requests) > more)  # noqa: B023 - called at once
        eventually(lambda: committed(output))
        process.send(signal.SIGKILL)
        assert process.ended().code == -signal.SIGKILL
        assert not output.exists()
    rows = sum(part["rows"] for part in committed(output))
    assert rows >= 4096
    before = len(server.requests)
    server.release()
    server.script = lambda _: None
    last = start(*command, "--json").ended()
    assert last.code == 0, last.stderr
    assert output.read_bytes() == uninterrupted
    assert last.json["resumed_rows"] == rows
    numbers = {int(text.split()[-1]) for each in server.requests[before:] for text in each.texts}
    assert min(numbers) >= rows
