"""The state of a run on object storage: the same promises as on a local disk, and bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from datetime import timedelta
from functools import lru_cache

import pyarrow.parquet as pq
import pytest
from obstore.store import from_url

from pipeline.errors import OutputBusy, OutputError, StoppedEarly
from pipeline.job import opening, summary
from pipeline.job.decisions import Complete, Standing
from pipeline.store import RunRecord, open_store, output_at
from pipeline.store.frames import FramesFile
from pipeline.store.log import Log
from pipeline.store.remote import RemoteObjects
from pipeline.system import remote
from tests.storage import ONLY_S3, S3rver

TEXTS = [f"review number {i}" for i in range(3_000)]


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", TEXTS)


@pytest.fixture(params=["out.parquet", "out"])
def output(request, tmp_path):
    return tmp_path / request.param


def files_of(place):
    """The bytes of each file of an output, on disk or at an address."""
    found = []
    for file in output_at(place).files():
        with file.open() as opened:
            found.append(opened.read())
    return found


@pytest.fixture
def expected(label, server, source, tmp_path, output):
    """What a local run writes that nothing disturbed."""
    undisturbed = tmp_path / "undisturbed" / output.name
    label(source, undisturbed)
    server.reset()
    return files_of(undisturbed)


def names(bucket):
    return sorted(each.removeprefix(f"{bucket.url}/") for each in remote.listed(f"{bucket.url}/"))


def test_the_output_is_that_of_a_local_run(label, server, bucket, source, output, expected):
    run_dir = f"{bucket.url}/runs/a"
    assert label(source, output, run_dir=run_dir)["state"] == "complete"
    assert files_of(output) == expected
    assert sorted(server.texts) == sorted(TEXTS)
    left = {name.split("/")[2] for name in names(bucket)}
    assert left == {"events", "lease", "log", "summary.json"}
    assert not list(output.parent.glob(".*"))
    assert not output.with_name(output.name + ".run").exists()
    sent = len(server.requests)
    assert label(source, output, run_dir=run_dir)["state"] == "complete"
    assert len(server.requests) == sent


def test_it_goes_on_on_another_machine(cli, server, bucket, source, output, expected, tmp_path):
    """Nothing of the first one is there: no temporary file, no home, no part of an output."""
    command = ("run", source, "-o", output, "--run-dir", f"{bucket.url}/run", "--json")
    command += ("--endpoint", server.url, "--batch-size", 8)
    for number, requests in enumerate((40, 90)):
        machine = tmp_path / f"machine {number}"
        machine.mkdir()
        places = {"TMPDIR": str(machine), "HOME": str(machine)}
        stopped = cli(*command, "--max-requests", requests, **places)
        assert stopped.code == 75, stopped.stderr
        assert not list(machine.iterdir())
        assert not output.exists()
    done = cli(*command)
    assert done.code == 0, done.stderr
    assert files_of(output) == expected
    assert not server.sent_twice()


@pytest.mark.fault(1)
def test_killed_halfway_sends_nothing_again_that_was_answered(
    server, start, cli, bucket, source, output, expected, eventually
):
    server.script = lambda each: server.reply(hold=True) if each.number >= 60 else None
    command = ("run", source, "--endpoint", server.url, "-o", output)
    command += ("--run-dir", f"{bucket.url}/run", "--batch-size", 16)
    first = start(*command)
    server.wait_for(lambda: sum(each.answered for each in server.requests) == 60)
    store = open_store(output, f"{bucket.url}/run")
    eventually(lambda: _answers(cli, output, bucket) >= len(server.answered_texts))
    first.send(signal.SIGKILL)
    first.ended()
    answered = server.answered_texts
    server.release()
    server.script = lambda _: None
    done = cli(*command)
    assert done.code == 0, done.stderr
    assert files_of(output) == expected
    assert not server.sent_twice() & answered
    assert store.load().complete is not None


def _answers(cli, output, bucket):
    found = cli("status", output, "--run-dir", f"{bucket.url}/run", "--json")
    return found.json["answers"] or 0 if found.code == 0 else 0


@pytest.mark.fault(10)
def test_a_second_run_is_refused(server, start, cli, bucket, source, tmp_path):
    server.script = lambda _: server.reply(hold=True)
    command = ("run", source, "--endpoint", server.url, "--run-dir", f"{bucket.url}/run")
    first = start(*command, "-o", tmp_path / "a.parquet")
    server.wait_for(lambda: server.in_flight > 0)
    sent = len(server.requests)
    second = cli(*command, "-o", tmp_path / "a.parquet")
    assert second.code == 5, second.stderr
    assert f"process {first.pid} on" in second.stderr
    assert len(server.requests) == sent
    told = cli("status", tmp_path / "a.parquet", "--run-dir", f"{bucket.url}/run", "--json")
    assert told.json["state"] == "running"
    assert told.json["pid"] == first.pid
    server.release()
    assert first.ended().code == 0


@ONLY_S3
def test_a_storage_that_ignores_conditions_is_refused(cli, server, proxy, bucket, source, output):
    proxy.faults.strips_conditions = True
    done = cli(
        "run", source, "-o", output, "--endpoint", server.url, "--run-dir", f"{bucket.url}/run"
    )
    assert done.code == 2
    assert "ignores that an object must be absent" in done.stderr
    assert not server.requests
    assert not names(bucket)


@pytest.mark.storage
def test_a_server_that_ignores_conditions_is_refused(cli, server, source, tmp_path, monkeypatch):
    """Another maker's, which answers 200 to each create."""
    s3rver = S3rver(tmp_path)
    for variable, value in s3rver.environment().items():
        monkeypatch.setenv(variable, value)
    place = ("--run-dir", "s3://box/run", "--endpoint", server.url)
    with closing(s3rver):
        done = cli("run", source, "-o", "out.parquet", *place)
    assert done.code == 2
    assert "ignores that an object must be absent" in done.stderr
    assert not server.requests


