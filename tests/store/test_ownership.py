"""What is not of a run is neither written nor deleted, whatever its name is; all on real files."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import OutputError, SettingsError, StoppedEarly, UsageError
from pipeline.report import write_report
from pipeline.responses import Keys, ResponseStore
from pipeline.store import ownership

TEXTS = [f"text {i}" for i in range(40)]
THEIRS = b"somebody's own words\n"
NAMES = [
    *("notes.txt", "lock", "log/00000001.json", "log/server.log", "manifest.jsonl"),
    *("parts/000000000000-0123abcd.parquet", "parts/part-000000000000.parquet"),
    *("responses.journal", "events.jsonl", "summary.json", "plan.json", "labelled.parquet"),
    *("assembled.tmp", "replaced.tmp/file", "log/00000001.json.0123abcd.tmp"),
]


def _everything(root):
    """All that lies below a directory: links as what they point to, files by their bytes."""
    return {
        str(path.relative_to(root)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", TEXTS)


@pytest.fixture
def refused(label, server, source, tmp_path):
    """Check that a run refuses, and that nothing was sent, written or deleted."""

    def check(match, kind=UsageError, **settings):
        before = _everything(tmp_path)
        settings.setdefault("output", tmp_path / "out.parquet")
        with pytest.raises(kind, match=match) as failure:
            label(source, **settings)
        assert failure.value.exit_code == 2
        assert _everything(tmp_path) == before
        assert server.requests == []

    return check


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_is_not_of_a_run_is_left_alone(refused, tmp_path, name):
    theirs = tmp_path / "out.parquet.run" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(THEIRS)
    for flags in ({}, {"restart": True}, {"overwrite": True}):
        refused("is not the directory of a run and holds other files", OutputError, **flags)


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_that_is_not_of_a_run_is_left_alone(server, tmp_path, name):
    theirs = tmp_path / "mine" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(THEIRS)
    before = _everything(tmp_path)
    with pytest.raises(OutputError, match="is not the directory of a run"):
        pipeline.classify(
            pa.table({"text": TEXTS}), text="text", endpoint=server.url,
            checkpoint=tmp_path / "mine",
        )  # fmt: skip
    assert _everything(tmp_path) == before
    assert server.requests == []


@pytest.mark.parametrize("within", [[], ["lock"], [".hidden"], ["a/b"]])
def test_an_empty_directory_is_taken(label, source, tmp_path, within):
    """Also with the empty lock that a kill leaves, and whatever else holds nothing."""
    directory = tmp_path / "out.parquet.run"
    directory.mkdir()
    for name in within:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).touch()
    assert label(source, tmp_path / "out.parquet")["labelled"] == len(TEXTS)


def test_a_plan_refuses_as_the_run_does(cli, server, source, tmp_path):
    directory = tmp_path / "out.parquet.run"
    directory.mkdir()
    (directory / "plan.json").write_bytes(THEIRS)
    before = _everything(tmp_path)
    for command in ("plan", "run"):
        ended = cli(command, source, "-o", "out.parquet", "--endpoint", server.url)
        assert ended.code == 2
        assert "holds other files, such as plan.json" in ended.stderr
        assert _everything(tmp_path) == before


@pytest.fixture
def stopped(label, server, source, tmp_path):
    """The directory of a run that was stopped when it had answers."""
    with pytest.raises(StoppedEarly):
        label(source, tmp_path / "out.parquet", batch_size=4, max_requests=3)
    server.reset()
    return tmp_path / "out.parquet.run"


@pytest.mark.fault(27)
def test_a_run_makes_nothing_else_in_its_directory(stopped, label, source, tmp_path):
    """Else a link under that name would be written through."""
    assert {path.name for path in stopped.iterdir()} <= set(ownership._NAMES)


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", ownership._NAMES)
@pytest.mark.parametrize("fresh", [True, False])
def test_nothing_is_written_through_a_link(refused, tmp_path, request, name, fresh):
    """Neither in a directory that somebody prepared, nor in one of a run."""
    directory = tmp_path / "out.parquet.run"
    if fresh:
        directory.mkdir()
    else:
        request.getfixturevalue("stopped")
        if (directory / name).exists():
            (directory / name).rename(tmp_path / "before")
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "000000000000-0123abcd.parquet").write_bytes(THEIRS)
    (tmp_path / "file").write_bytes(THEIRS)
    for target in ("file", "directory", "nothing"):
        (directory / name).symlink_to(tmp_path / target)
        for restart in (False, True):
            refused(f"{name} is a symbolic link", OutputError, restart=restart)
        (directory / name).unlink()


def test_a_run_directory_may_be_reached_by_a_link(label, source, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.parquet.run").symlink_to(tmp_path / "elsewhere")
    assert label(source, tmp_path / "out.parquet")["labelled"] == len(TEXTS)
    assert (tmp_path / "elsewhere" / "log").is_dir()


@pytest.mark.parametrize("damage", ["log gone", "log emptied", "lock emptied", "lock gone"])
def test_a_run_is_known_by_any_of_its_marks(stopped, damage):
    """So that damage is told as damage."""
    if damage == "log gone":
        (stopped / "log").rename(stopped.with_name("log"))
    elif damage == "log emptied":
        for entry in (stopped / "log").iterdir():
            entry.write_bytes(b"")
    elif damage == "lock emptied":
        (stopped / "lock").write_bytes(b"")
    else:
        (stopped / "lock").unlink()
    ownership.check_run_directory(stopped)


# --- the cache


@pytest.mark.fault(27)
@pytest.mark.parametrize(
    "content",
    [b"CLR2", b"CLR2\n", b"CLR2 is the format of caches.\n" * 50, b"C", b"PAR1" + bytes(99)],
)
def test_a_file_that_is_no_cache_is_left_alone(refused, tmp_path, content):
    (tmp_path / "cache").write_bytes(content)
    refused("`cache`: .*is no response store", SettingsError, cache=tmp_path / "cache")


def test_a_cache_may_be_reached_by_a_link(label, server, source, tmp_path):
    (tmp_path / "cache").symlink_to(tmp_path / "real")
    label(source, tmp_path / "one.parquet", cache=tmp_path / "cache")
    server.reset()
    label(source, tmp_path / "two.parquet", cache=tmp_path / "cache")
    assert server.requests == []
    assert (tmp_path / "cache").is_symlink()


def test_a_pipe_is_no_cache(refused, tmp_path):
    os.mkfifo(tmp_path.parent / "pipe")
    try:
        refused("is no response store", SettingsError, cache=tmp_path.parent / "pipe")
    finally:
        (tmp_path.parent / "pipe").unlink()


def test_a_cache_that_a_kill_left_in_its_first_frame_is_continued(label, source, tmp_path):
    store = ResponseStore(tmp_path / "cache")
    store.put([(Keys({}).of(TEXTS), [(("a", 1.0),)] * len(TEXTS), None)])
    store.close()
    (tmp_path / "cache").write_bytes((tmp_path / "cache").read_bytes()[:100])
    assert label(source, tmp_path / "out.parquet", cache=tmp_path / "cache")["labelled"] == 40


# --- the output


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", ["letter.txt", "deep/letter.txt", ".git/HEAD", "table.parquet"])
def test_a_directory_that_is_no_output_is_not_replaced(refused, tmp_path, name):
    """Somebody's Parquet files neither: whoever names a directory may mean to add to it."""
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(THEIRS)
    if name == "table.parquet":
        pq.write_table(pa.table({"text": TEXTS}), theirs)
    refused(f"it holds .*{name}", output=tmp_path / "out", overwrite=True)


