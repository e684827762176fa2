"""The metrics file: what Prometheus reads of a run, whatever its end."""

import re
import signal
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import InputError, OutputBusy, SettingsError
from pipeline.events import MetricsFileFailed, Notice
from pipeline.observers import metrics_file
from pipeline.observers.words import notice
from pipeline.store import open_store

ROOT = Path(__file__).resolve().parents[2]
BASE_UNITS = ("_seconds", "_per_second")


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i % 250}" for i in range(300)])


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "classify.prom"


def numbers(path):
    """The samples of a file: name and labels but for the output, to value."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "output"}
            assert "output" in sample.labels, sample
            key = sample.name.removeprefix("classify_")
            found[key, *labels.values()] = sample.value
    return found


def test_the_numbers_are_those_of_the_summary(label, server, source, output, path):
    server.script = lambda each: server.reply(500, {"error": "no"}) if each.number == 3 else None
    summary = label(source, output, metrics_file=path, batch_size=10)
    found = numbers(path)
    assert found["rows",] == found["rows_committed",] == summary["rows"] == 300
    assert found["rows_failed",] == summary["errors"] == 0
    assert found["requests_total", "200"] == summary["responses"]["200"] == 25
    assert found["requests_total", "500"] == summary["responses"]["500"] == 1
    assert found["retries_total",] == summary["retries"] == 1
    assert found["inputs_distinct_total",] == summary["distinct_inputs"] == 250
    assert found["cache_hits_total",] == summary["cache_hits"] == 0
    assert found["inputs_failed_total",] == 0
    assert found["request_duration_seconds_count",] == summary["requests"] == 26
    assert found["request_duration_seconds_bucket", "+Inf"] == 26
    assert 0 < found["request_duration_seconds_sum",] < 26 * 120
    assert (found["exit_code",], found["running",], found["in_flight_requests",]) == (0, 0, 0)
    assert found["last_success_timestamp_seconds",] >= found["start_timestamp_seconds",] > 0
    assert f"127.0.0.1:{server.url.rpartition(':')[2]}" in path.read_text()


def test_prometheus_conventions_are_kept(label, source, output, path):
    """Each metric has HELP and TYPE before it, a counter ends in _total, a time in its unit."""
    label(source, output, metrics_file=path, rate=1_000)
    text = path.read_text()
    typed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert list(typed) == re.findall(r"^# HELP (\S+) \S.*$", text, re.MULTILINE)
    assert set(typed.values()) == {"counter", "gauge", "histogram"}
    for name, kind in typed.items():
        assert re.fullmatch(r"classify_[a-z_]+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        if "time" in name or "duration" in name or "rate" in name:
            assert name.endswith(BASE_UNITS), name
    for line in text.splitlines():
        name = re.split(r"[{ ]", line)[0]
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        assert line.startswith("# ") or family in typed, line
    buckets = re.findall(r'_bucket\{le="([^"]+)",output=', text)
    assert buckets == [*map(str, metrics_file.LATENCIES_S), "+Inf"]
    counts = [int(float(count)) for count in re.findall(r"_bucket\{.*\} (\S+)", text)]
    assert counts == sorted(counts)


def test_each_metric_is_in_the_documentation(label, source, output, path):
    label(source, output, metrics_file=path, rate=1_000)
    written = set(re.findall(r"^# TYPE (\S+)", path.read_text(), re.MULTILINE))
    guide = (ROOT / "docs" / "how-to" / "cron.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(classify_\w+)`", guide)) == written | OF_WORKERS


ENDINGS = {
    "missing input": (2, ["missing.csv"], None, None),
    "too many errors": (3, ["--max-errors", "0"], 400, None),
    "refused": (4, [], 401, None),
    "stopped early": (75, ["--max-requests", "2"], None, None),
    "interrupted": (130, ["--grace-s", "0.1"], None, signal.SIGINT),
    "terminated": (143, ["--grace-s", "0.1"], None, signal.SIGTERM),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_is_written_at_the_end_whatever_the_end_was(
    start, cli, server, source, output, path, eventually, ending
):
    """And the last success is still that of the run before, so that an alert can count from it."""
    code, more, status, number = ENDINGS[ending]
    base = ("--endpoint", server.url, "-o", output, "--batch-size", 10, "--metrics-file", path)
    assert cli("run", source, *base).code == 0
    before = numbers(path)
    server.reset()
    if status:
        refused = server.reply(status, {"error": "no"})
        server.script = lambda each: None if each.texts == ["Good."] else refused
    if number:
        server.script = lambda each: server.reply(hold=True) if each.number >= 5 else None
    inputs = [] if "missing.csv" in more else [source]
    running = start("run", *inputs, *base, "--overwrite", *more)
    if number:
        server.wait_for(lambda: len(server.requests) > 6)
        eventually(lambda: numbers(path)["running",] == 1)
        assert numbers(path)["exit_code",] == 0
        running.send(number)
    ended = running.ended()
    assert ended.code == code, ended.stderr
    found = numbers(path)
    assert (found["exit_code",], found["running",]) == (code, 0)
    key = ("last_success_timestamp_seconds",)
    assert found[key] == before[key]
    server.release()
    server.script = lambda _: None
    assert cli("run", source, *base, "--overwrite", "--restart").code == 0
    assert numbers(path)["exit_code",] == 0
    assert numbers(path)[key] > before[key]


def test_a_run_that_has_nothing_to_do_is_a_success(label, source, output, path):
    label(source, output)
    label(source, output, metrics_file=path)
    found = numbers(path)
    assert (found["rows",], found["rows_committed",], found["exit_code",]) == (300, 300, 0)
    assert found["last_success_timestamp_seconds",] > 0


def test_rows_with_an_error_are_counted_over_all_attempts(cli, server, write_csv, output, path):
    source = write_csv("in.csv", ["", "good", ""])
    command = ("run", source, "--endpoint", server.url, "-o", output, "--metrics-file", path)
    assert cli(*command).code == 3
    assert numbers(path)["rows_failed",] == 2
    assert cli(*command).code == 3
    assert (numbers(path)["rows_failed",], numbers(path)["exit_code",]) == (2, 3)


def test_the_file_is_that_of_the_run_which_holds_the_output(
    start, cli, server, source, output, path, eventually
):
    """A second run that finds the output busy leaves the numbers of the first alone."""
    server.script = lambda _: server.reply(hold=True)
    command = ("run", source, "--endpoint", server.url, "-o", output, "--metrics-file", path)
    first = start(*command)
    server.wait_for(lambda: bool(server.requests))
    eventually(path.exists)
    before = path.read_bytes()
    assert cli(*command).code == OutputBusy.exit_code
    assert path.read_bytes() == before
    server.release()
    assert first.ended().code == 0
    assert numbers(path)["exit_code",] == 0


@pytest.mark.fault(10)
def test_a_run_that_loses_its_output_works_no_more(label, server, source, output, path):
    """Another one took it over, whose file is on another machine: this one tells the end."""
    other = open_store(output)

    def taken(request):
        if request.number == 2:
            other.load()
            other.log.add_cache("/of another run")

    server.script = taken
    with pytest.raises(OutputBusy):
        label(source, output, metrics_file=path, batch_size=1, concurrency=1)
    assert (numbers(path)["running",], numbers(path)["exit_code",]) == (0, 5)


def test_it_is_written_while_the_run_works(label, server, source, output, path, monkeypatch):
    monkeypatch.setattr(metrics_file, "WRITE_EVERY_S", 0.0)
    seen = []

    def look(_):
        seen.append(numbers(path) if path.exists() else {})
        return server.reply(delay_s=0.05)

    server.script = look
    label(source, output, metrics_file=path, batch_size=10, concurrency=1)
    done = [each.get(("requests_total", "200"), 0) for each in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert 0 < done[-1] < 25
    assert (seen[-1]["running",], seen[-1]["rows",]) == (1, 300)
    assert seen[-1]["in_flight_requests_limit",] == 1


def test_a_slow_disk_holds_up_nothing(label, server, source, output, path, monkeypatch):
    """The first write lasts until the endpoint has been asked ten times, which it must not stop."""
    asked, replace = threading.Event(), metrics_file._replace

    def slowly(*arguments):
        assert asked.wait(40)
        replace(*arguments)

    def look(each):
        if each.number == 10:
            asked.set()

    monkeypatch.setattr(metrics_file, "_replace", slowly)
    server.script = look
    label(source, output, metrics_file=path, batch_size=10)
    assert numbers(path)["exit_code",] == 0


def test_a_file_that_cannot_be_written_is_told_once_and_stops_nothing(
    label, source, output, tmp_path, monkeypatch
):
    monkeypatch.setattr(metrics_file, "WRITE_EVERY_S", 0.0)
    told = []
    path = tmp_path / "no such directory" / "classify.prom"
    summary = label(source, output, metrics_file=path, observers=(told.append,))
    assert summary["state"] == "complete"
    (failed,) = [event for event in told if isinstance(event, Notice)]
    assert failed == MetricsFileFailed(str(path), "No such file or directory")
    assert "metrics_file" in notice(failed)


# Written where an engine has workers, see tests/engines.
OF_WORKERS = {"classify_workers", "classify_workers_lost_total"}
OURS = b"# HELP classify_run_info What runs.\n"


@pytest.mark.parametrize("content", [b"", OURS, OURS + b"\xff\xfe", OURS + b"classify_x{ 3 x\n"])
def test_a_torn_one_is_replaced(label, source, output, path, content):
    path.write_bytes(content)
    label(source, output, metrics_file=path)
    assert numbers(path)["exit_code",] == 0


@pytest.mark.parametrize("content", [b"\xff\xfe", b"classify_exit_code{ 3 x\n", b"# TYPE\n"])
def test_the_file_of_another_program_is_left_as_it_is(label, source, output, path, content):
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="no metrics file of a run"):
        label(source, output, metrics_file=path)
    assert path.read_bytes() == content


def test_nothing_is_taken_over_from_another_output(label, source, output, path, tmp_path):
    label(source, output, metrics_file=path)
    with pytest.raises(InputError):
        label(tmp_path / "missing.csv", tmp_path / "other.parquet", metrics_file=path)
    found = numbers(path)
    assert found["exit_code",] == 2
    assert ("last_success_timestamp_seconds",) not in found


def test_no_thread_and_no_temporary_file_stays(label, source, output, path, tmp_path):
    label(source, output, metrics_file=path)
    assert not [each for each in threading.enumerate() if "metrics" in each.name]
    assert [each.name for each in tmp_path.glob("*.prom*")] == [path.name]
