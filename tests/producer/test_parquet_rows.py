"""Parquet rows come back unchanged in value, type and order."""

import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import open_source

WHEN = datetime(2024, 2, 29, 12, tzinfo=UTC)
TYPED = {
    "null": pa.nulls(7),
    "bool": pa.array([True, None, False] * 2 + [True]),
    "int8": pa.array([1, None, -3, 4, 5, 6, 7], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0, 1, 2, 3, 4], pa.uint64()),
    "double": pa.array([0.1, float("nan"), None, -0.0, float("inf"), 1e300, 5e-324]),
    "string": pa.array(["a", None, "", "é\r\n", "🙂", "\0", "x" * 100]),
    "large_string": pa.array(["a", None, "", "b", "c", "d", "e"], pa.large_string()),
    "string_view": pa.array(["a" * 40, None, "", "b", "c", "d", "e"], pa.string_view()),
    "binary": pa.array([b"\xff", None, b"", b"b", b"c", b"d", b"e"]),
    "fixed": pa.array([b"ab", None, b"cd", b"ef", b"gh", b"ij", b"kl"], pa.binary(2)),
    "dictionary": pa.array(["a", None, "b", "a", "b", "c", "a"]).dictionary_encode(),
    "decimal": pa.array([Decimal("1.20"), None] + [Decimal("-3.45")] * 5, pa.decimal128(10, 2)),
    "date": pa.array([WHEN.date(), None] + [WHEN.date()] * 5),
    "zoned": pa.array([WHEN, None] + [WHEN] * 5, pa.timestamp("us", "Europe/Paris")),
    "naive_ns": pa.array([1, None, 3, 4, 5, 6, 7], pa.timestamp("ns")),
    "duration": pa.array([1, None, 3, 4, 5, 6, 7], pa.duration("ms")),
    "list": pa.array([["a", None], None, [], ["b"], ["c"], ["d"], ["e", "f"]]),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None] + [{"a": None, "b": None}] * 5),
    "map": pa.array([[("k", 1)], None, []] + [[("l", 2)]] * 4, pa.map_(pa.string(), pa.int64())),
}


def read(source, max_rows=1000, start_row=0, max_bytes=1 << 24) -> pa.Table:
    tables = []
    row = start_row
    for chunk in source.chunks(start_row, max_rows=max_rows, max_bytes=max_bytes):
        assert chunk.first_row == row
        assert chunk.table.schema.equals(source.input.schema, check_metadata=True)
        chunk.table.validate(full=True)
        row += chunk.table.num_rows
        tables.append(chunk.table)
    assert row == source.input.rows
    return pa.concat_tables(tables) if tables else source.input.schema.empty_table()


@pytest.mark.parametrize("name", TYPED)
@pytest.mark.parametrize("max_rows", [2, 100])
def test_types_and_values_are_carried_unchanged(tmp_path, name, max_rows):
    table = pa.table({"text": pa.array(list("abcdefg")), "c": TYPED[name]})
    for part in range(2):
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=3)
    source = open_source([str(tmp_path)])
    assert source.input.schema.field("c").type == table.schema.field("c").type
    expected = pa.concat_tables([table, table])
    # NaN is unlike itself, so values are compared as they are printed.
    assert str(read(source, max_rows).to_pylist()) == str(expected.to_pylist())


