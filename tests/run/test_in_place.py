"""OUTPUT may be the input itself; what else an output may take the place of, and what not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError, ResumeRefused, StoppedEarly
from pipeline.store import disk
from pipeline.store.records import RunLog

TEXTS = [f"text {i}" for i in range(100)]


class Killed(BaseException):
    """Ends a run as a kill would: what is on disk stays as it is."""


@pytest.fixture(autouse=True)
def _several_parts(small_chunks):
    """The runs here have seven parts."""


@pytest.fixture(params=["file", "directory"])
def data(request, tmp_path):
    """100 rows in a Parquet file, or in a directory of two."""
    table = pa.table({"n": range(100), "text": TEXTS})
    if request.param == "file":
        path = tmp_path / "data.parquet"
        pq.write_table(table, path)
        return path
    path = tmp_path / "data"
    path.mkdir()
    pq.write_table(table.slice(0, 60), path / "a.parquet")
    pq.write_table(table.slice(60), path / "b.parquet")
    return path


def _rows(path):
    return pq.read_table(path, partitioning=None).to_pylist()


def _check(path, right_answer):
    assert [
        (row["n"], row["text"], row["label"], row["score"], row["error"]) for row in _rows(path)
    ] == [
        (i, text, right_answer(text)[0]["label"], right_answer(text)[0]["score"], None)
        for i, text in enumerate(TEXTS)
    ]


def test_the_same_command_again_does_nothing(label, server, data, right_answer, listing):
    """The input is the labelled table by then, and must not be labelled once more."""
    first = label(data, data, overwrite=True)
    _check(data, right_answer)
    server.reset()
    before = listing(data.parent)
    for overwrite in (True, False):
        again = label(data, data, overwrite=overwrite)
        assert (again["state"], again["exit_code"], again["requests"]) == ("complete", 0, 0)
        assert (again["rows"], again["labels"]) == (100, first["labels"])
    assert server.requests == []
    assert {path: facts for path, facts in listing(data.parent).items() if "lock" not in path} == {
        path: facts for path, facts in before.items() if "lock" not in path
    }


def test_the_same_bytes_as_beside_the_input(label, data, tmp_path):
    beside = tmp_path / f"beside{data.suffix}"
    label(data, beside)
    expected = _bytes(beside)
    label(data, data, overwrite=True)
    assert _bytes(data) == expected


def _bytes(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


def test_from_the_command_line(cli, server, data):
    command = ("run", data, "--endpoint", server.url, "-o", data, "--overwrite", "--json")
    assert cli(*command).code == 0
    sent = len(server.requests)
    again = cli(*command)
    assert (again.code, again.json["state"], len(server.requests)) == (0, "complete", sent)


def test_needs_overwrite_to_begin(label, server, data):
    """Nobody's input is replaced by a slip of the keyboard."""
    before = _bytes(data)
    with pytest.raises(OutputError, match=r"is the input.*overwrite=True"):
        label(data, data)
    assert (server.requests, _bytes(data)) == ([], before)


def _kill_after_assembly(patch):
    recorded = RunLog.set_assembled

    def kill(log, identity):
        recorded(log, identity)
        raise Killed

    patch.setattr(RunLog, "set_assembled", kill)


def _kill_between_renames(patch):
    """A directory is replaced by two renames; a file by one, and the kill comes before it."""

    def kill(temp, final):
        if final.is_dir():
            final.rename(disk.aside_of(temp))
        raise Killed

    patch.setattr(disk, "commit_directory", kill)
    patch.setattr(disk, "commit", kill)


def _kill_before_the_record(patch):
    def kill(*_):
        raise Killed

    patch.setattr(RunLog, "set_complete", kill)


@pytest.mark.parametrize("place", ["in place", "beside"])
@pytest.mark.parametrize(
    "kill", [_kill_after_assembly, _kill_between_renames, _kill_before_the_record]
)
def test_killed_around_the_rename(label, server, data, right_answer, monkeypatch, kill, place):
    """The same command ends complete, and asks nothing: with its output, or with a new one."""
    output = data if place == "in place" else data.with_name(f"beside{data.suffix}")
    with monkeypatch.context() as patch:
        patch.target = output
        kill(patch)
        with pytest.raises(Killed):
            label(data, output, overwrite=True)
    server.reset()
    renamed = kill is _kill_before_the_record
    before = output.stat().st_ino if renamed else None
    summary = label(data, output, overwrite=True)
    assert (summary["state"], summary["labelled"], summary["requests"]) == ("complete", 100, 0)
    assert sum(summary["labels"].values()) == 100
    _check(output, right_answer)
    assert server.requests == []
    if renamed:
        assert output.stat().st_ino == before, "assembled again"
    kept = {path.name for path in output.with_name(output.name + ".run").iterdir()}
    assert kept == {"log", "summary.json", "events.jsonl", "lock"}
    assert label(data, output)["state"] == "complete"
    assert not output.with_name(output.name + ".replaced").exists()


def test_restart_after_the_rename_finds_nothing_to_throw_away(label, server, data, monkeypatch):
    with monkeypatch.context() as patch:
        _kill_before_the_record(patch)
        with pytest.raises(Killed):
            label(data, data, overwrite=True)
    server.reset()
    assert label(data, data, overwrite=True, restart=True)["state"] == "complete"
    assert server.requests == []