def test_places_that_cannot_be_are_refused(label, server, bucket, source, tmp_path):
    output = tmp_path / "out.parquet"
    bucket.put("other/thing.txt", b"not of a run")
    bucket.put("logs/log/00000001.json", b"not of a run")
    for run_dir, words in (
        (f"{bucket.url}-missing/run", "no such bucket"),
        (f"{bucket.url}/other", r"holds other objects, such as thing\.txt"),
        (f"{bucket.url}/logs", r"holds other objects, such as log/00000001\.json"),
        (bucket.url, "names no object in a bucket"),
        ("https://host/run", "no storage that can keep the state"),
        ("hf://datasets/owner/data/run", "no storage that can keep the state"),
        ("s3://user:secret@bucket/run", "holds a user name"),
    ):
        with pytest.raises(OutputError, match=words) as refused:
            label(source, output, run_dir=run_dir)
        assert "secret" not in str(refused.value)
    assert not server.requests
    assert names(bucket) == ["logs/log/00000001.json", "other/thing.txt"]


def test_status_report_and_plan_take_addresses(cli, server, bucket, source, tmp_path):
    run_dir, output = f"{bucket.url}/run", tmp_path / "out.parquet"
    common = ("-o", output, "--run-dir", run_dir, "--endpoint", server.url, "--batch-size", 8)
    planned = cli("plan", source, *common)
    assert planned.code == 0, planned.stderr
    assert cli("run", source, *common, "--max-requests", 40).code == 75
    for place in ((output, "--run-dir", run_dir), (run_dir,)):
        told = cli("status", *place, "--json")
        assert told.code == 0, told.stderr
        assert told.json["state"] == "stopped"
        assert told.json["answers"] == 320
    page = cli("report", run_dir, "-o", "page.html")
    assert page.code == 0, page.stderr
    assert json.loads(cli("plan", source, *common, "--json").stdout)["cache_hits"] > 0
    assert cli("status", output).code == 2


@pytest.mark.fault(32)
def test_create_resolves_what_the_storage_does_not_tell(proxy, bucket):
    """Of 300 entries each is there once, though answers are lost, refused and delayed."""
    proxy.faults.dropped, proxy.faults.status_503, proxy.faults.status_409 = 0.05, 0.05, 0.05
    log = Log(RemoteObjects(f"{bucket.url}/run"))
    log.read()
    for number in range(100):
        log.append({"kind": "run", "number": number}, snapshot=number == 0)
    read = Log(RemoteObjects(f"{bucket.url}/run")).read()
    assert [record["number"] for entry in read for record in entry.records] == list(range(100))
    assert all(proxy.counts[name] for name in ("dropped", "503", "409"))