def test_pandas_metadata_is_kept(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"]}, index=pd.Index([10, 20], name="key"))
    frame.to_parquet(tmp_path / "t.parquet")
    assert read(open_source([str(tmp_path)])).to_pandas().equals(frame)


@pytest.fixture(scope="module")
def table():
    noise = random.Random(0)
    texts = [None if i % 9 == 4 else noise.randbytes(noise.randrange(30)).hex() for i in range(300)]
    return pa.table({"id": range(300), "text": texts, "d": pa.array(texts).dictionary_encode()})


@pytest.mark.parametrize("group_rows", [1, 7, 64, 99, 100])
@pytest.mark.parametrize("batch_rows", [1, 5, 1024])
@pytest.mark.parametrize("max_rows", [1, 10, 64, 1000])
def test_every_start_row_gives_the_tail(
    tmp_path, monkeypatch, table, group_rows, batch_rows, max_rows
):
    monkeypatch.setattr("pipeline.producer.parquet_files.BATCH_ROWS", batch_rows)
    table = table.slice(0, 100)
    for part, (first, last) in enumerate([(0, 30), (30, 30), (30, 31), (31, 100)]):
        path = tmp_path / f"{part}.parquet"
        pq.write_table(table.slice(first, last - first), path, row_group_size=group_rows)
    source = open_source([str(tmp_path)])
    for start_row in (0, 1, 6, 7, 8, 29, 30, 31, 32, 63, 64, 95, 98, 99, 100):
        tail = read(source, max_rows, start_row)
        assert tail.to_pylist() == table.slice(start_row).to_pylist()


def test_limit_takes_the_first_rows(tmp_path, table):
    pq.write_table(table.slice(0, 100), tmp_path / "a.parquet", row_group_size=30)
    pq.write_table(table.slice(100), tmp_path / "b.parquet")
    for limit in (1, 99, 100, 101, 300, 5000):
        source = open_source([str(tmp_path)], limit=limit)
        assert source.input.rows == min(limit, 300)
        assert [file.rows for file in source.input.files] == [100, 200]
        assert read(source, 64).to_pylist() == table.slice(0, limit).to_pylist()
        last = source.input.rows - 1
        assert read(source, 64, last).to_pylist() == table.slice(last, 1).to_pylist()


def test_no_rows_and_no_row_groups(tmp_path):
    schema = pa.schema([("text", pa.string())])
    pq.write_table(schema.empty_table(), tmp_path / "rows.parquet")
    with pq.ParquetWriter(tmp_path / "groups.parquet", schema):
        pass
    assert pq.ParquetFile(tmp_path / "groups.parquet").num_row_groups == 0
    source = open_source([str(tmp_path)])
    assert source.input.rows == 0
    assert read(source).num_rows == 0
    assert source.input.schema == schema


STREAM = """
import sys, pyarrow
from pipeline.producer import open_source
for _ in open_source([sys.argv[1]]).chunks(0, max_rows=int(sys.argv[2]), max_bytes=1 << 20):
    pass
print(pyarrow.default_memory_pool().max_memory())
"""


def peak_bytes(path, max_rows: int) -> int:
    """Return the most that pyarrow held in a process that streams the file chunk by chunk."""
    command = [sys.executable, "-c", STREAM, str(path), str(max_rows)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_huge_row_group_is_streamed(tmp_path, compression):
    """Memory follows the chunk, not the row group: far below it, and flat when it grows."""
    noise = random.Random(0)

    def peak(rows: int) -> tuple[int, int]:
        table = pa.table({"text": [noise.randbytes(200).hex() for _ in range(rows)]})
        pq.write_table(
            table,
            tmp_path / "t.parquet",
            row_group_size=rows,
            compression=compression,
            use_dictionary=False,
        )
        return peak_bytes(tmp_path / "t.parquet", max_rows=1000), table.nbytes

    small, _ = peak(50_000)
    large, whole = peak(200_000)
    assert large < whole / 8
    assert large < 1.3 * small


def test_fat_rows_are_decoded_a_few_at_a_time(tmp_path):
    noise = random.Random(0)
    table = pa.table({"text": [noise.randbytes(100_000).hex() for _ in range(400)]})
    # The writer looks at page sizes only between its batches; a page is always decoded whole.
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, write_batch_size=4)
    assert peak_bytes(tmp_path / "t.parquet", max_rows=10_000) < table.nbytes / 3


@pytest.mark.parametrize("kept", [1, 4, 11, 0.3, 0.9, -9, -8, -1])
def test_truncated_file(tmp_path, table, kept):
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"t\.parquet cannot be read as Parquet"):
        open_source([str(path)])


def test_not_parquet(tmp_path):
    (tmp_path / "t.parquet").write_text("id,text\n" * 100)
    with pytest.raises(InputError, match=r"t\.parquet cannot be read as Parquet"):
        open_source([str(tmp_path)])


def flipped(path, positions, masks):
    """Write the file again and again, each time with one byte changed."""
    data = path.read_bytes()
    for position in positions:
        for mask in masks:
            path.write_bytes(
                data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]
            )
            yield


def read_or_refused(path):
    """Read all of a file, which is as many rows as settled, or say that it is refused."""
    try:
        source = open_source([str(path)])
        rows = [chunk.table.num_rows for chunk in source.chunks(0, max_rows=50, max_bytes=1 << 20)]
    except InputError as error:
        assert "t.parquet" in str(error)  # noqa: PT017 - both outcomes are fine
        return
    assert sum(rows) == source.input.rows


def damageable(path):
    """Write a small file of many kinds of columns."""
    columns = {name: column for name, column in TYPED.items() if name != "null"}
    pq.write_table(pa.table({"text": list("abcdefg"), **columns}), path, row_group_size=4)


@pytest.mark.fault(25)
def test_a_damaged_footer_is_an_input_error(tmp_path):
    """Nothing but an InputError comes of it, whichever part of the footer is hit."""
    path = tmp_path / "t.parquet"
    damageable(path)
    size = path.stat().st_size
    footer = int.from_bytes(path.read_bytes()[-8:-4], "little") + 8
    for _ in flipped(path, random.Random(0).sample(range(size - footer, size), 250), [0x81]):
        read_or_refused(path)


