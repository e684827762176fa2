"""Types that Arrow would change silently are kept or refused, and files of one table are joined."""

from datetime import datetime as naive
from decimal import Decimal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.producer import open_source


def read(*paths) -> pa.Table:
    source = open_source([str(path) for path in paths])
    chunks = source.chunks(0, max_rows=1000, max_bytes=1 << 24)
    found = pa.concat_tables([chunk.table for chunk in chunks])
    assert found.schema.equals(source.input.schema)
    return found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("interval 1 month", "'c' is Interval"),
        ("'12:00:00+02'::timetz", "'c' is Time(isAdjustedToUTC"),
    ],
)
def test_what_the_output_cannot_keep_is_refused_by_name(tmp_path, value, words):
    path = tmp_path / "t.parquet"
    duckdb.sql(f"select 'a' as text, {value} as c").write_parquet(str(path))
    with pytest.raises(InputError) as refused:
        open_source([str(path)])
    assert words in str(refused.value)
    assert "Convert the column" in str(refused.value)


@pytest.mark.parametrize("adjusted", [False, True])
def test_times_of_arrow_are_kept_however_they_are_declared(tmp_path, adjusted):
    """Older versions of Arrow declare each time as adjusted to UTC, which means nothing there."""
    table = pa.table({"text": ["a"], "c": pa.array([1], pa.time64("us"))})
    pq.write_table(table, tmp_path / "t.parquet", write_time_adjusted_to_utc=adjusted)
    assert read(tmp_path / "t.parquet").equals(table)


def test_other_types_of_duckdb_are_kept(tmp_path):
    path = tmp_path / "t.parquet"
    duckdb.sql(
        "select 'a' as text, time '12:00:00' as tm, uuid() as u, 1::utinyint as i,"
        " 1.5::decimal(9,2) d, timestamp_ns '2020-01-01' tn, timestamptz '2020-01-01' tz,"
        " {'a': [1]} as s, map {'k': 1} as m"
    ).write_parquet(str(path))
    assert read(path).to_pylist() == pq.ParquetFile(path).read().to_pylist()


OLD = [
    naive.fromisoformat(each) if each else None
    for each in ("0001-01-01", None, "9999-12-31T23:59:59.999999", "2020-01-01")
]


@pytest.mark.parametrize("nested", [False, True])
def test_old_timestamps_keep_their_dates(tmp_path, nested):
    """Spark writes INT96, whose dates wrap around where they are read as nanoseconds."""
    times = pa.array(OLD, pa.timestamp("us"))
    if nested:
        times = pa.StructArray.from_arrays(
            [pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4], pa.int32()), times)], ["of"]
        )
    table = pa.table({"text": list("abcd"), "c": times})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=False)
    assert read(path).to_pylist() == table.to_pylist()


def test_old_timestamps_keep_their_nanoseconds(tmp_path):
    times = pa.array([-1, None, 1_600_000_000_123_456_789, 2**63 - 1], pa.timestamp("ns"))
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"text": list("abcd"), "c": times}), path, use_deprecated_int96_timestamps=True
    )
    assert read(path).column("c").cast(pa.int64()).to_pylist() == times.cast(pa.int64()).to_pylist()


def test_old_timestamps_that_fit_no_unit_are_refused(tmp_path):
    path = tmp_path / "t.parquet"
    times = [pa.array([OLD[0]], pa.timestamp("us")), pa.array([1], pa.timestamp("ns"))]
    names = ["text", "c", "d"]
    pq.write_table(pa.table([["a"], *times], names), path, use_deprecated_int96_timestamps=True)
    with pytest.raises(InputError, match="INT96"):
        open_source([str(path)])


STRINGS = ["a", None]
WIDENED = [
    (pa.nulls(2), pa.array(STRINGS)),
    (pa.array(STRINGS), pa.array(STRINGS, pa.large_string())),
    (pa.array(STRINGS), pa.array(STRINGS, pa.string_view())),
    (pa.array(STRINGS), pa.array(STRINGS).dictionary_encode()),
    (pa.array([1, None], pa.int32()), pa.array([2**40, None])),
    (pa.array([2**32 - 1, None], pa.uint32()), pa.array([-1, None], pa.int8())),
    (pa.array([0.1, None], pa.float32()), pa.array([0.1, None])),
    (pa.array([1, None], pa.timestamp("us")), pa.array([1, None], pa.timestamp("ns"))),
    (pa.array([1, None], pa.time32("ms")), pa.array([1, None], pa.time64("us"))),
    (pa.array([1, None], pa.duration("s")), pa.array([1, None], pa.duration("us"))),
    (pa.array([Decimal("1.25")] * 2), pa.array([Decimal("123456789.1")] * 2)),
    (pa.array([[], None], pa.list_(pa.null())), pa.array([["a"], None])),
    (pa.array([{"a": 1}] * 2, pa.struct([("a", pa.int8())])), pa.array([{"a": 2**40}] * 2)),
]


@pytest.mark.parametrize(("one", "other"), WIDENED, ids=lambda each: str(each.type))
@pytest.mark.parametrize("swapped", [False, True])
def test_columns_are_as_wide_as_any_file_needs(tmp_path, one, other, swapped):
    both = [one, other][:: -1 if swapped else 1]
    for name, column in zip("ab", both, strict=True):
        pq.write_table(pa.table({"text": ["x", "y"], "c": column}), tmp_path / f"{name}.parquet")
    found = read(tmp_path).column("c")
    expected = [column.cast(found.type).to_pylist() for column in both]
    assert found.to_pylist() == [*expected[0], *expected[1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([1]), pa.array(["1"])),
        (pa.array([1]), pa.array([1.0])),
        (pa.array([1], pa.uint64()), pa.array([1])),
        (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us"))),
        (pa.array([{"a": 1}]), pa.array([{"b": 1}])),
    ],
)
def test_columns_that_no_type_holds_are_refused_with_both_files(tmp_path, one, other):
    pq.write_table(pa.table({"text": ["x"], "c": one}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "c": other}), tmp_path / "b.parquet")
    with pytest.raises(InputError) as refused:
        open_source([str(tmp_path)])
    for words in ("a.parquet", "b.parquet", "'c'", str(one.type), str(other.type)):
        assert words in str(refused.value)


def test_a_value_that_a_wider_type_cannot_hold_is_refused(tmp_path):
    """Nanoseconds end in 2262."""
    for name, unit in (("a", "us"), ("b", "ns")):
        times = pa.array([2**60], pa.timestamp(unit))
        pq.write_table(pa.table({"text": ["x"], "c": times}), tmp_path / f"{name}.parquet")
    with pytest.raises(
        InputError, match=r"a\.parquet: column 'c' \(timestamp\[us\]\) does not fit"
    ):
        open_source([str(tmp_path)])