@pytest.mark.fault(32)
def test_a_storage_that_is_gone_stops_the_run_resumably(
    label, server, proxy, bucket, source, output, expected, monkeypatch
):
    """What was answered before is not paid for again."""
    short = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    impatient = lru_cache(lambda place: from_url(place, retry_config=short))
    monkeypatch.setattr(remote, "store_at", impatient)
    monkeypatch.setattr("pipeline.store.remote._CREATE_ATTEMPTS", 2)

    def script(request):
        if request.number == 20:
            proxy.faults.status_503 = 1.0

    server.script = script
    with pytest.raises(StoppedEarly, match="once the storage can be reached"):
        label(source, output, run_dir=f"{bucket.url}/run", batch_size=16, concurrency=2)
    proxy.faults.status_503 = 0.0
    server.script = lambda _: None
    monkeypatch.setattr("pipeline.store.beat.WATCH_S", 0.5)
    assert label(source, output, run_dir=f"{bucket.url}/run")["state"] == "complete"
    assert files_of(output) == expected


@pytest.mark.fault(32)
def test_killed_while_answers_are_joined(proxy, bucket):
    """What a commit was told of is there once, on a storage that misbehaves, too."""
    proxy.faults.dropped, proxy.faults.status_503 = 0.05, 0.05
    code = (
        "import sys\n"
        "from pipeline.store import frames\n"
        "from pipeline.store.remote import RemoteObjects\n"
        "frames.MOST_SMALL, frames.JOINED_BYTES = 3, 200\n"
        "file = frames.FramesFile(RemoteObjects(sys.argv[1]), 'answers/')\n"
        "file.open()\n"
        "for number in range(int(sys.argv[2]), 10_000):\n"
        "    file.append(b'%d\\n' % number, 1)\n"
        "    file.sync()\n"
        "    print(number, flush=True)\n"
    )
    chance, told, first = random.Random(0), [], 1_000
    for _ in range(8):
        command = [sys.executable, "-c", code, bucket.url + "/run", str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            heard = [int(owner.stdout.readline()) for _ in range(chance.randrange(1, 25))]
            time.sleep(chance.random() / 20)
            owner.kill()
            heard += map(int, owner.stdout.read().split())
        told += heard
        first = heard[-1] + 2  # the next one may be there, and nobody was told
    proxy.faults.dropped = proxy.faults.status_503 = 0.0
    file = FramesFile(RemoteObjects(f"{bucket.url}/run"), "answers/")
    with file.reader() as reader:
        found = [int(line) for line in reader]
    assert len(found) == len(set(found)) == file.items()
    assert set(told) <= set(found)
    assert len(found) <= len(told) + 8
    assert len(file._listed()) < len(told) / 2


@pytest.mark.fault(10)
def test_an_owner_that_was_frozen_is_fenced_by_the_log(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.store.beat.BEAT_S", 1e9)  # as if it were frozen
    monkeypatch.setattr("pipeline.store.beat.WATCH_S", 0.2)
    frozen, other = (open_store(tmp_path / "out.parquet", f"{bucket.url}/run") for _ in range(2))
    frozen.lease.acquire(create=True)
    frozen.load()
    frozen.begin(RunRecord("test", {}, {"rows": 1}))
    monkeypatch.setattr("pipeline.store.beat.BEAT_S", 0.02)
    assert other.lease.acquire(create=False)
    other.load()
    other.repair()
    with pytest.raises(OutputBusy, match="took this output over"):
        frozen.log.add_cache("/late")
    frozen.lease.release()
    monkeypatch.setattr("pipeline.store.beat.WATCH_S", 60.0)  # it beats, however slowly
    assert other.lease.holder().pid == os.getpid()
    other.lease.release()
    assert other.lease.holder() is None
    assert other.lease.acquire(create=False)
    other.lease.release()


@pytest.mark.fault(10)
@pytest.mark.parametrize("owner", ["other", None])  # None: it has ended by now
def test_an_owner_that_lost_its_lease_stops(
    label, server, bucket, source, tmp_path, monkeypatch, owner
):
    """Its next beat tells it; it sends no more, and the summary stays that of the other run."""
    monkeypatch.setattr("pipeline.store.beat.BEAT_S", 0.05)

    def taken(request):
        if request.number == 2:
            holder = {"pid": 7, "host": "elsewhere", "since": 0.0, "owner": owner, "beat": 0}
            bucket.put("run/lease/00000009.json", json.dumps(holder).encode())
            bucket.put("run/summary.json", b'{"of": "the other"}')
        return server.reply(delay=0.2)

    server.script = taken
    with pytest.raises(OutputBusy) as stopped:
        label(
            source, tmp_path / "out.parquet", run_dir=f"{bucket.url}/run", batch_size=1,
            concurrency=1,
        )  # fmt: skip
    assert str(stopped.value) == (
        f"{bucket.url}/run: another run took this output over (process 7 on elsewhere). "
        "Wait for it, or stop it; then run the same command again."
    )
    assert len(server.requests) < 100
    left = RemoteObjects(f"{bucket.url}/run")
    assert left.get("summary.json") == b'{"of": "the other"}'
    assert max(left.list("lease/")) == "lease/00000009.json"


@pytest.mark.fault(10)
@pytest.mark.parametrize("lost", [False, True])
def test_a_last_commit_of_the_owner_before_stops_nobody(
    label, server, bucket, source, tmp_path, monkeypatch, lost
):
    """It was frozen, wakes, and writes once more between what the next one reads and writes.

    If that is the next owner, as the lease tells, it goes on instead.
    """
    output, run_dir = tmp_path / "out.parquet", f"{bucket.url}/run"
    with pytest.raises(StoppedEarly):
        label(source, output, run_dir=run_dir, batch_size=8, max_requests=40)
    woken = open_store(output, run_dir)
    woken.load()
    decide, decided = opening.decide, []

    def deciding(*arguments, **more):
        found = decide(*arguments, **more)
        decided.append(found)
        if len(decided) == 1:
            woken.log.add_cache("/late")
            if lost:
                bucket.put("run/lease/00000099.json", b"{}")
        return found

    monkeypatch.setattr(opening, "decide", deciding)
    if lost:
        with pytest.raises(OutputBusy):
            label(source, output, run_dir=run_dir)
        woken.log.add_cache("/and goes on")
        return
    assert label(source, output, run_dir=run_dir)["state"] == "complete"
    assert len(decided) == 2
    assert not server.sent_twice()


@pytest.mark.fault(1)
def test_the_last_record_of_a_killed_run_may_come_late(
    label, cli, server, bucket, source, tmp_path, monkeypatch
):
    """Its request was under way when it was killed, and is done once the next run has read."""
    output, run_dir = tmp_path / "out.parquet", f"{bucket.url}/run"
    command = ("run", source, "-o", output, "--run-dir", run_dir, "--endpoint", server.url)
    assert cli(*command, PIPELINE_FAILPOINT="finish.assembled").code == 137
    sent, decide, decided = len(server.requests), opening.decide, []
    killed = open_store(output, run_dir)
    killed.load()

    def deciding(config, *arguments, **more):
        found = decide(config, *arguments, **more)
        decided.append(type(found))
        if len(decided) == 1:
            killed.log.set_complete(summary.facts(config, killed.log.run, "complete"))
        return found

    monkeypatch.setattr(opening, "decide", deciding)
    assert label(source, output, run_dir=run_dir)["state"] == "complete"
    assert decided == [Standing, Complete]
    assert len(server.requests) == sent


def test_the_output_is_labelled_parquet(label, bucket, source, tmp_path):
    label(source, tmp_path / "new" / "out.parquet", run_dir=str(tmp_path / "elsewhere" / "run"))
    assert pq.read_table(tmp_path / "new" / "out.parquet")["text"].to_pylist() == TEXTS
    assert (tmp_path / "elsewhere" / "run" / "summary.json").exists()
