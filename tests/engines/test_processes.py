"""Runs with workers as processes: the same output, the same limits, whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from pipeline.engines import processes
from pipeline.errors import Interrupted, StoppedEarly
from pipeline.events import WorkerLost
from tests.engines.conftest import digest, most_in_a_second, workers_of

pytestmark = pytest.mark.fault(29)
HANGS = """
import os, sys, time
if "pipeline.engines.worker" in sys.orig_argv:
    try:
        os.close(os.open(__file__ + ".first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        time.sleep(600)
"""
ENDS = "import os; os.write(2, b'no such luck'); os._exit(3)"


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"review number {i}" for i in range(2_000)])


@pytest.fixture
def run(label, source, tmp_path, watch):
    """Label the table with workers."""

    def work(output="out.parquet", workers=2, **settings):
        settings = {"engine": "processes", "workers": workers, "batch_size": 8, **settings}
        return label(source, tmp_path / output, observers=(watch,), **settings)

    return work


def test_the_output_has_the_same_bytes(run, label, source, tmp_path, server):
    label(source, tmp_path / "local.parquet", batch_size=8)
    ports = {request.port for request in server.requests}
    summary = run(workers=3)
    assert summary["state"] == "complete"
    assert digest(tmp_path / "out.parquet") == digest(tmp_path / "local.parquet")
    assert not ports & {request.port for request in server.requests[250:]}


def test_a_killed_worker_is_replaced_and_nothing_is_lost(run, once, server, watch, tmp_path):
    """No failure is the endpoint's: the limit stays, and no text is an error."""
    server.script = lambda _: server.reply(delay_s=0.05)
    once(60, lambda: workers_of()[0].kill())  # noqa: PLW0108 - there is none yet
    summary = run()
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    (lost,) = [told for told in watch.notices if isinstance(told, WorkerLost)]
    assert "signal 9" in lost.why
    assert lost.unanswered == summary["responses"]["worker lost"] > 0
    assert len(server.sent_twice()) <= 8 * lost.unanswered


def test_max_requests_is_exact(run, once, server):
    server.script = lambda _: server.reply(delay_s=0.02)
    with pytest.raises(StoppedEarly, match="100 requests"):
        run(max_requests=100)
    assert len(server.requests) == 100


def test_a_short_freeze_costs_nothing(run, once, server, watch):
    """Requests go to the others meanwhile, and what waited in it is not sent in a burst."""
    server.script = lambda _: server.reply(delay_s=0.02)

    def freeze():
        worker = workers_of()[0]
        worker.suspend()
        time.sleep(3)
        worker.resume()

    once(30, freeze)
    summary = run(rate=60, concurrency=16)
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    assert watch.notices == []
    assert most_in_a_second([each.at for each in server.requests]) <= 60 * 1.05 + 2


def test_the_rate_is_that_of_the_run(run, server):
    summary = run(rate=100, workers=4, concurrency=16)
    assert summary["state"] == "complete"
    assert most_in_a_second([each.at for each in server.requests]) <= 100 * 1.05 + 2


def test_workers_that_never_answer_stop_the_run(run, once, server, monkeypatch, tmp_path):
    """What they wrote is told."""
    (tmp_path / "sitecustomize.py").write_text(ENDS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StoppedEarly, match=r"ended with 3; it wrote:\s+no such luck"):
        run()
    assert server.requests == []


def test_one_that_hangs_before_it_is_ready_is_replaced(
    run, server, watch, monkeypatch, tmp_path, source
):
    """The first one of all; the others start, and its place is filled again."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr(processes, "READY_S", 6.0)
    server.script = lambda _: server.reply(delay_s=0.2)
    summary = run(concurrency=4)
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    (lost,) = [told for told in watch.notices if isinstance(told, WorkerLost)]
    assert (lost.unanswered, lost.why) == (0, "not ready after 6 s")
    assert len(watch.workers[-1].at_work) == 2


def test_a_frozen_worker_is_not_taken_for_a_slow_endpoint(run, once, server, watch):
    """Its requests are overdue before it is given up, and go to the other one."""
    server.script = lambda _: server.reply(delay_s=0.05)

    def freeze():
        worker = workers_of()[0]
        worker.suspend()
        time.sleep(6)
        worker.resume()

    once(30, freeze)
    summary = run(rate=25, concurrency=8, timeout_s=3)
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    assert summary["responses"]["worker lost"] > 0
    assert "timeout" not in summary["responses"]
    assert [told for told in watch.notices if isinstance(told, WorkerLost)] == []


def test_a_loading_model_and_a_throttling_endpoint(run, server):
    """One gate: a handful of requests while the model loads, and pauses that all keep."""
    began = time.monotonic()

    def script(request):
        if time.monotonic() < began + 2:
            return server.reply(503, {"error": "loading", "estimated_time": 2.0})
        if request.number % 50 == 0:
            return server.reply(429, {"error": "slow"}, {"Retry-After": "0.2"})
        return None

    server.script = script
    summary = run(workers=4)
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    assert summary["responses"]["503"] < 12


def test_a_renewed_token_reaches_the_workers(run, server, tmp_path):
    token = tmp_path / "token"
    token.write_text("hf_the_first_one")

    def script(request):
        if request.number == 100:
            token.write_text("hf_the_second_one")
        known = "hf_the_second_one" if request.number >= 100 else "hf_the_first_one"
        if request.headers["Authorization"] != f"Bearer {known}":
            return server.reply(401, {"error": "expired"})
        return None

    server.script = script
    summary = run(token_file=token)
    assert (summary["state"], summary["errors"]) == ("complete", 0)


def test_an_interrupt_waits_for_the_answers_in_flight(start, source, server, tmp_path):
    server.script = lambda request: server.reply(hold=request.number >= 20)
    process = start(
        *("run", source, "--endpoint", server.url, "--engine", "processes", "--workers", 2),
        *("--batch-size", 8, "--concurrency", 8, "-o", tmp_path / "out.parquet"),
    )
    server.wait_for(lambda: server.in_flight == 8)
    process.send(signal.SIGINT)
    time.sleep(0.3)
    server.release()
    assert process.ended().code == 130
    sent = len(server.requests)
    server.script = lambda _: None
    again = start(
        *("run", source, "--endpoint", server.url, "--batch-size", 8, "-o", "out.parquet")
    )
    assert again.ended().code == 0
    assert sent == 28
    assert server.sent_twice() == set()


def test_a_killed_run_leaves_no_worker_and_goes_on(start, source, server, tmp_path, eventually):
    server.script = lambda _: server.reply(delay_s=0.05)
    command = ("run", source, "--endpoint", server.url, "--engine", "processes", "--workers", 2)
    command += ("--batch-size", 8, "-o", "out.parquet")
    process = start(*command)
    server.wait_for(lambda: len(server.requests) > 60)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    workers[0].suspend()
    process.send(signal.SIGKILL)
    eventually(lambda: not any(worker.is_running() for worker in workers))
    assert start(*command).ended().code == 0
    # Those in flight, and those answered in the half second before the kill.
    assert len(server.sent_twice()) <= 60 * 8


@pytest.mark.slow
def test_a_frozen_worker_is_dismissed_and_sends_nothing_more(run, once, server, watch):
    server.script = lambda _: server.reply(delay_s=0.1)
    frozen = {}

    def freeze():
        worker = workers_of()[0]
        worker.suspend()
        time.sleep(0.3)
        frozen["ports"] = {each.laddr.port for each in worker.net_connections()}
        frozen["sent"] = [each for each in server.requests if each.port in frozen["ports"]]

    once(60, freeze)
    summary = run(rate=15, concurrency=8)
    assert (summary["state"], summary["errors"]) == ("complete", 0)
    (lost,) = [told for told in watch.notices if isinstance(told, WorkerLost)]
    assert "not heard of for 10 s" in lost.why
    assert frozen["sent"] == [each for each in server.requests if each.port in frozen["ports"]]
    assert frozen["ports"]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [40, 200])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_no_second_has_more_requests_than_the_rate(run, server, rate, workers):
    summary = run(rate=rate, workers=workers, concurrency=32, batch_size=8 if rate == 40 else 2)
    assert summary["state"] == "complete"
    assert most_in_a_second([each.at for each in server.requests]) <= rate * 1.05 + 2


@pytest.mark.slow
def test_twice_the_workers_do_twice_as_much(run, server):
    """On a server that answers late, each with the same share of the requests in flight."""
    server.script = lambda _: server.reply(delay_s=0.3)
    took = {}
    for workers in (1, 2):
        server.requests.clear()
        run(f"{workers}.parquet", workers=workers, concurrency=4 * workers, batch_size=4)
        at = [each.at for each in server.requests]
        took[workers] = at[-1] - at[0]
    assert took[1] / took[2] >= 1.9


@pytest.mark.slow
def test_one_slow_worker_of_eight_slows_itself(run, server):
    """Ten times slower, it takes a tenth of what each of the others does."""
    slow = {}

    def script(request):
        if request.port not in slow:
            slow.setdefault("worker", workers_of()[0])
            ports = {each.laddr.port for each in slow["worker"].net_connections()}
            slow[request.port] = request.port in ports
        return server.reply(delay_s=2.0 if slow[request.port] else 0.2)

    server.script = script
    run(workers=8, concurrency=32, batch_size=1)
    at = [each.at for each in server.requests]
    # Without the beginning, where the limit rises, and the end, where the slow one is waited for.
    began, ended = at[0] + 6, at[-1] - 2.2
    of_slow = {port for port, is_slow in slow.items() if is_slow is True}
    assert 3 <= len(of_slow) <= 4
    sent = sum(began < each < ended for each in at)
    assert sent / ((28 / 0.2 + 4 / 2.0) * (ended - began)) >= 0.9


def test_a_stop_is_heard_while_workers_start(label, source, tmp_path, server):
    """Interrupted before anything was sent, the run ends at once."""
    from pipeline.config import RunConfig
    from pipeline.job.runner import Run

    config = RunConfig(
        input=str(source), output=tmp_path / "out.parquet", endpoint=server.url, dialect="hf",
        engine="processes",
    )  # fmt: skip
    import asyncio

    async def work():
        job = Run(config)
        task = asyncio.create_task(job.execute())
        while not workers_of():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        job.stop(Interrupted("Stopped.", signal_number=2))
        with pytest.raises(Interrupted):
            await task

    asyncio.run(work())


def test_everyone_who_watches_knows_the_workers(start, cli, source, server, tmp_path, eventually):
    """How many there are, what each does, and which was lost and why."""
    server.script = lambda request: server.reply(hold=request.number >= 60)
    process = start(
        *("run", source, "--endpoint", server.url, "--engine", "processes", "--workers", 2),
        *("--batch-size", 8, "--concurrency", 8, "-o", "out.parquet", "--log-format", "json"),
        *("--metrics-file", "run.prom"),
    )
    server.wait_for(lambda: server.in_flight == 8)

    def busy():
        """Return the names of workers that have requests in flight: one may be late to start."""
        workers = cli("status", "out.parquet", "--json").json["workers"] or []
        return [each["name"] for each in workers if each["in_flight"]]

    eventually(busy)
    names = busy()
    first = next(each for each in workers_of(process.pid) if f"process {each.pid}" in names[0])
    first.kill()

    def shown():
        found = cli("status", "out.parquet", "--json").json
        workers = found["workers"] or []
        in_flight = sorted(each["in_flight"] for each in workers)
        # What is told of the workers is up to a second older than the loss of one.
        replaced = not any(f"process {first.pid}" in each["name"] for each in workers)
        return found["workers_lost"] == 1 and replaced and in_flight == [0, 8]

    eventually(shown)
    assert "2 workers, 1 lost so far\n  worker" in cli("status", "out.parquet").stdout
    server.release()
    finished = process.ended()
    assert finished.code == 0
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    (lost,) = [line["message"] for line in lines if "is lost" in line["message"]]
    assert f"process {first.pid}" in lost
    assert lost.endswith(" requests are sent again: ended by signal 9.")
    assert lines[-1]["workers"] == 2
    assert cli("report", "out.parquet").code == 0
    page = " ".join((tmp_path / "out.parquet.html").read_text().split())
    assert "<h3>Workers</h3>" in page
    assert "ended by signal 9" in page
    metrics = (tmp_path / "run.prom").read_text()
    assert 'classify_workers{output="out.parquet"} 2.0' in metrics
    assert 'classify_workers_lost_total{output="out.parquet"} 1.0' in metrics
