"""The command on a Ray cluster: jobs, kills, nodes that lack the package, and what logs hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engines.conftest import digest
from tests.ray.conftest import NODE, ROOT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]
TOKEN = "hf_no_log_and_no_environment_has_this"
CLASSIFY = str(Path(sys.executable).with_name("classify"))
# What a node runs before anything else of Python.
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "pipeline":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
OTHER = "import pipeline.version; pipeline.version.__version__ = '0.0.1'"


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"review number {i}" for i in range(3_000)])


@pytest.fixture
def command(cluster, source, server):
    return (
        *("run", source, "-o", "out.parquet", "--endpoint", server.url, "--batch-size", 8),
        *("--engine", "ray", "--workers", 2, "--ray-address", cluster.address),
    )


def logs_of(cluster):
    """All that Ray has written down in this session."""
    for path in Path(cluster.head_node.get_session_dir_path()).rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def test_a_submitted_job(cluster, label, source, server, tmp_path):
    """With the token of a file: it goes to the endpoint, and nowhere else."""
    local = tmp_path / "local.parquet"
    label(source, local, batch_size=8)
    server.reset()
    token, home = tmp_path / "token", tmp_path / "job"
    token.write_text(TOKEN)
    home.mkdir()
    settings = {
        "engine": "ray", "workers": 2, "batch_size": 8, "endpoint": server.url, "dialect": "hf",
        "input": source, "output": tmp_path / "out.parquet", "token_file": token,
    }  # fmt: skip
    lines = [f"{name}: {value}\n" for name, value in settings.items()]
    (home / "nightly.yaml").write_text("".join(lines))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
            *("--address", f"http://{cluster.head_node.webui_url}", "--working-dir", str(home)),
            *("--", CLASSIFY, "run", "--config", "nightly.yaml"),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert digest(tmp_path / "out.parquet") == digest(local)
    assert {each.headers["Authorization"] for each in server.requests} == {f"Bearer {TOKEN}"}
    logs = list(logs_of(cluster))
    assert any(b"nightly.yaml" in content for _, content in logs)
    assert [path for path, content in logs if TOKEN.encode() in content] == []


def test_a_killed_run_leaves_no_actor_and_goes_on(
    command, start, server, tmp_path, actors_of, eventually, committed, write_csv
):
    write_csv("in.csv", [f"review number {i}" for i in range(9_000)])
    held = "review number 8800"
    server.script = lambda each: server.reply(hold=held in each.texts)
    output = tmp_path / "out.parquet"
    process = start(*command)
    eventually(lambda: committed(output))
    assert len(actors_of()) == 2
    process.send(signal.SIGKILL)
    killed_at = time.monotonic()
    eventually(lambda: not actors_of())
    time.sleep(1)
    # What was on its way when it was killed came within the second.
    assert [each for each in server.requests if each.at > killed_at + 1] == []
    sent, rows = len(server.requests), sum(part["rows"] for part in committed(output))
    assert rows > 0
    assert not output.exists()
    server.script = lambda _: None
    server.release()
    done = start(*command).ended()
    assert done.code == 0, done.stderr
    assert output.exists()
    again = {int(text.split()[-1]) for each in server.requests[sent:] for text in each.texts}
    assert again.isdisjoint(range(rows))


@pytest.mark.parametrize(
    ("prelude", "words"),
    [(WITHOUT, "does not have this package"), (OTHER, "has version 0.0.1 of this package")],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_node_without_the_same_package(
    cluster, command, start, server, tmp_path, prelude, words, late
):
    """Found before anything was sent, the exit code says so; found later, the run goes on later."""
    (tmp_path / "sitecustomize.py").write_text(prelude)
    path = os.pathsep.join([str(tmp_path), ROOT])
    others = [cluster.nodes.pop(), cluster.nodes.pop()]

    def add():
        return cluster.add_node(**NODE, env_vars={"PYTHONPATH": path})

    try:
        if late:
            process = start(*command, "--rate", 15)
            server.wait_for(lambda: len(server.requests) > 20)
        bad = add()
        for node in others:
            cluster.remove_node(node)
        if not late:
            process = start(*command)
        done = process.ended()
    finally:
        cluster.remove_node(bad)
        cluster.nodes += [cluster.add_node(**NODE) for _ in others]
        cluster.wait_for_nodes()
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.code == (75 if late else 2)
    assert (len(server.requests) > 0) == late
    assert start(*command).ended().code == 0
    assert (tmp_path / "out.parquet").exists()


def test_from_and_to_object_storage(cluster, label, source, server, monkeypatch):
    """As a run of one process has them: input, output and the state of the run."""
    from pipeline.store import output_at
    from pipeline.system import remote
    from tests.storage import S3Server

    s3 = S3Server()
    try:
        for name, value in s3.environment().items():
            monkeypatch.setenv(name, value)
        remote.store_at.cache_clear()
        bucket = s3.bucket()
        address = bucket.put("in.csv", source.read_bytes())
        for engine, more in (("local", {}), ("ray", {"ray_address": cluster.address})):
            output = f"{bucket.url}/{engine}.parquet"
            done = label(address, output, batch_size=8, engine=engine, **more)
            assert (done["state"], done["errors"]) == ("complete", 0)
        contents = []
        for engine in ("local", "ray"):
            (file,) = output_at(f"{bucket.url}/{engine}.parquet").files()
            with file.open() as opened:
                contents.append(opened.read())
        local, ray = contents
        assert ray == local
    finally:
        remote.store_at.cache_clear()
        s3.close()
