"""The input table: what it records, what it compares, and when an earlier one is trusted."""

import dataclasses
import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import FileSource, InputTable, csv_files, open_source


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text("id,rating,text\n" + "".join(f"{i},{i % 5},text {i}\n" for i in range(100)))
    return path


def test_records_schema_rows_and_identity(reviews):
    table = open_source([str(reviews)]).input
    status = reviews.stat()
    (file,) = table.files
    assert table.schema == pa.schema([("id", "int64"), ("rating", "int64"), ("text", "string")])
    assert (table.rows, file.rows) == (100, 100)
    assert file.path == str(reviews)
    assert file.sha256 == hashlib.sha256(reviews.read_bytes()).hexdigest()
    assert (file.size_bytes, file.inode) == (status.st_size, status.st_ino)
    assert (file.mtime_ns, file.ctime_ns) == (status.st_mtime_ns, status.st_ctime_ns)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_survives_json(tmp_path, reviews, kind):
    path = reviews
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        schema = pa.schema(
            [
                pa.field("text", pa.string(), nullable=False, metadata={"unit": "words"}),
                pa.field("d", pa.dictionary(pa.int8(), pa.large_string(), ordered=True)),
                pa.field("t", pa.timestamp("ms", "Asia/Tokyo")),
            ],
            metadata={"pandas": "{}", "é": "ü"},
        )
        pq.write_table(schema.empty_table(), path)
    table = open_source([str(path)]).input
    again = InputTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert again.schema.equals(table.schema, check_metadata=True)
    assert again.differences(table) == []


def test_limit_cuts_rows_but_not_types(reviews):
    """The schema of a trial run on the first rows is that of the whole run."""
    with reviews.open("a") as file:
        file.write("x,y,z\n")
    whole, first = open_source([str(reviews)]).input, open_source([str(reviews)], limit=3).input
    assert (whole.rows, first.rows) == (101, 3)
    assert first.schema == whole.schema
    assert first.differences(whole) == []
    chunks = list(open_source([str(reviews)], limit=3).chunks(0, max_rows=2, max_bytes=1 << 20))
    assert [chunk.table.num_rows for chunk in chunks] == [2, 1]


def test_header_alone_is_zero_rows_of_text(tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n\n")
    source = open_source([str(tmp_path)])
    assert source.input.rows == 0
    assert source.input.schema == pa.schema([("id", "string"), ("text", "string")])
    assert list(source.chunks(0, max_rows=1, max_bytes=1)) == []


def test_a_moved_or_touched_input_is_the_same(tmp_path, reviews):
    before = open_source([str(reviews)]).input
    moved = reviews.rename(tmp_path / "elsewhere.csv")
    os.utime(moved, (1, 1))
    assert open_source([str(moved)]).input.differences(before) == []


def test_differences_are_worded_for_people(tmp_path, reviews):
    def table(text: str, *more: str, **settings: str) -> InputTable:
        reviews.write_text(text)
        paths = [reviews]
        for number, other in enumerate(more):
            paths.append(tmp_path / f"more{number}.csv")
            paths[-1].write_text(other)
        return open_source([str(path) for path in paths], **settings).input

    was = table("id,text\n1,a\n")
    long = "id,text\n1," + "a" * 1_200_000 + "\n"
    assert table("id,text\n2,b\n").differences(was) == [
        f"{reviews}: content changed (12 bytes, as before)"
    ]
    assert table(long).differences(was) == [f"{reviews}: content changed (1,200,011 bytes, was 12)"]
    assert table(long + "2,b\n").differences(table(long)) == [
        f"{reviews}: content changed (1,200,015 bytes, was 1,200,011)"
    ]
    assert table("id,text\n1,a\n", "id,text\n2,b\n").differences(was) == ["2 files, was 1"]
    assert was.differences(table("id,text\n1,a\n", "id,text\n2,b\n")) == ["1 file, was 2"]
    swapped = table("id,text\n2,b\n", "id,text\n1,a\n")
    assert swapped.differences(table("id,text\n1,a\n", "id,text\n2,b\n")) == [
        "the same files in another order"
    ]
    assert "column id: string, was int64" in table("id,text\nx,a\n").differences(was)
    assert table("id,more\n1,a\n").differences(was)[:2] == ["column more: new", "column text: gone"]
    assert table("text,id\na,1\n").differences(was)[0] == (
        "columns in another order: text, id, was id, text"
    )
    assert table("id,text\n1,a\n", encoding="cp1252").differences(was) == [
        "encoding: cp1252, was auto"
    ]
    assert table("id,text\n1,a\n", delimiter=";").differences(was)[0] == "delimiter: ';', was ','"
    assert table("id,text\n2,b\n").differences(was)


def test_differences_between_kinds(tmp_path, reviews):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "t.parquet")
    now, was = open_source([str(tmp_path / "t.parquet")]).input, open_source([str(reviews)]).input
    assert now.differences(was)[0] == "input format: not CSV, was CSV"


@pytest.fixture
def readings(monkeypatch):
    """Count how often files are read to settle an input."""
    seen = []
    real = csv_files.settle_files

    def counting(paths, *arguments, **how):
        seen.append(paths)
        return real(paths, *arguments, **how)

    monkeypatch.setattr(csv_files, "settle_files", counting)
    return seen


def test_an_earlier_plan_spares_the_planning_pass(reviews, readings):
    first = open_source([str(reviews)], limit=10)
    again = open_source([str(reviews)], earlier=InputTable.from_json(first.input.to_json()))
    assert len(readings) == 1
    assert again.input.rows == 100, "the limit is not the earlier one's"
    assert again.input.schema == first.input.schema
    assert sum(c.table.num_rows for c in again.chunks(40, max_rows=7, max_bytes=1 << 20)) == 60


