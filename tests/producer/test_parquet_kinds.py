"""Every kind of Parquet file comes through a whole run unchanged, or is refused at no cost."""

import datetime as dt
import decimal
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import InputError
from pipeline.producer import TableSource

pytestmark = pytest.mark.fault(25)

TEXTS = ["good", "bad", None, "", "good", "🙂\r\n", "x" * 60]
ROWS = len(TEXTS)


def few(*values, kind=None):
    """A column of these values in turn."""
    return pa.array([values[i % len(values)] for i in range(ROWS)], kind)


def coded(values, index="int32", ordered=False):
    kind = pa.dictionary(pa.type_for_alias(index), values.type, ordered)
    return values.dictionary_encode().cast(kind)


D = decimal.Decimal
KINDS = {
    "dictionary": coded(few("a", "b", None)),
    "dictionary of int8": coded(few("a", "b", None), "int8"),
    "dictionary of uint16": coded(few("a", "b"), "uint16"),
    "dictionary of binary": coded(few(b"a", b"\xff", None)),
    "dictionary of large_string": coded(few("a", None, "b", kind=pa.large_string())),
    "dictionary of integers": coded(few(7, 8, None)),
    "dictionary of times": coded(few(dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None)),
    "dictionary, ordered, with more than is used": pa.DictionaryArray.from_arrays(
        pa.array([i % 2 for i in range(ROWS)], pa.int8()), ["z", "a", "never"], ordered=True
    ),
    "list of dictionary": pa.ListArray.from_arrays(
        pa.array(range(ROWS + 1), pa.int32()), coded(few("a", "b"))
    ),
    "struct of dictionary": pa.StructArray.from_arrays([coded(few("a", "b"))], ["x"]),
    "large_string": few("a", None, "", kind=pa.large_string()),
    "string_view": few("a", None, "x" * 40, kind=pa.string_view()),
    "binary": few(b"\xff\0", None, b""),
    "large_binary": few(b"\xff\0", None, b"", kind=pa.large_binary()),
    "binary_view": few(b"\xff\0", None, b"x" * 40, kind=pa.binary_view()),
    "fixed_size_binary": few(b"ab", None, kind=pa.binary(2)),
    "list": few([1, None], None, []),
    "large_list": few([1, None], None, [], kind=pa.large_list(pa.int8())),
    "list_view": few([1, None], None, [], kind=pa.list_view(pa.int8())),
    "fixed_size_list": few([1, 2], None, kind=pa.list_(pa.int32(), 2)),
    "list of string_view": few(["x" * 40, None], None, kind=pa.list_(pa.string_view())),
    "list of struct": few([{"a": 1, "b": None}], None, []),
    "list of list of list": few([[[1], []], None], []),
    "struct": few({"a": 1, "b": {"c": "x"}}, None, {"a": None, "b": None}),
    "map": few([("k", [1])], None, [], kind=pa.map_(pa.string(), pa.list_(pa.int8()))),
    "decimal32": few(D("1.50"), None, D("-999.99"), kind=pa.decimal32(5, 2)),
    "decimal64": few(D("1.50"), None, kind=pa.decimal64(15, 2)),
    "decimal128": few(D("1.50"), None, D(10) ** 35, kind=pa.decimal128(38, 2)),
    "decimal256": few(D("1.50"), None, D(10) ** 70, kind=pa.decimal256(76, 2)),
    "half float": few(1.5, None, float("nan"), kind=pa.float16()),
    "float": few(0.1, None, float("-inf"), kind=pa.float32()),
    "date32": few(dt.date(1, 1, 1), None, dt.date(9999, 12, 31)),
    "date64": few(dt.date(1, 1, 1), None, kind=pa.date64()),
    "time32": few(1, None, kind=pa.time32("ms")),
    "time in seconds": few(1, None, kind=pa.time32("s")),
    "time64": few(1, None, kind=pa.time64("ns")),
    "timestamp in seconds": few(1, None, kind=pa.timestamp("s")),
    "timestamp with a zone": few(1, None, kind=pa.timestamp("us", "Asia/Tokyo")),
    "timestamp with an offset": few(1, None, kind=pa.timestamp("ms", "+05:30")),
    "nanoseconds": few(1, None, 2**62, kind=pa.timestamp("ns", "UTC")),
    "duration": few(1, None, kind=pa.duration("ns")),
    "uuid": few(uuid.UUID(int=5).bytes, None, kind=pa.uuid()),
    "json": few('{"a": 1}', None, kind=pa.json_()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int32(), (2,)), few([1, 2], kind=pa.list_(pa.int32(), 2))
    ),
    "all null": pa.nulls(ROWS),
    "all null integers": pa.nulls(ROWS, pa.int16()),
    "list of null": few([None], None, kind=pa.list_(pa.null())),
    "unsigned": few(2**64 - 1, None, kind=pa.uint64()),
}