@pytest.mark.slow
@pytest.mark.fault(25)
@pytest.mark.timeout(1800)
def test_any_damaged_byte_is_an_input_error_or_does_no_harm(tmp_path):
    path = tmp_path / "t.parquet"
    damageable(path)
    for _ in flipped(path, range(path.stat().st_size), [0x81]):
        read_or_refused(path)


@pytest.mark.parametrize("name", ["id", "text", "d"])
def test_damaged_pages_are_refused_before_anything_is_read(tmp_path, table, name):
    """The footer reads, the data does not: the error says where, in whichever column it is."""
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, write_page_checksum=True, compression="none", row_group_size=100)
    column = pq.ParquetFile(path).metadata.row_group(1).column(table.schema.names.index(name))
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"t\.parquet, row group 1, column '{name}' cannot"):
        open_source([str(path)])


def test_text_that_is_not_utf8_passes_as_it_is(tmp_path):
    """Other writers leave such bytes in their columns of text, and rows decide on them."""
    damaged = pa.array([b"fine", None, b"VA\xffID", b"\xc3"] * 9)
    text = damaged.view(pa.string())
    columns = {
        "text": text,
        "large": damaged.cast(pa.large_binary()).view(pa.large_string()),
        "view": damaged.cast(pa.binary_view()).view(pa.string_view()),
        "list": pa.ListArray.from_arrays(pa.array(range(37), pa.int32()), text),
        "struct": pa.StructArray.from_arrays([text], ["of"]),
        "dictionary": text.dictionary_encode(),
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=10)
    source = open_source([str(path)])
    chunks = list(source.chunks(0, max_rows=7, max_bytes=1 << 20))
    found = pa.concat_tables([chunk.table for chunk in chunks]).combine_chunks()
    for name in ("text", "large", "view", "dictionary"):
        column = found.column(name).chunk(0)
        if name == "dictionary":
            column = column.dictionary_decode()
        assert column.cast(pa.large_binary()).to_pylist() == damaged.to_pylist(), name
    inside = found.column("list").chunk(0).flatten()
    assert inside.cast(pa.binary()).to_pylist() == damaged.to_pylist()
    assert found.column("struct").chunk(0).field(0).cast(pa.binary()).equals(damaged)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"id": [1]}, "b.parquet has no column 'text', but"),
        ({"id": [1], "text": ["a"], "x": [1]}, "b.parquet has a column 'x' that"),
        ({"text": ["a"], "id": [1]}, "b.parquet has its columns in another order"),
        ({"id": [1.5], "text": ["a"]}, "b.parquet: column 'id' is double, but int64 in"),
    ],
)
def test_files_with_other_columns(tmp_path, second, message):
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table(second), tmp_path / "b.parquet")
    with pytest.raises(InputError) as caught:
        open_source([str(tmp_path)])
    assert message in str(caught.value)
    assert "a.parquet" in str(caught.value)


def test_metadata_and_nullability_may_differ(tmp_path):
    strict = pa.schema([pa.field("text", pa.string(), nullable=False)], metadata={"from": "a"})
    loose = pa.schema([pa.field("text", pa.string())], metadata={"from": "b"})
    pq.write_table(pa.table({"text": ["a"]}, schema=strict), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [None]}, schema=loose), tmp_path / "b.parquet")
    source = open_source([str(tmp_path)])
    assert source.input.schema.metadata == {b"from": b"a"}
    assert read(source)["text"].to_pylist() == ["a", None]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["text", "text"], "two columns are named 'text'"), ([], "t.parquet has no columns")],
)
def test_columns_that_cannot_be_told_apart(tmp_path, names, message):
    table = pa.Table.from_arrays([pa.array(["a"])] * len(names), names=names)
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message):
        open_source([str(tmp_path)])


LONG = "x" * 1_500_000
BOMBS = {
    "dictionary": {"use_dictionary": True},
    "prefixes": {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("in_list", [False, True])
def test_a_text_that_is_stored_once_for_many_rows_is_not_decoded_for_all(tmp_path, bomb, in_list):
    """A file of some kB that would take 3 GB."""
    rows = 2_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([LONG]))
    if bomb == "prefixes":
        texts = pa.array([LONG] * 100).take(pa.array([0] * 200, pa.int32()))
        rows = len(texts)
    if in_list:
        texts = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), texts)
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"text": texts}), path, compression="zstd", store_schema=False, **BOMBS[bomb]
    )
    assert path.stat().st_size < 100_000
    assert peak_bytes(path, max_rows=1000) < 100 * len(LONG)
