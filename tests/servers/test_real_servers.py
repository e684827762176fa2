"""infinity and MLflow themselves, on this machine: every row is what transformers answers.

`make test-servers` installs each server into an environment of its own, in `.servers/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tiny_bert import MAXIMUM, WORDS

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".servers"
# Loading torch takes its time on a small machine.
PATIENCE_S = 300.0
QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
COMMANDS = {
    "infinity": (
        *("infinity_emb", "v2", "--model-id", "{directory}/model", "--host", "127.0.0.1"),
        *("--port", "{port}", "--device", "cpu", "--engine", "torch", "--no-bettertransformer"),
    ),
    "mlflow": (
        *("mlflow", "models", "serve", "--model-uri", "{directory}/mlflow", "--host", "127.0.0.1"),
        *("--port", "{port}", "--env-manager", "local"),
    ),
}
LONG = "really good " * MAXIMUM


def _texts():
    """Texts of all lengths that the model takes, none of them twice."""
    chosen, words = random.Random(7), [word for word in WORDS[5:] if word.isalpha()]
    lengths = [1 + i % (MAXIMUM - 8) for i in range(300)]
    texts = [" ".join(chosen.choices(words, k=length)) for length in lengths]
    return list(dict.fromkeys(["", "caf\u00e9 \U0001f60d", *texts]))


TEXTS = _texts()


class Running(NamedTuple):
    """A server that answers, and what transformers' pipeline answers to TEXTS and LONG."""

    name: str
    url: str
    answers: list[list[dict[str, float | str]]]


def _free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _wait_for(process, url, log):
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.2)
    pytest.fail(log.read_text())


@pytest.fixture(scope="module", params=COMMANDS)
def running(request, tmp_path_factory):
    name = request.param
    directory, binaries = tmp_path_factory.mktemp(name), ENVIRONMENTS / name / "bin"
    texts, log, port = directory / "texts.json", directory / "log", _free_port()
    texts.write_text(json.dumps([*TEXTS, LONG]))
    path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **QUIET, "PATH": path, "PYTHONPATH": str(ROOT)}
    make = (binaries / "python", ROOT / "tests/servers/make_model.py", directory, texts)
    subprocess.run(make, env=environment, cwd=directory, check=True, timeout=PATIENCE_S)
    command = [part.format(directory=directory, port=port) for part in COMMANDS[name]]
    url = f"http://127.0.0.1:{port}"
    del environment["PYTHONPATH"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binaries / command[0], *command[1:]], env=environment, cwd=directory, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(process, url, log)
        yield Running(name, url, json.loads((directory / "answers.json").read_text()))
    finally:
        # It may have children, which are in the session that was started for it.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def label(running, tmp_path, cli):
    """Label texts by the command; give the rows and the summary."""

    def run(texts, *options):
        pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
        arguments = ("--endpoint", running.url, "--json", *options, "-o", "out.parquet")
        done = cli("run", "in.parquet", *arguments, CLASSIFY_DIALECT="auto")
        assert done.code == 0, done.stderr
        return pq.read_table(tmp_path / "out.parquet").to_pylist(), done.json

    return run


@pytest.mark.parametrize("dialect", ["auto", "stated"])
@pytest.mark.parametrize("batch_size", [1, 32, 128])
def test_every_row_is_what_transformers_answers(running, label, dialect, batch_size):
    stated = running.name if dialect == "stated" else "auto"
    rows, summary = label(TEXTS, "--dialect", stated, "--batch-size", batch_size)
    assert len(rows) == len(TEXTS)
    for row, answer in zip(rows, running.answers, strict=False):
        assert (row["label"], row["error"]) == (answer[0]["label"], None)
        assert row["score"] == pytest.approx(answer[0]["score"], abs=1e-5)
    assert summary["requests"] == -(-len(TEXTS) // batch_size)
    assert len({round(answer[0]["score"], 4) for answer in running.answers}) > len(TEXTS) / 2


def test_all_labels(running, label, cli, tmp_path):
    """Where only the best label can be had, more are refused before anything is sent."""
    if running.name == "mlflow":
        pq.write_table(pa.table({"text": ["good"]}), tmp_path / "in.parquet")
        arguments = ("--endpoint", running.url, "--top-k", "all", "-o", "out.parquet")
        for command in ("run", "plan", "probe"):
            refused = cli(command, "in.parquet", *arguments, "--dialect", "mlflow")
            assert (refused.code, "--top-k: all cannot be asked" in refused.stderr) == (2, True)
        return
    rows, _ = label(TEXTS, "--top-k", "all")
    for row, answer in zip(rows, running.answers, strict=False):
        assert [each["label"] for each in row["predictions"]] == [e["label"] for e in answer]
        for found, expected in zip(row["predictions"], answer, strict=True):
            assert found["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_a_text_that_is_too_long(running, label):
    """Truncated by infinity, an error of MLflow's model: the other rows have their labels."""
    texts = [*TEXTS[:40], LONG, *TEXTS[40:80]]
    rows, _ = label(texts, "--max-errors", 1)
    if running.name == "infinity":
        assert rows[40]["label"] == running.answers[-1][0]["label"]
        assert rows[40]["score"] == pytest.approx(running.answers[-1][0]["score"], abs=1e-5)
    else:
        assert rows[40]["error"].startswith("400 ")
    others = rows[:40] + rows[41:]
    expected = [answer[0]["label"] for answer in running.answers[:80]]
    assert [row["label"] for row in others] == expected


def test_a_text_over_the_limit_of_infinity(running, label):
    if running.name == "mlflow":
        return
    rows, _ = label(["good", "a" * 122_881, "bad"], "--max-errors", 1)
    assert rows[1]["error"] == "422 String should have at most 122880 characters"
    assert all(rows[i]["label"] for i in (0, 2))


def test_probe_and_run_agree(running, cli, tmp_path):
    probed = cli("probe", "--endpoint", running.url, "--json", CLASSIFY_DIALECT="auto")
    assert (probed.code, probed.json["dialect"]) == (0, running.name), probed.stderr