@pytest.mark.fault(11)
def test_what_was_written_there_since_is_another_input(label, server, data):
    """Refused by name; with --overwrite it is labelled, as a new run."""
    label(data, data, overwrite=True)
    server.reset()
    file = data / "part-00000.parquet" if data.is_dir() else data
    for other in data.glob("part-*.parquet"):
        other.unlink()
    pq.write_table(pa.table({"n": [1], "text": ["new"]}), file)
    with pytest.raises(ResumeRefused, match=r"content changed|1 file, was 2"):
        label(data, data)
    assert server.requests == []
    assert label(data, data, overwrite=True)["rows"] == 1
    assert server.texts == ["new"]


def test_rows_added_to_the_labelled_table_are_noticed(label, server, data):
    label(data, data, overwrite=True)
    server.reset()
    file = data / "part-00000.parquet" if data.is_dir() else data
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    with pytest.raises(ResumeRefused, match=r"content changed|column label: new"):
        label(data, data)
    assert server.requests == []


def test_the_labelled_table_may_be_labelled_by_another_model(label, data):
    """With other settings and other names it is a new run over what lies there."""
    label(data, data, overwrite=True)
    names = {f"{kind}_column": f"{kind} 2" for kind in ("label", "score", "error")}
    with pytest.raises(ResumeRefused, match="model: 'other/model'"):
        label(data, data, model="other/model", **names)
    label(data, data, overwrite=True, model="other/model", **names)
    assert list(_rows(data)[0]) == [
        *("n", "text", "label", "score", "error", "label 2", "score 2", "error 2"),
    ]


def test_an_input_that_changes_under_the_run_is_not_replaced(label, server, data):
    """What somebody else wrote there is theirs, also where all rows had been read."""
    file = data / "b.parquet" if data.is_dir() else data
    new = pa.table({"n": [1], "text": ["new"]})

    def rewrite(request):
        if request.number == 0:
            pq.write_table(new, file)

    server.script = rewrite
    with pytest.raises(StoppedEarly, match="changed"):
        label(data, data, overwrite=True, batch_size=200)
    assert pq.read_table(file).equals(new)


def test_limit_would_lose_rows(label, server, data):
    with pytest.raises(OutputError, match="limit"):
        label(data, data, overwrite=True, limit=10)
    assert server.requests == []
    assert len(_rows(data)) == 100


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A directory of two tables, and one that holds something else too."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/a.parquet", "data/deep/b.parquet", "mixed/a.parquet"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": [name]}), name)
    Path("mixed/notes.txt").write_text("not to be lost")
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "output", "named"),
    [
        (["data/a.parquet", "data/deep/b.parquet"], "data/a.parquet", "one of 2 inputs"),
        (["data/deep"], "data", "holds the input data/deep"),
        (["data/*.parquet"], "data", "holds the input"),
        (["data/a.parquet"], "data", "holds the input"),
        (["mixed"], "mixed", "notes.txt"),
        (["x.parquet.run"], "x.parquet", "which the run uses"),
    ],
)
def test_an_output_that_would_take_other_things_with_it(
    label, server, tree, listing, inputs, output, named
):
    """Refused also with --overwrite, before anything is sent or written."""
    Path("x.parquet.run").mkdir()
    pq.write_table(pa.table({"text": ["x"]}), "x.parquet.run/x.parquet")
    before = listing()
    with pytest.raises(OutputError, match=named):
        label(inputs[0], Path(output), overwrite=True, input=inputs)
    assert server.requests == []
    assert {path: facts for path, facts in listing().items() if "lock" not in path} == {
        path: facts for path, facts in before.items() if "lock" not in path
    } | {"x.parquet.run": listing()["x.parquet.run"]}


@pytest.mark.parametrize("output", ["data/out.parquet", "data/out", "data/deep/out.parquet"])
@pytest.mark.parametrize("source", ["data", "data/**/*.parquet", "data/*"])
def test_an_output_inside_its_input_is_not_read(label, server, tree, source, output):
    """Neither the output nor the parts of any run count as input, half done or complete."""
    for name in ("one", "two"):
        pq.write_table(
            pa.table({"text": [f"{name} {i}" for i in range(60)]}), f"data/{name}.parquet"
        )
    with pytest.raises(StoppedEarly):
        label(source, Path(output), max_requests=3, batch_size=8, concurrency=1)
    assert list(Path(f"{output}.run/parts").iterdir())
    resumed = label(source, Path(output))
    assert (resumed["state"], resumed["rows"]) == ("complete", 122)
    assert not server.sent_twice()
    server.reset()
    assert label(source, Path(output))["state"] == "complete"
    assert server.requests == []


def test_a_csv_directory_with_its_output_inside(cli, server, write_csv, tmp_path):
    """As in the working directory, where people begin."""
    write_csv("in.csv", ["good", "bad"])
    for _ in range(2):
        ended = cli("run", ".", "--endpoint", server.url, "-o", "out.parquet", "--json")
        assert (ended.code, ended.json["rows"]) == (0, 2), ended.stderr
    assert len(server.requests) == 1


@pytest.mark.parametrize("which", ["output", "both"])
def test_a_symlink_is_replaced_and_not_what_it_points_to(label, server, data, right_answer, which):
    """The name gets the output; the table behind it stays what it was."""
    link = data.with_name(f"link{data.suffix}")
    link.symlink_to(data)
    before = _bytes(data)
    source = link if which == "both" else data
    label(source, link, overwrite=True)
    assert not link.is_symlink()
    _check(link, right_answer)
    assert _bytes(data) == before
    server.reset()
    assert label(source, link, overwrite=which == "both")["state"] == "complete"
    assert server.requests == []
