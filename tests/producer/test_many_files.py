"""Ten thousand small files are one table."""

import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import open_source

pytestmark = pytest.mark.fault(25)


def scatter(root, kind, count):
    """Write that many files of one row over nested directories, in the order of their paths."""
    for number in range(count):
        folder = root / f"{number // 1000:02}" / f"{number // 100 % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:05}.{kind}"
        if kind == "csv":
            path.write_text(f"id,text\n{number},text {number % 7}\n")
        elif kind == "jsonl":
            path.write_text(f'{{"id":{number},"text":"text {number % 7}"}}\n')
        elif kind == "arrow":
            table = pa.table({"id": [number], "text": [f"text {number % 7}"]})
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(pa.table({"id": [number], "text": [f"text {number % 7}"]}), path)


@pytest.fixture
def few_handles():
    """Let this process hold only a few files and connections at a time."""
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/dev/fd").iterdir())) + 120, was[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, was)


@pytest.mark.usefixtures("few_handles")
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "arrow"])
def test_no_file_stays_open(tmp_path, kind):
    scatter(tmp_path, kind, 600)
    source = open_source([str(tmp_path)])
    chunks = source.chunks(0, max_rows=250, max_bytes=1 << 20)
    ids = [value for chunk in chunks for value in chunk.table["id"].to_pylist()]
    assert ids == list(range(600))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_odd_one_out_is_named(label, server, tmp_path, kind):
    """One file of many with another column is found before anything is paid for."""
    scatter(tmp_path / "in", kind, 300)
    odd = tmp_path / "in" / "00" / "1" / f"00177.{kind}"
    if kind == "csv":
        odd.write_text("id,text,more\n177,a,b\n")
    else:
        pq.write_table(pa.table({"id": [177], "text": ["a"], "more": ["b"]}), odd)
    with pytest.raises(InputError, match=rf"00177\.{kind} has a column 'more'"):
        label(tmp_path / "in", tmp_path / "out.parquet")
    assert server.requests == []


@pytest.mark.slow
@pytest.mark.usefixtures("few_handles")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_ten_thousand_files_are_labelled_in_order(label, server, tmp_path, kind):
    """Each row once, in the order of the paths; run again, nothing is done."""
    scatter(tmp_path / "in", kind, 10_000)
    summary = label(tmp_path / "in", tmp_path / "out.parquet")
    assert (summary["rows"], summary["labelled"]) == (10_000, 10_000)
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(10_000))
    assert sorted(server.texts) == [f"text {i}" for i in range(7)]
    before = len(server.requests)
    assert label(tmp_path / "in", tmp_path / "out.parquet")["state"] == "complete"
    assert len(server.requests) == before


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_odd_one_of_ten_thousand_is_named(label, server, tmp_path, kind):
    scatter(tmp_path / "in", kind, 10_000)
    odd = tmp_path / "in" / "09" / "9" / f"09999.{kind}"
    if kind == "csv":
        odd.write_text("id,text\n9999\n")
    else:
        pq.write_table(pa.table({"id": ["9999"], "text": ["a"]}), odd)
    with pytest.raises(InputError, match=rf"09999\.{kind}"):
        label(tmp_path / "in", tmp_path / "out.parquet")
    assert server.requests == []
