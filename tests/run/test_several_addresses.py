"""Several addresses of one model: the run is the same, whichever of them there are."""

import signal

import pyarrow.parquet as pq
import pytest
from pyarrow.csv import read_csv

from pipeline.pool.introduction import GREETINGS


@pytest.fixture
def other(server):
    second = type(server)()
    yield second
    second.close()


@pytest.fixture
def source(write_csv, many_texts):
    return write_csv("in.csv", many_texts)


def asked(*servers):
    """Return what the servers were asked, but for what they were greeted with."""
    return [text for server in servers for text in server.texts if text not in GREETINGS]


@pytest.mark.fault(1)
def test_killed_and_continued_with_another_address(
    server, other, start, cli, source, tmp_path, committed, eventually
):
    """Nothing that was committed is asked again, and the bytes are those of a run with one."""
    output, alone = tmp_path / "out.parquet", tmp_path / "alone.parquet"
    third, texts = type(server)(), read_csv(source)["text"].to_pylist()
    try:
        for each in (server, other):
            each.script = lambda request: server.reply(hold=request.number >= 300)
        job = ("run", source, "--model", "org/m", "--batch-size", 16, "--concurrency", 8)
        addresses = ("--endpoint", server.url, "--endpoint", other.url)
        first = start(*job, "-o", output, *addresses)
        server.wait_for(lambda: sum(each.answered for each in server.requests) >= 290)
        eventually(lambda: committed(output))
        first.send(signal.SIGKILL)
        assert first.ended().code == -signal.SIGKILL
        done = {
            text
            for part in committed(output)
            for text in texts[part["first_row"] : part["first_row"] + part["rows"]]
        }
        assert done
        assert set(asked(server))
        assert set(asked(other))

        other.reset()
        added = ("--endpoint", other.url, "--endpoint", third.url)
        second = cli(*job, "-o", output, *added, "--json")
        assert second.code == 0, second.stderr
        assert second.json["endpoint"] == f"{other.url}, {third.url}"
        assert asked(third)
        assert not done & set(asked(other, third))
        assert pq.read_table(output)["text"].to_pylist() == texts

        # Twice the same address is a list of one.
        twice = ("--endpoint", third.url, "--endpoint", third.url)
        assert cli(*job, "-o", alone, *twice).code == 0
        assert output.read_bytes() == alone.read_bytes()
    finally:
        third.close()


def test_the_environment_names_several(server, other, cli, source, tmp_path):
    environ = {"CLASSIFY_ENDPOINT": f"{server.url} {other.url}", "CLASSIFY_MODEL": "m"}
    done = cli("run", source, "-o", tmp_path / "out.parquet", **environ)
    assert done.code == 0, done.stderr
    assert asked(server)
    assert asked(other)
    assert len(asked(server, other)) == len(set(asked(server, other)))


def test_one_that_is_another_model_is_told(server, other, cli, source, tmp_path):
    """By what it answers to a text of ours, before it is asked for any row."""

    def otherwise(request):
        labels = [[{"label": "SOMETHING ELSE", "score": 0.9}] for _ in request.texts]
        return other.reply(body=labels, delay_s=0.3)

    other.script = otherwise
    # The first to answer, and busy for long enough to hear of the other one.
    server.script = lambda asked: server.reply(delay_s=0.3 * (asked.texts[0] not in GREETINGS))
    addresses = ("--endpoint", server.url, "--endpoint", other.url, "--model", "m")
    settings = ("--limit", 2000, "--concurrency", 8)
    done = cli("run", source, "-o", tmp_path / "out.parquet", *addresses, *settings)
    assert done.code == 0, done.stderr
    assert f"{other.url} is left out" in done.stderr
    assert "another model" in done.stderr
    labels = set(pq.read_table(tmp_path / "out.parquet")["label"].to_pylist())
    assert "SOMETHING ELSE" not in labels
    assert not asked(other)


def test_a_list_needs_the_model(cli, source, tmp_path):
    done = cli(
        *("run", source, "-o", tmp_path / "out.parquet"),
        *("--endpoint", "http://127.0.0.1:1", "--endpoint", "http://127.0.0.1:2"),
    )
    assert done.code == 2
    assert "--model" in done.stderr


def test_a_probe_tries_each(server, other, cli):
    other.script = lambda _: other.reply(401, {"error": "Invalid token"})
    addresses = ("--endpoint", other.url, "--endpoint", server.url, "--model", "m")
    found = cli("probe", *addresses, "--json")
    assert (found.code, found.json["exit_code"]) == (0, 0)
    assert [each["exit_code"] for each in found.json["addresses"]] == [4, 0]
    told = cli("probe", *addresses).stdout
    assert told.index(other.url) < told.index(server.url)
    server.script = other.script
    assert cli("probe", *addresses).code == 4


def test_a_plan_measures_the_first(server, other, cli, source):
    addresses = ("--endpoint", server.url, "--endpoint", other.url, "--model", "m")
    found = cli("plan", source, "-o", "out.parquet", *addresses, "--probe", "--json")
    assert found.code == 0, found.stderr
    assert "the first of 2 addresses" in found.stderr
    assert server.requests
    assert not other.requests
