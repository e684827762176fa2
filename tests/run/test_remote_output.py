"""The output at an address: the bytes of a local one, whole or not to be seen."""

import signal
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config import RunConfig
from pipeline.errors import OutputError
from pipeline.job import stream
from pipeline.store import output_at
from pipeline.system import globs, remote
from tests.storage import Hub

TEXTS = [f"review number {i}" for i in range(600)]


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    server.files = {"README.md": b"# Words"}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.close()


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", TEXTS)


@pytest.fixture(params=["out.parquet", "out"])
def name(request, monkeypatch):
    """A file, or a directory of several."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 64)
    monkeypatch.setattr(stream, "FILE_ROWS", 128)
    return request.param


@pytest.fixture
def expected(label, server, source, tmp_path, name):
    label(source, tmp_path / "local" / name)
    server.reset()
    return files_of(tmp_path / "local" / name)


def files_of(place):
    found = []
    for file in output_at(place).files():
        with file.open() as opened:
            found.append(opened.read())
    return found


def names(bucket):
    return sorted(each.removeprefix(f"{bucket.url}/") for each in remote.listed(f"{bucket.url}/"))


@pytest.mark.parametrize("state", ["beside", "local"])
def test_the_output_is_that_of_a_local_run(
    label, server, bucket, source, name, expected, tmp_path, state
):
    run_dir = None if state == "beside" else tmp_path / "run"
    output = f"{bucket.url}/deep/{name}"
    done = label(source, output, run_dir=run_dir)
    assert done["state"] == "complete"
    assert done["output"] == output
    assert files_of(output) == expected
    written = [each for each in names(bucket) if not each.startswith(f"deep/{name}.run/")]
    if name == "out":
        assert written[0] == "deep/out/_SUCCESS"
        assert len(written) == len(expected) + 1 > 3
    else:
        assert written == ["deep/out.parquet"]
    sent = len(server.requests)
    label(source, output, run_dir=run_dir)
    assert len(server.requests) == sent
    with pytest.raises(OutputError, match="exists already"):
        label(source, output, run_dir=tmp_path / "another")


def test_the_mark_of_a_directory_is_its_last_object(label, proxy, bucket, source, expected, name):
    if name != "out":
        return
    label(source, f"{bucket.url}/out")
    puts = [key for method, key in proxy.requests if method == "PUT" and "/out/" in key]
    assert puts[-1].endswith("/out/_SUCCESS")
    assert len(puts) == len(expected) + 1
    marked = []

    def look(key):
        if "/out/" in key:
            marked.append("out/_SUCCESS" in names(bucket))

    proxy.on_put = look
    label(source, f"{bucket.url}/out", overwrite=True)
    assert marked == [False] * len(puts)
    assert files_of(f"{bucket.url}/out") == expected


def test_an_output_of_somebody_else_is_not_replaced(label, server, bucket, source, name):
    where = f"{name}/x.txt" if name == "out" else name
    bucket.put(where, b"of somebody else")
    with pytest.raises(OutputError, match="exists already"):
        label(source, f"{bucket.url}/{name}")
    if name == "out":
        with pytest.raises(OutputError, match=r"it holds x\.txt"):
            label(source, f"{bucket.url}/{name}", overwrite=True)
        assert names(bucket) == ["out/x.txt"]
    assert not server.requests


def test_failed_rows_are_retried(label, server, bucket, source, name, expected):
    bad = {f"review number {i}" for i in (3, 300)}
    server.script = lambda each: server.reply(status=400) if bad & set(each.texts) else None
    output = f"{bucket.url}/{name}"
    assert label(source, output)["errors"] == 2
    server.reset()
    assert label(source, output, retry_failed=True)["errors"] == 0
    assert sorted(set(server.texts)) == sorted(bad)
    assert files_of(output) == expected


@pytest.mark.fault(1)
@pytest.mark.parametrize("at", ["finish.identified", "finish.assembled", "finish.complete"])
def test_killed_while_it_is_put_in_its_place(cli, server, bucket, source, name, expected, at):
    command = ("run", source, "-o", f"{bucket.url}/{name}", "--endpoint", server.url)
    killed = cli(*command, PIPELINE_FAILPOINT=at)
    assert killed.code == 137, killed.stderr
    sent = len(server.requests)
    done = cli(*command)
    assert done.code == 0, done.stderr
    assert len(server.requests) == sent
    again = cli("status", f"{bucket.url}/{name}", "--json")
    assert again.json["state"] == "complete"
    rows = sum(pq.read_metadata(file.open()).num_rows for file in _sources(bucket, name))
    assert rows == len(TEXTS)


def _sources(bucket, name):
    return output_at(f"{bucket.url}/{name}").files()


@pytest.mark.fault(1)
@pytest.mark.parametrize("retried", [False, True])
def test_killed_in_the_middle_of_a_directory(start, cli, server, proxy, bucket, source, retried):
    """No reader takes a part of it for all: `_SUCCESS` is not there. The same command ends it."""
    command = ["run", source, "-o", f"{bucket.url}/out", "--endpoint", server.url]
    if retried:
        bad = "review number 3"
        server.script = lambda each: server.reply(status=400) if bad in each.texts else None
        assert cli(*command).code == 3
        server.script = lambda _: None
        command.append("--retry-failed")
    held = threading.Event()

    def hold(key):
        if key.endswith("/out/_SUCCESS"):
            held.set()
            proxy.on_put = lambda _: None
            time.sleep(5.0)
            raise ConnectionError

    proxy.on_put = hold
    killed = start(*command)
    assert held.wait(40.0)
    killed.send(signal.SIGKILL)
    killed.ended()
    assert [each for each in names(bucket) if each.startswith("out/")] == ["out/part-00000.parquet"]
    sent = len(server.requests)
    done = cli(*command)
    assert done.code == 0, done.stderr
    assert len(server.requests) == sent
    assert "out/_SUCCESS" in names(bucket)
    table = pq.read_table(_sources(bucket, "out")[0].open())
    assert table["text"].to_pylist() == TEXTS
    assert table["error"].null_count == len(TEXTS)


def test_places_that_cannot_be_are_refused(label, server, bucket, source):
    inside = bucket.put("in/a.csv", b"text\none\n")
    for output, given, words in (
        (f"{bucket.url}/out.json", source, "of a kind that is not written"),
        (f"{bucket.url}/in", inside, "is inside the other"),
        (bucket.url, source, "names no object in a bucket"),
        ("https://host/out.parquet", source, "no storage that can"),
        (f"{bucket.url}-missing/out.parquet", source, "no such bucket"),
        ("hf://datasets/owner/data/out.parquet", source, "run_dir"),
    ):
        with pytest.raises(OutputError, match=words):
            label(given, output)
    assert not server.requests


@pytest.mark.parametrize(
    ("given", "output", "refused"),
    [
        ("in/*.parquet", "in/out.parquet", True),
        ("in/*.parquet", "in/out.csv", False),
        ("in/*.parquet", "in/out", False),
        ("in/*", "in/out", True),
        ("i?/*", "in/out.parquet", True),
        ("in/**/*.parquet", "in/deep/out.parquet", True),
        ("in/**/*.parquet", "in/out", True),
        ("in/*/part-*.parquet", "in/out", True),
        ("in/*/day-*.parquet", "in/out", False),
        ("in/*.parquet", "in", True),
        ("in/*.parquet", "in/_out", False),
        ("in/**", "in/_out", False),
        ("in", "in/out.parquet", True),
        ("in/", "in/deep/out", True),
        ("in/a.parquet", "in/a.parquet", True),
        ("in/a.parquet", "in/out.parquet", False),
        ("in", "in-out", False),
        ("in*/*.parquet", "in-out", True),
        ("in/*/part-[1-9]*.parquet", "in/out", True),
        ("in/*/part-*7.parquet", "in/out", True),
        ("in/*/day-[0-9].parquet", "in/out", False),
        ("in/deep*/*.parquet", "in/deeper", True),
    ],
)
def test_an_output_that_would_be_read_as_input(label, server, bucket, given, output, refused):
    """Its own rows would be labelled with the next ones; refused before anything is sent."""
    pq.write_table(pa.table({"text": ["one", "two"]}), table := pa.BufferOutputStream())
    for key in ("in/a.parquet", "in/deep/part-0.parquet", "in/deep/day-0.parquet"):
        bucket.put(key, table.getvalue().to_pybytes())
    before = names(bucket)
    if not refused:
        assert label(f"{bucket.url}/{given}", f"{bucket.url}/{output}")["state"] == "complete"
        for _ in range(2):
            label(f"{bucket.url}/{given}", f"{bucket.url}/{output}", overwrite=True)
        return
    for more in ({}, {"overwrite": True}):
        with pytest.raises(OutputError, match="one is inside the other") as stopped:
            label(f"{bucket.url}/{given}", f"{bucket.url}/{output}", **more)
        assert stopped.value.exit_code == 2
    assert not server.requests
    assert names(bucket) == before


@pytest.mark.parametrize("place", ["abfs://box/in", "abfss://box/in"])
@pytest.mark.parametrize(
    ("given", "overlaps"),
    [
        ("abfss://box/in", True),
        ("ABFS://box/in/*.parquet", True),
        ("abfs://box/in/part-[1-9]*.parquet", True),
        ("abfs://box/2[0-9]/*.parquet", False),
        ("abfs://other/in", False),
        ("gs://box/in", False),
        ("abfs://box/i[0-9]*", False),
        ("in", False),
    ],
)
def test_what_lies_at_an_address(place, given, overlaps):
    assert globs.overlap(given, place, f"{place}/part-00000.parquet") == overlaps


@pytest.mark.parametrize(
    ("given", "place", "table", "overlaps"),
    [
        ("s3://box/v1*", "s3://box/v0", "/part-00000.parquet", False),
        ("s3://box/v1*/*", "s3://box/v0", "/part-00000.parquet", False),
        ("s3://box/v0/part-1*", "s3://box/v0", "/part-00000.parquet", True),
        ("s3://box/part-1*.parquet", "s3://box/part-0.parquet", "", False),
        ("s3://box/part-*.parquet", "s3://box/part-0.parquet", "", True),
        ("s3://box", "s3://box/day.run/state", "/parts/0.parquet", False),
        ("s3://box/**/*[0-9].parquet", "s3://box/day.run/state", "/parts/0.parquet", False),
        ("s3://box/day.run/**/*[0-9].parquet", "s3://box/day.run/state", "/parts/0.parquet", True),
    ],
)
def test_what_lies_where_tables_have_given_names(given, place, table, overlaps):
    assert globs.overlap(given, place, place + table) == overlaps


@pytest.mark.parametrize(
    ("run_dir", "refused"),
    [
        ("in/state", True),
        ("in/deep/state", True),
        ("in/state.run", False),
        ("in/day.run/state", False),
        ("state", False),
    ],
)
@pytest.mark.parametrize("far", [True, False])
def test_a_run_directory_that_would_be_read_as_input(
    label, server, bucket, tmp_path, run_dir, refused, far
):
    """After an interruption the parts of the run would be rows of the input."""
    pq.write_table(pa.table({"text": ["one", "two"]}), table := pa.BufferOutputStream())
    content = table.getvalue().to_pybytes()
    root = bucket.url if far else tmp_path
    if far:
        bucket.put("in/deep/a.parquet", content)
    else:
        (tmp_path / "in" / "deep").mkdir(parents=True)
        (tmp_path / "in" / "deep" / "a.parquet").write_bytes(content)
    for given in ("in", "in/**/*.parquet", "in/*"):
        if refused:
            with pytest.raises(OutputError, match="one is inside the other") as stopped:
                label(f"{root}/{given}", tmp_path / "out.parquet", run_dir=f"{root}/{run_dir}")
            assert stopped.value.exit_code == 2
        else:
            label(
                f"{root}/{given}", tmp_path / "out.parquet", run_dir=f"{root}/{run_dir}",
                overwrite=True,
            )  # fmt: skip
    assert bool(server.requests) != refused


def test_a_run_directory_behind_a_link_is_found(label, server, tmp_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "in" / "a.parquet")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in" / "out of it").symlink_to(tmp_path / "elsewhere")
    for given, run_dir in (
        *(("in", "link/state"), ("link", "in/state"), ("link", "link/state")),
        *(("in", "in/out of it"), ("in", "in/out of it/state")),
    ):
        with pytest.raises(OutputError, match="one is inside the other"):
            label(tmp_path / given, tmp_path / "out.parquet", run_dir=tmp_path / run_dir)
    assert server.requests == []


@pytest.mark.parametrize(
    ("given", "run_dir"), [("..", "../../runs/x"), ("../in", "../in/../state"), (".", "../state")]
)
def test_a_run_directory_outside_is_taken_however_it_is_named(
    label, tmp_path, monkeypatch, given, run_dir
):
    inside = tmp_path / "work" / "in"
    inside.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["one", "two"]}), inside / "a.parquet")
    monkeypatch.chdir(inside)
    done = label(given, tmp_path / "out.parquet", run_dir=run_dir)
    assert (done["state"], done["rows"]) == ("complete", 2)


def test_an_unfinished_run_inside_its_input_is_moved_and_goes_on(cli, server, tmp_path):
    """Older versions began such runs; what they were answered was paid for."""
    inside = tmp_path / "in" / "state"
    inside.parent.mkdir()
    texts = [f"text {i}" for i in range(20)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "in" / "a.parquet")
    command = ("run", "in", "--endpoint", server.url, "-o", "out.parquet", "--batch-size", 4)
    server.script = lambda request: server.reply(401) if request.number > 2 else None
    assert cli(*command, "--run-dir", "elsewhere").code == 4
    (tmp_path / "elsewhere").rename(inside)
    answered = server.answered_texts
    server.script = lambda _: None
    refused = cli(*command, "--run-dir", "in/state")
    assert refused.code == 2
    assert refused.stderr == (
        "--run-dir: in/state and the input in are the same, or one is inside the other. Move the "
        "directory elsewhere, or give it a name that ends with .run. Then continue with its new "
        "path: nothing that was done is lost.\n"
    )
    inside.rename(moved := inside.with_suffix(".run"))
    server.reset()
    assert cli(*command, "--run-dir", moved.relative_to(tmp_path)).code == 0
    assert not set(server.texts) & answered
    assert pq.read_table(tmp_path / "out.parquet")["text"].to_pylist() == texts


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl.gz"])
def test_text_at_an_address(label, server, bucket, source, tmp_path, name):
    label(source, tmp_path / name)
    for _ in range(2):
        assert label(source, f"{bucket.url}/{name}")["state"] == "complete"
        assert files_of(f"{bucket.url}/{name}") == [(tmp_path / name).read_bytes()]
    assert len(server.texts) == 2 * len(set(TEXTS))


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.jsonl.zst"])
def test_a_result_is_read_from_its_address(server, bucket, source, name):
    config = RunConfig(
        input=str(source), output=f"{bucket.url}/{name}", endpoint=server.url, dialect="hf"
    )
    result = pipeline.run(config)
    assert result.to_arrow()["text"].to_pylist() == TEXTS
    assert result.errors_by_cause() == {}


@pytest.fixture
def to_hub(cli, server, hub, source):
    """Run the command, whose library takes the address of the Hub when it begins."""

    def run(name, *more, address="hf://datasets/owner/data/"):
        command = ("run", source, "-o", f"{address}{name}", "--endpoint", server.url)
        return cli(*command, *more)

    return run


def in_hub(hub, name):
    return [body for path, body in sorted(hub.files.items()) if path.startswith(name)]


@pytest.fixture
def on_disk(cli, server, source, tmp_path, name):
    done = cli("run", source, "-o", tmp_path / "local" / name, "--endpoint", server.url)
    assert done.code == 0, done.stderr
    server.reset()
    return files_of(tmp_path / "local" / name)


@pytest.mark.parametrize("state", ["local", "far"])
def test_a_dataset_of_the_hub_gets_all_by_one_commit(
    to_hub, server, bucket, hub, name, on_disk, state
):
    run_dir = f"{bucket.url}/run" if state == "far" else "run"
    for _ in range(2):
        done = to_hub(name, "--run-dir", run_dir)
        assert done.code == 0, done.stderr
        assert in_hub(hub, name) == on_disk
        assert sorted(server.texts) == sorted(TEXTS)
        assert len(hub.commits) == 1
    assert hub.files["README.md"] == b"# Words"


@pytest.mark.parametrize("name", ["out"])
def test_an_output_in_the_hub_is_measured_without_its_run(to_hub, cli, name):
    """The dataset says nothing of a run directory, and its rows are enough."""
    assert to_hub(name, "--run-dir", "run").code == 0
    found = cli("evaluate", f"hf://datasets/owner/data/{name}", "--gold", "id", "--json")
    assert found.code == 0, found.stderr
    assert found.json["rows"] == len(TEXTS)


def test_a_commit_of_somebody_else_is_not_overwritten(to_hub, server, hub, name, on_disk):
    def commit():
        hub.files["README.md"] += b" and more"
        hub.on_commit = lambda: None

    hub.on_commit = commit
    stopped = to_hub(name, "--run-dir", "run")
    assert stopped.code == 75
    assert "somebody has committed to the dataset" in stopped.stderr
    assert not hub.commits
    assert to_hub(name, "--run-dir", "run").code == 0
    assert sorted(server.texts) == sorted(TEXTS)
    assert in_hub(hub, name) == on_disk
    assert hub.files["README.md"] == b"# Words and more"


@pytest.mark.parametrize("name", ["out"])
def test_an_output_in_the_hub_is_replaced_and_retried(to_hub, server, hub, name, on_disk):
    hub.files["out/x.txt"] = b"of somebody else"
    refused = to_hub(name, "--run-dir", "run", "--overwrite")
    assert refused.code == 2
    assert "it holds x.txt" in refused.stderr
    del hub.files["out/x.txt"]
    server.script = lambda each: server.reply(status=400) if TEXTS[3] in each.texts else None
    assert to_hub(name, "--run-dir", "run").code == 3
    server.reset()
    assert to_hub(name, "--run-dir", "run", "--retry-failed").code == 0
    assert set(server.texts) == {TEXTS[3]}
    assert in_hub(hub, name) == on_disk
    assert to_hub(name, "--run-dir", "run", "--overwrite").code == 0
    assert in_hub(hub, name) == on_disk


def test_what_is_wrong_with_a_dataset_is_said_at_the_start(to_hub, server, hub):
    hub.may_write = False
    refused = to_hub("out.parquet", "--run-dir", "run")
    assert refused.code == 2
    assert "permission denied" in refused.stderr
    hub.may_write = True
    refused = to_hub("", "--run-dir", "run", address="hf://datasets/owner/data")
    assert refused.code == 2
    assert "names no file or folder" in refused.stderr
    refused = to_hub("out.parquet", "--run-dir", "run", address="hf://datasets/owner/none/")
    assert refused.code == 2
    assert "Make the dataset first" in refused.stderr
    assert to_hub("out.parquet").code == 2
    assert not server.requests