def test_an_earlier_plan_follows_a_moved_folder(tmp_path, readings):
    (tmp_path / "was").mkdir()
    (tmp_path / "was" / "t.csv").write_text("id\n1\n")
    earlier = open_source([str(tmp_path / "was")]).input
    (tmp_path / "was").rename(tmp_path / "now")
    source = open_source([str(tmp_path / "now")], earlier=earlier)
    assert len(readings) == 1
    assert [c.table.num_rows for c in source.chunks(0, max_rows=7, max_bytes=1 << 20)] == [1]


@pytest.mark.parametrize("change", ["touch", "rewrite", "replace", "add", "delimiter", "encoding"])
def test_an_earlier_plan_is_not_trusted_when_anything_changed(reviews, readings, change):
    os.utime(reviews, (1, 1))
    earlier = open_source([str(reviews)]).input
    inputs, settings = [str(reviews)], {}
    if change == "touch":
        os.utime(reviews, (2, 2))
    elif change == "rewrite":
        reviews.write_text(reviews.read_text().replace("text 7", "TEXT 7"))
    elif change == "replace":
        copy = reviews.with_name("copy.csv")
        copy.write_bytes(reviews.read_bytes())
        os.utime(copy, (1, 1))
        copy.replace(reviews)
    elif change == "add":
        inputs.append(str(reviews.with_name("more.csv")))
        reviews.with_name("more.csv").write_text("id,rating,text\n")
    else:
        settings = {"delimiter": {"delimiter": "\t"}, "encoding": {"encoding": "cp1252"}}[change]
    table = open_source(inputs, earlier=earlier, **settings).input
    assert len(readings) == 2
    assert (not table.differences(earlier)) == (change in {"touch", "replace"})


def rewrite_in_place(path):
    path.write_bytes(path.read_bytes().replace(b"text 99", b"TEXT 99"))


def append(path):
    with path.open("a") as file:
        file.write("100,0,more\n")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def replace(path):
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").replace(path)


@pytest.mark.parametrize("change", [rewrite_in_place, append, cut, replace, os.unlink])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("when", ["before", "while", "after the last row"])
def test_an_input_that_changes_stops_the_run(tmp_path, reviews, monkeypatch, change, kind, when):
    """Rows of two versions of a file never meet in one output."""
    monkeypatch.setattr(csv_files, "BLOCK_ROWS", 10)
    monkeypatch.setattr("pipeline.producer.parquet_files.BATCH_ROWS", 10)
    path = reviews
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        text = [f"text {i}" for i in range(100)]
        pq.write_table(pa.table({"text": text}), path, row_group_size=10, compression="none")
    os.utime(path, (1, 1))
    source = open_source([str(path)])
    chunks = source.chunks(0, max_rows=10, max_bytes=1 << 20)
    rows = 0
    if when != "before":
        rows += next(chunks).table.num_rows
    if when == "after the last row":
        rows += sum(next(chunks).table.num_rows for _ in range(9))
    change(path)
    with pytest.raises(InputError, match=r"changed while it was being read\. .* run again"):
        rows += sum(chunk.table.num_rows for chunk in chunks)
    assert rows == {"before": 0, "while": 10, "after the last row": 100}[when]


def test_a_header_that_gains_rows_is_noticed(tmp_path):
    """Also files from which no row is expected must still be what was settled."""
    (tmp_path / "a.csv").write_text("id\n")
    (tmp_path / "b.csv").write_text("id\n1\n")
    source = open_source([str(tmp_path)])
    (tmp_path / "a.csv").write_text("id\n0\n")
    with pytest.raises(InputError, match=r"a\.csv changed"):
        list(source.chunks(0, max_rows=10, max_bytes=1 << 20))


@pytest.mark.parametrize("planned_rows", [50, 99, 101])
def test_other_rows_than_planned_are_never_passed_on(reviews, monkeypatch, planned_rows):
    """A file that holds more or fewer rows than were settled stops the run within those."""
    monkeypatch.setattr(csv_files, "BLOCK_ROWS", 7)
    table = open_source([str(reviews)]).input
    file = dataclasses.replace(table.files[0], rows=planned_rows)
    source = FileSource(dataclasses.replace(table, rows=planned_rows, files=(file,)))
    seen = []
    chunks = source.chunks(0, max_rows=7, max_bytes=1 << 20)
    with pytest.raises(InputError, match=f"does not hold the {planned_rows} rows"):
        seen.extend(chunk.table.num_rows for chunk in chunks)
    assert planned_rows - 7 <= sum(seen) <= planned_rows


@pytest.mark.parametrize("start_row", [-1, 101])
def test_start_row_outside_the_input(reviews, start_row):
    with pytest.raises(ValueError, match="start_row"):
        open_source([str(reviews)]).chunks(start_row, max_rows=1, max_bytes=1)


def test_a_file_out_of_reach_is_no_changed_file(tmp_path):
    file = tmp_path / "in.csv"
    file.write_text("text\na\n")
    source = open_source([str(file)])
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(InputError, match="cannot be read: Too many levels"):
        list(source.chunks(0, max_rows=9, max_bytes=1 << 20))
    file.unlink()
    with pytest.raises(InputError, match="changed while it was being read"):
        list(source.chunks(0, max_rows=9, max_bytes=1 << 20))
