"""One run at a time for an output."""

import signal

import pytest


@pytest.fixture
def working(server, start, write_csv):
    """A run whose requests are held, so that it works until the server releases them."""
    server.script = lambda _: server.reply(hold=True)
    source = write_csv("in.csv", ["one", "two"])
    command = ("run", source, "--endpoint", server.url, "-o", "out.parquet")
    running = start(*command)
    server.wait_for(lambda: len(server.requests) == 1)
    return running, command


@pytest.mark.fault(10)
def test_a_second_run_ends_at_once_and_names_the_first(server, cli, working, listing):
    running, command = working
    before = listing()
    second = cli(*command, "--json")
    assert second.code == 5
    assert f"process {running.pid} " in second.stderr
    assert (second.json["exit_code"], second.json["message"]) == (5, second.stderr.strip())
    assert len(server.requests) == 1
    assert listing() == before

    for flag in ("--restart", "--overwrite"):
        assert cli(*command, flag).code == 5
        assert listing() == before
    assert running.running
    server.release()
    assert running.ended().code == 0


@pytest.mark.fault(10)
def test_a_killed_run_leaves_no_lock_behind(server, cli, working):
    running, command = working
    running.send(signal.SIGKILL)
    running.ended()
    server.release()
    assert cli(*command).code == 0


@pytest.mark.fault(10)
def test_another_output_is_free(server, cli, working, write_csv):
    _, command = working
    server.release()
    assert cli(*command[:-1], "another.parquet").code == 0