def check_kept(given, found):
    """All columns of the input come first in the output, with their values, types and fields."""
    assert found.column_names == [*given.column_names, "label", "score", "error"]
    for name in given.column_names:
        assert found.schema.field(name).equals(given.schema.field(name), check_metadata=True), name
        # Printed, since NaN is not equal to itself.
        assert str(found[name].to_pylist()) == str(given[name].to_pylist()), name
    for key, value in (given.schema.metadata or {}).items():
        assert found.schema.metadata[key] == value


@pytest.mark.parametrize("group_rows", [1, 3, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_each_kind_comes_back(label, tmp_path, kind, group_rows):
    table = pa.table({"text": TEXTS, "c": KINDS[kind]})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=group_rows)
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    given = pq.read_table(tmp_path / "in.parquet")
    check_kept(given, pq.read_table(tmp_path / "out.parquet"))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("form", ["out.parquet", "out"])
def test_all_kinds_together_in_uneven_row_groups(label, tmp_path, form):
    """A file whose row groups have 1, 40, 7 and 0 rows, cut into other chunks, is the same."""
    table = pa.table({"text": TEXTS, **KINDS})
    with pq.ParquetWriter(tmp_path / "in.parquet", table.schema) as writer:
        for copies, first, rows in ((1, 0, 1), (8, 3, 40), (1, 0, 7), (1, 0, 0)):
            writer.write_table(pa.concat_tables([table] * copies).slice(first, rows))
    label(tmp_path / "in.parquet", tmp_path / form)
    given = pq.read_table(tmp_path / "in.parquet")
    assert given.num_rows == 48
    check_kept(given, pq.read_table(tmp_path / form))


@pytest.mark.parametrize(
    "kind",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("group_rows", [1, 4, 100])
def test_the_text_may_be_of_any_text_kind(label, right_answer, tmp_path, kind, group_rows):
    texts = pa.array(TEXTS, pa.string())
    column = texts.dictionary_encode() if pa.types.is_dictionary(kind) else texts
    table = pa.table({"text": column.cast(kind)})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=group_rows)
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    check_kept(pq.read_table(tmp_path / "in.parquet"), found)
    best = [text if text is None else right_answer(text)[0]["label"] for text in TEXTS]
    assert found["label"].to_pylist() == best


def monthly(folder, values_of_each, index):
    """Files whose dictionaries have no value in common."""
    for month, count in enumerate(values_of_each):
        values = pa.array([f"{month}/{i}" for i in range(count)])
        table = pa.table({"text": values, "c": coded(values, index)})
        pq.write_table(table, folder / f"{month}.parquet", row_group_size=60)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("index", "counts", "kept"),
    [
        ("int8", (100, 28), "int8"),
        ("int8", (100, 29), "int32"),
        ("uint8", (200, 56), "uint8"),
        ("uint8", (200, 57), "int32"),
        ("int8", (60, 60, 60, 60), "int32"),
    ],
)
def test_dictionaries_that_overflow_together_get_a_larger_index(
    label, tmp_path, index, counts, kept
):
    """Months of categories fit int8 each, all together not: no value is lost, and none is late."""
    (tmp_path / "in").mkdir()
    monthly(tmp_path / "in", counts, index)
    label(tmp_path / "in", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("c").type == pa.dictionary(pa.type_for_alias(kept), pa.string())
    assert found["c"].to_pylist() == found["text"].to_pylist()
    assert found.num_rows == sum(counts)


def test_field_metadata_and_nullability_are_kept(label, tmp_path):
    schema = pa.schema(
        [
            pa.field("text", pa.string(), nullable=False, metadata={"unit": "words"}),
            pa.field("s", pa.struct([pa.field("x", pa.int8(), nullable=False)]), nullable=False),
            pa.field("l", pa.list_(pa.field("y", pa.int8(), nullable=False))),
        ],
        metadata={"made by": "somebody", "é": "ü"},
    )
    rows = [{"text": "a", "s": {"x": 1}, "l": [1]}, {"text": "b", "s": {"x": 2}, "l": None}]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    check_kept(pq.read_table(tmp_path / "in.parquet"), pq.read_table(tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    "names",
    [
        ("text", "a.b", "a", "b"),
        ("text", "", " "),
        ("text", "Text", "TEXT", "ü", "🙂"),
        ("text", "x\ny", "x\0y", "*", "a[0]"),
        ("text", "Label", "labels", "predictions"),
    ],
)
@pytest.mark.parametrize("form", ["out.parquet", "out"])
def test_a_column_may_have_any_name(label, tmp_path, names, form):
    columns = [pa.array([f"{i}a", f"{i}b"]) for i in range(len(names))]
    table = pa.Table.from_arrays(columns, names=names)
    pq.write_table(table, tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / form)
    check_kept(table, pq.read_table(tmp_path / form))


@pytest.mark.parametrize("name", ["__filename", "__fragment_index", "__batch_index"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_name_that_pyarrow_keeps_for_itself_is_refused(label, server, tmp_path, name, kind):
    source = tmp_path / f"in.{kind}"
    if kind == "csv":
        source.write_text(f"text,{name}\na,b\n")
    else:
        pq.write_table(pa.table({"text": ["a"], name: ["b"]}), source)
    with pytest.raises(InputError, match=rf"column '{name}' .* rename it"):
        label(source, tmp_path / "out.parquet")
    assert server.requests == []


UNIONS = [pa.array([1] * 2), pa.array(["a"] * 2)]
FOREIGN = {
    "union": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), UNIONS),
    "run ends": pa.RunEndEncodedArray.from_arrays([1, 2], ["a", "b"]),
    "interval": pa.array([pa.MonthDayNano([1, 2, 3]), None]),
    "struct of nothing": pa.array([{}, None], pa.struct([])),
    "dictionary of integers": pa.array([1, 2]).dictionary_encode(),
    "dictionary of views": pa.DictionaryArray.from_arrays(
        [0, 1], pa.array(["a", "b"], pa.string_view())
    ),
    "list of dictionary of floats": pa.ListArray.from_arrays(
        [0, 1, 2], pa.array([1.5, 2.5]).dictionary_encode()
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_parquet_cannot_hold_stays_in_memory(server, kind):
    """Only texts go through the run, so another column comes back; a source of it is refused."""
    table = pa.table({"text": ["a", "b"], "c": FOREIGN[kind]})
    found = pipeline.classify(table, endpoint=server.url, dialect="hf")
    assert found.select(["text", "c"]).equals(table)
    assert found["error"].null_count == 2
    with pytest.raises(InputError, match=r"The table: column 'c' .*cannot be kept in Parquet"):
        TableSource(table)


def test_a_table_whose_dictionaries_overflow_together(server):
    pieces = [coded(pa.array([f"{part}{i}" for i in range(100)]), "int8") for part in "ab"]
    table = pa.table({"text": ["a"] * 200, "c": pa.chunked_array(pieces)})
    found = pipeline.classify(table, endpoint=server.url, dialect="hf")
    assert found["c"].equals(table["c"])
    with pytest.raises(InputError, match=r"column 'c' .* more values than its index can count"):
        TableSource(table)


def test_a_null_inside_a_dictionary_is_a_null(server):
    """Arrow may hold a null as a value of the dictionary, Parquet only among the indices."""
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2]), ["b", None, "a"])
    given = pa.table({"text": coded, "c": coded})
    found = pipeline.classify(given, endpoint=server.url, dialect="hf", max_errors=2)
    assert found["c"].to_pylist() == ["b", None, None, "a"]
    assert found["error"].to_pylist() == [None, "null text", "null text", None]
    assert found.schema.field("c").type == given.schema.field("c").type


@pytest.mark.parametrize(
    "content",
    [
        b"id,text\n1,a\n",
        b"PK\x03\x04" + b"\0" * 100,
        b"ARROW1\0\0" + b"\0" * 100 + b"ARROW1",
        b"ORC" + b"\0" * 100,
        b"PAR1",
        b"PAR1PAR1",
        b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1",
        b"PAR1" + b"\0" * 100 + b"\x64\0\0\0PARE",
        b"\0",
    ],
    ids=repr,
)
def test_another_kind_of_file_by_that_name_is_refused(label, server, tmp_path, content):
    (tmp_path / "in.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"in\.parquet cannot be read as Parquet"):
        label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert server.requests == []
    assert not (tmp_path / "out.parquet.run").exists()


def test_a_text_column_of_another_kind_is_refused(label, server, tmp_path):
    for number, column in enumerate((few(1), few(b"a"), few(["a"]), coded(few(b"a")))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"text": column}), path)
        with pytest.raises(InputError, match=r"The column .text. holds .*, not text"):
            label(path, tmp_path / "out.parquet")
    assert server.requests == []