@pytest.mark.fault(27)
def test_what_was_added_to_an_output_is_not_deleted_with_it(label, source, tmp_path):
    label(source, tmp_path / "out")
    (tmp_path / "out" / "letter.txt").write_bytes(THEIRS)
    before = _everything(tmp_path / "out")
    with pytest.raises(OutputError, match=r"it holds .*letter\.txt"):
        label(source, tmp_path / "out", overwrite=True)
    assert _everything(tmp_path / "out") == before


@pytest.mark.fault(27)
def test_what_came_while_the_run_worked_is_not_deleted(cli, start, server, source, tmp_path):
    server.script = lambda _: server.reply(hold=True)
    command = ("run", source, "-o", "out", "--endpoint", server.url)
    working = start(*command)
    server.wait_for(lambda: server.requests)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_bytes(THEIRS)
    server.release()
    ended = working.ended()
    assert ended.code == 75
    assert "letter.txt" in ended.stderr
    assert (tmp_path / "out" / "letter.txt").read_bytes() == THEIRS
    (tmp_path / "out" / "letter.txt").unlink()
    server.reset()
    assert cli(*command).code == 0
    assert server.requests == []


@pytest.mark.parametrize("was", ["ours", "another table", "empty"])
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_overwrite_replaces_an_output(label, source, tmp_path, was, name):
    output = tmp_path / name
    if was == "ours":
        label(source, output)
        for path in (tmp_path / f"{name}.run").iterdir():
            path.rename(tmp_path / f"moved {path.name}")
    elif name == "out":
        output.mkdir()
    elif was == "another table":
        pq.write_table(pa.table({"a": [1]}), output)
    else:
        output.touch()
    label(source, output, overwrite=True)
    assert pq.read_table(output)["label"].null_count == 0


# --- the report and the metrics file


@pytest.mark.fault(27)
@pytest.mark.parametrize("content", [THEIRS, b'<!doctype html>\n<html lang="en">\n<head>\n'])
def test_a_report_replaces_reports_only(label, source, tmp_path, content):
    label(source, tmp_path / "out.parquet")
    page = tmp_path / "page.html"
    page.write_bytes(content)
    before = _everything(tmp_path)
    with pytest.raises(OutputError, match="is not a report"):
        write_report(tmp_path / "out.parquet", page)
    assert _everything(tmp_path) == before
    page.unlink()
    for _ in range(2):
        write_report(tmp_path / "out.parquet", page)
    assert sorted(set(_everything(tmp_path)) - set(before)) == []


@pytest.mark.fault(27)
def test_a_metrics_file_replaces_its_own_kind_only(refused, label, source, tmp_path):
    path = tmp_path / "jobs.prom"
    path.write_bytes(b"# HELP backup_age Somebody's own.\nbackup_age 3\n")
    refused("`metrics_file`: .*no metrics file of a run", SettingsError, metrics_file=path)
    path.unlink()
    for name in ("one", "two"):
        label(source, tmp_path / f"{name}.parquet", metrics_file=path)
        assert path.read_bytes().startswith(ownership.METRICS_MARK)
