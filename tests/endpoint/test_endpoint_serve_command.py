"""`classify serve` refuses the impossible, announces itself, and ends on a signal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest

SERVE = [sys.executable, "-m", "pipeline.cli", "serve"]


@contextmanager
def serving(*arguments, **environment):
    with subprocess.Popen(
        [*SERVE, "--port", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    ) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def post(url, **headers):
    body = b'{"inputs": ["I love it"], "parameters": {"top_k": 1}}'
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
        return json.load(response)[0][0]["label"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "nope"], "The local endpoint has sentiment and language"),
        (["--model", "no/such/model"], "There is no directory no/such/model"),
        (["--model", "."], "The directory . holds no saved model, as it has no config.json"),
        (["--port", "70000"], "--port"),
        (["--share-500", "1.5"], "share_500 is 1.5"),
        (["--share-502", "-0.1"], "share_502 is -0.1"),
        (["--share-hang", "nan"], "share_hang is nan"),
        (["--share-500", "0.6", "--share-reset", "0.6"], "sum to 1.2"),
        (["--cold-start", "-1"], "cold_start_s is -1"),
        (["--latency-ms", "-1"], "latency_ms is -1"),
        (["--rate-limit", "0"], "rate_limit is 0"),
        (["--rate-hint", "shout"], "'retry-after', 'ratelimit', 'none'"),
        (["--poison", ""], "poison is empty"),
        (["--require-token"], "HF_TOKEN"),
        (["--host", "203.0.113.1"], "Cannot listen on 203.0.113.1"),
    ],
)
def test_refused_with_exit_code_2(arguments, says):
    environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
    done = subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*SERVE, "--port", str(port)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use" in done.stderr


def test_help_shows_every_option_and_examples():
    done = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, check=True)
    for name in ("500", "502", "reset", "hang", "truncated", "wrong"):
        assert f"--share-{name}" in done.stdout
    assert "classify serve --cold-start 20 --rate-limit 50 --share-500 0.02 --seed 7" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_announces_itself_and_ends_on_a_signal(number):
    with serving("--model", "language", "--model", "sentiment") as (process, announced):
        assert announced["pid"] == process.pid
        assert announced["models"] == ["language", "sentiment"]
        assert post(announced["url"]) == "en"
        assert post(announced["url"] + "/models/sentiment") == "positive"
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stdout.read() == b""


def test_stays_when_stdin_closes_unless_asked():
    with serving() as (process, announced):
        process.stdin.close()
        assert post(announced["url"]) == "positive"
        assert process.poll() is None


def test_ends_when_stdin_closes_where_asked():
    with serving("--until-stdin-closes") as (process, _):
        process.stdin.close()
        assert process.wait(30) == 0


def test_required_token_is_that_of_the_environment():
    with serving("--require-token", HF_TOKEN="open-sesame") as (_, announced):
        assert post(announced["url"], Authorization="Bearer open-sesame") == "positive"
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(announced["url"])
        with caught.value as refused:
            assert refused.status == 401


def test_options_reach_the_server():
    with serving("--cold-start", "3600", "--cold-start-from", "start") as (_, announced):
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(announced["url"])
        with caught.value as refused:
            assert refused.status == 503
            assert 0 < json.load(refused)["estimated_time"] <= 3600
