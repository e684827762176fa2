"""Arrow IPC: files and streams, under the names that they have."""

import pyarrow as pa
import pyarrow.feather
import pytest

from pipeline.errors import InputError, StoppedEarly
from pipeline.producer import first_rows, open_source

TABLE = pa.table(
    {
        "id": pa.array(range(10_000), pa.int32()),
        "text": [f"text {i}" for i in range(10_000)],
        "kind": pa.array([str(i % 7) for i in range(10_000)]).dictionary_encode(),
        "when": pa.array([i * 1_000_000 for i in range(10_000)], pa.timestamp("us", "UTC")),
        "tags": [[str(i)] * (i % 3) for i in range(10_000)],
    }
)


def write(path, table=TABLE, open_=pa.ipc.new_file, rows=3_000, **options):
    with open_(path, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def read(*paths, start=0):
    source = open_source([str(path) for path in paths])
    chunks = source.chunks(start, max_rows=1_000, max_bytes=1 << 20)
    return pa.concat_tables([each.table for each in chunks])


@pytest.mark.parametrize("name", ["t.arrow", "t.ipc", "t.feather", "T.ARROW"])
@pytest.mark.parametrize("open_", [pa.ipc.new_file, pa.ipc.new_stream])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_files_and_streams(tmp_path, name, open_, compression):
    path = write(tmp_path / name, open_=open_, compression=compression)
    assert read(path).equals(TABLE)


def test_what_feather_writes(tmp_path):
    pyarrow.feather.write_feather(TABLE, tmp_path / "t.feather")
    assert read(tmp_path / "t.feather").equals(TABLE)


@pytest.mark.parametrize("start", [0, 1, 2_999, 3_000, 7_777, 9_999])
def test_reading_begins_at_any_row(tmp_path, start):
    path = write(tmp_path / "t.arrow")
    assert read(path, start=start).equals(TABLE.slice(start))


def test_columns_are_as_wide_as_any_file_needs_them(tmp_path):
    write(tmp_path / "a.arrow", pa.table({"n": pa.array([1], pa.int8()), "text": ["a"]}))
    write(tmp_path / "b.arrow", pa.table({"n": pa.array([2**40]), "text": ["b"]}))
    assert read(tmp_path).schema.field("n").type == pa.int64()
    assert read(tmp_path)["n"].to_pylist() == [1, 2**40]


def test_dictionaries_that_differ_by_file(tmp_path):
    """Each has 100 values of its own, which an index of 8 bits counts, but not all together."""
    kind = pa.dictionary(pa.int8(), pa.string())
    for part in range(3):
        values = [f"{part}-{i}" for i in range(100)]
        write(tmp_path / f"{part}.arrow", pa.table({"text": pa.array(values).cast(kind)}))
    found = read(tmp_path)
    assert found.schema.field("text").type == pa.dictionary(pa.int32(), pa.string())
    assert found["text"].to_pylist() == [f"{part}-{i}" for part in range(3) for i in range(100)]


def test_refused(tmp_path):
    whole = write(tmp_path / "t.arrow").read_bytes()
    cases = {
        "short.arrow": (whole[:-100], "short.arrow.* cannot be read as Arrow: it is truncated"),
        "text.arrow": (b"id,text\n1,a\n", "text.arrow cannot be read as Arrow"),
        "old.feather": (b"FEA1" + whole, "old.feather is Feather of version 1.*Write it again"),
        "zero.ipc": (b"", r"zero.ipc is empty \(0 bytes\)"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            read(tmp_path / name)
    stream = write(tmp_path / "s.arrow", open_=pa.ipc.new_stream).read_bytes()
    (tmp_path / "cut.arrow").write_bytes(stream[: len(stream) // 2])
    with pytest.raises(InputError, match=r"cut\.arrow cannot be read as Arrow: it is truncated"):
        read(tmp_path / "cut.arrow")


def test_offsets_that_point_elsewhere_are_refused(tmp_path):
    """They would be followed out of the buffer, and end the process."""
    text = pa.StringArray.from_buffers(
        2, pa.array([0, 1 << 30, 3], pa.int32()).buffers()[1], pa.py_buffer(b"abc")
    )
    batch = pa.record_batch([text], names=["text"])
    with pa.ipc.new_file(tmp_path / "t.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InputError, match=r"t\.arrow, record batch 0 cannot be read as Arrow"):
        read(tmp_path / "t.arrow")


def test_what_parquet_cannot_hold_is_refused(tmp_path):
    table = pa.table({"text": ["a"], "gap": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(InputError, match=r"column 'gap' .* cannot be kept in Parquet"):
        read(write(tmp_path / "t.arrow", table))


def test_kinds_are_not_mixed(tmp_path):
    write(tmp_path / "a.arrow")
    (tmp_path / "b.jsonl").write_text('{"text":"a"}\n')
    with pytest.raises(
        InputError, match=r"mixes Arrow \(.*a\.arrow\) with JSON Lines \(.*b\.jsonl"
    ):
        read(tmp_path)


def test_the_first_rows(tmp_path):
    write(tmp_path / "a.arrow", TABLE.slice(0, 2))
    write(tmp_path / "b.arrow", TABLE.slice(2))
    assert first_rows([str(tmp_path)], max_rows=5, max_bytes=1 << 20)["id"].to_pylist() == [
        *range(5)
    ]


def test_a_run_continues_with_the_same_rows(label, server, tmp_path, small_chunks):
    path = write(tmp_path / "in.arrow", TABLE.slice(0, 100), rows=30)
    with pytest.raises(StoppedEarly):
        label(path, tmp_path / "out.parquet", batch_size=8, concurrency=1, max_requests=7)
    summary = label(path, tmp_path / "out.parquet", batch_size=8)
    assert (summary["state"], summary["rows"]) == ("complete", 100)
    assert not server.sent_twice()
    label(path, tmp_path / "at_once.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "at_once.parquet").read_bytes()
