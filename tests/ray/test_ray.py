"""Runs with actors of a Ray cluster as workers: the same output, whatever becomes of a node."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import ray

from pipeline.engines import ray_actors
from pipeline.errors import SettingsError
from pipeline.events import WorkerLost
from tests.engines.conftest import Watch, digest, most_in_a_second
from tests.ray.conftest import HOME, NODE, raylet_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"review number {i}" for i in range(3_000)])


@pytest.fixture
def run(cluster, label, source, tmp_path, watch):
    """Label the table with actors."""

    def work(output="out.parquet", workers=2, **settings):
        settings = {"engine": "ray", "workers": workers, "batch_size": 8, **settings}
        settings.setdefault("ray_address", cluster.address)
        return label(source, tmp_path / output, observers=(watch,), **settings)

    return work


@pytest.fixture
def later(server):
    """Do something once the server has seen so many requests."""

    def at(requests, do):
        done = []

        def script(request):
            if request.number == requests and not done:
                done.append(do())
            return server.reply(delay_s=0.1)

        server.script = script
        return done

    return at


def test_the_output_has_the_same_bytes(run, label, source, tmp_path, watch):
    label(source, tmp_path / "local.parquet", batch_size=8)
    assert run()["state"] == "complete"
    assert digest(tmp_path / "out.parquet") == digest(tmp_path / "local.parquet")
    assert not ray.is_initialized()


def test_twice_the_actors_do_twice_as_much(run, server):
    """On a server that answers late, each with the same share of the requests in flight.

    What one CPU more or less costs a request (6 to 20 ms here) is little of the second that each
    takes. Each connection has its own pace, so neither the start nor the end counts.
    """
    server.script = lambda _: server.reply(delay_s=1.0)
    speed = {}
    for workers in (1, 2):
        server.requests.clear()
        run(f"{workers}.parquet", workers=workers, concurrency=4 * workers, batch_size=32)
        sent = {}
        for each in server.requests[len(server.requests) // 2 :]:
            sent.setdefault(each.port, []).append(each.at)
        assert len(sent) == 4 * workers
        speed[workers] = sum((len(at) - 1) / (at[-1] - at[0]) for at in sent.values())
    assert speed[2] / speed[1] >= 1.9


def test_the_rate_is_that_of_the_run(run, server):
    assert run(rate=60, workers=4)["state"] == "complete"
    assert most_in_a_second([each.at for each in server.requests]) <= 60 * 1.05 + 2


def test_the_actors_are_spread(run, cluster, later, actors_of):
    counts = later(50, lambda: [len(actors_of(node)) for node in cluster.nodes])
    run(workers=4)
    assert counts == [[2, 2]]


def test_a_killed_actor_is_replaced(run, later, watch, actors_of):
    later(60, lambda: actors_of()[0].kill())  # noqa: PLW0108 - there is none yet
    summary = run()
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    (lost,) = [told for told in watch.notices if isinstance(told, WorkerLost)]
    assert lost.unanswered > 0


@pytest.mark.parametrize("how", ["its raylet", "all of it", "removed"])
def test_a_node_is_lost(run, cluster, once, watch, actors_of, how):
    node = cluster.nodes.pop()

    def lose():
        if how == "removed":
            cluster.remove_node(node)
            return
        actors = actors_of(node) if how == "all of it" else []
        for process in (raylet_of(node), *actors):
            process.kill()

    once(60, lose)
    summary = run(rate=20)
    if how != "removed":
        cluster.remove_node(node)
    cluster.nodes.append(cluster.add_node(**NODE))
    cluster.wait_for_nodes()
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    assert summary["responses"].get("worker lost", 0) <= 32


def test_a_frozen_node_is_dismissed_and_sends_nothing_when_it_wakes(
    run, cluster, later, watch, actors_of, server
):
    node = cluster.nodes[-1]
    ports, processes = set(), []

    def freeze():
        found = actors_of(node)
        ports.update(each.laddr.port for actor in found for each in actor.net_connections())
        processes.extend([raylet_of(node), *found])
        for process in processes:
            process.suspend()

    def wake():
        for process in processes:
            if process.is_running():
                process.resume()

    def script(request):
        if request.number == 60:
            freeze()
            frozen.append(time.monotonic())
        if frozen and len(frozen) == 1 and time.monotonic() > frozen[0] + 14:
            frozen.append(time.monotonic())
            wake()
        return server.reply(delay_s=0.1)

    frozen = []
    server.script = script
    summary = run(rate=15, concurrency=8)
    wake()
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    lost = [told for told in watch.notices if isinstance(told, WorkerLost)]
    assert "not heard of for 10 s" in lost[0].why
    assert len(frozen) == 2
    assert ports
    # What was on its way when it froze came within the second.
    late = [each for each in server.requests if each.port in ports and each.at > frozen[0] + 1]
    assert late == []


def test_who_is_connected_stays_connected(run, cluster):
    """A run disconnects only what it has connected."""
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        assert run()["state"] == "complete"
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_no_cluster(cluster, label, source, tmp_path, server):
    with pytest.raises(SettingsError, match=r"a Ray cluster at 127\.0\.0\.1:1"):
        label(source, tmp_path / "x.parquet", engine="ray", ray_address="127.0.0.1:1")
    assert server.requests == []


@pytest.fixture
def listener():
    """Something at an address that is no cluster; it says what it is given, and nothing more."""
    held = []
    with socket.create_server((HOME, 0)) as server:

        def listen(says):
            def serve():
                with suppress(OSError):
                    while True:
                        held.append(server.accept()[0])
                        if says is None:
                            held.pop().close()
                        else:
                            held[-1].sendall(says)

            threading.Thread(target=serve, daemon=True).start()
            return f"{HOME}:{server.getsockname()[1]}"

        yield listen
    for each in held:
        each.close()


@pytest.fixture
def run_at(label, source, tmp_path):
    """Run with the cluster at an address."""
    return lambda address: label(source, tmp_path / "x.parquet", engine="ray", ray_address=address)


SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize("told", ["setting", "environment"])
@pytest.mark.parametrize(
    "says", [None, b"", SETTINGS[:8], b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=repr
)
def test_what_is_no_cluster_is_given_up(run_at, server, listener, monkeypatch, says, told):
    """Ray would try to reach it for minutes."""
    monkeypatch.setattr(ray_actors, "ANSWER_S", 0.3)
    address = listener(says)
    if told == "environment":
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingsError, match=f"cannot connect to .* at {address}") as refused:
        run_at(address if told == "setting" else None)
    assert refused.value.exit_code == 2
    assert server.requests == []


def test_a_cluster_that_hangs_is_given_up(source, tmp_path, server, listener):
    """Its connection is answered, and none of its calls; the process ends all the same."""
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "from pipeline.engines import ray_actors\n"
        "ray_actors.CONNECT_S = 1.0\n"
        "main(sys.argv[1:])\n"
    )
    command = ["run", source, "-o", tmp_path / "x.parquet", "--endpoint", server.url]
    command += ["--engine", "ray", "--ray-address", listener(SETTINGS)]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot connect to a Ray cluster" in done.stderr
    assert "no answer within 1 s" in done.stderr
    assert server.requests == []
