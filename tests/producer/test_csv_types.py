"""A CSV column gets a type only where every cell is printed back letter by letter."""

import json

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.producer import InputTable, csv_files, open_source
from pipeline.producer.csv_types import ColumnTypes, to_batch

INT, DOUBLE, TEXT = pa.int64(), pa.float64(), pa.string()


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["0", "-1", "42"], INT),
        (["1", "", "3"], INT),
        (["999999999999999999", "-999999999999999999"], INT),
        (["1000000000000000000"], TEXT),
        (["00123"], TEXT),
        (["-0"], TEXT),
        (["+1"], TEXT),
        (["1_000"], TEXT),
        ([" 1"], TEXT),
        (["1\n"], TEXT),
        (["\uff11"], TEXT),
        (["0x1f"], TEXT),
        (["1.5", "-2.25", "0.0"], DOUBLE),
        (["100.0", ""], DOUBLE),
        (["0.0001"], DOUBLE),
        (["0.00001"], TEXT),
        (["-0.0"], TEXT),
        (["1.50"], TEXT),
        ([".5"], TEXT),
        (["1."], TEXT),
        (["01.5"], TEXT),
        (["1e5"], TEXT),
        (["NaN"], TEXT),
        (["inf"], TEXT),
        (["0.00"], TEXT),
        (["1.5\n"], TEXT),
        (["123456789012.345"], DOUBLE),
        (["123456789012345.0"], DOUBLE),
        (["1234567890123456.0"], TEXT),
        (["0.123456789012345"], DOUBLE),
        (["0.000123456789012345"], DOUBLE),
        (["0.1234567890123456"], TEXT),
        (["1.234567890123456"], TEXT),
        (["1", "1.5"], TEXT),
        (["1.5", "1"], TEXT),
        (["NA", "1"], TEXT),
        (["true"], TEXT),
        (["2024-01-02"], TEXT),
        (["", ""], TEXT),
        ([], TEXT),
    ],
)
def test_type_of_a_column(tmp_path, cells, kind):
    lines = "".join(f'"{cell}","x"\n' for cell in cells)
    (tmp_path / "t.csv").write_text("c,other\n" + lines, newline="")
    source = open_source([str(tmp_path / "t.csv")])
    assert source.input.schema == pa.schema([("c", kind), ("other", TEXT)])
    for chunk in source.chunks(0, max_rows=100, max_bytes=1 << 20):
        printed = ["" if v is None else str(v) for v in chunk.table["c"].to_pylist()]
        assert printed == cells


NUMBERS = st.one_of(
    st.integers(-(10**19), 10**19).map(str),
    st.floats(allow_nan=False).map(repr),
    st.decimals(-(10**16), 10**16, allow_nan=False, places=3).map(str),
    st.from_regex(r"\A-?[0-9]{0,17}\.?[0-9]{0,17}\Z"),
    st.just(""),
)


@settings(max_examples=1500, deadline=None)
@given(cells=st.lists(NUMBERS, min_size=1, max_size=4))
@example(cells=["9007199254740993.0"])
@example(cells=["0.3", "2.675", "999999999999999.0"])
def test_a_typed_cell_prints_back_to_its_text(cells):
    """No number is ever rounded, padded or respelled by the type of its column."""
    types = ColumnTypes(1)
    types.observe([[cell] for cell in cells])
    schema = pa.schema([("c", types.types()[0])])
    values = to_batch([[cell] for cell in cells], schema).column(0).to_pylist()
    assert ["" if value is None else str(value) for value in values] == cells


@settings(max_examples=500, deadline=None)
@given(st.integers(-(10**15) + 1, 10**15 - 1), st.integers(0, 15))
def test_ordinary_decimals_become_doubles(digits, places):
    """Up to 15 significant digits, what Python prints without an exponent is a double."""
    value = digits / 10**places
    printed = repr(value)
    types = ColumnTypes(1)
    types.observe([[printed]])
    if "e" not in printed and len(printed.strip("-").replace(".", "").lstrip("0")) <= 15:
        assert types.types() == [TEXT if printed == "-0.0" else DOUBLE]


@pytest.mark.parametrize("flip_at", [0, 1, 4095, 4096, 9999, 10_000, 14_999])
def test_types_hold_over_all_rows_of_all_files(tmp_path, flip_at):
    """One cell that is no number keeps the column text, however late and in whichever file."""
    cells = [str(i) for i in range(15_000)]
    cells[flip_at] = "00" + cells[flip_at]
    for name, part in (("a", cells[:10_000]), ("b", cells[10_000:])):
        (tmp_path / f"{name}.csv").write_text("c\n" + "\n".join(part) + "\n")
    source = open_source([str(tmp_path)])
    assert source.input.schema.types == [TEXT]
    read = [
        cell
        for chunk in source.chunks(0, max_rows=4000, max_bytes=1 << 20)
        for cell in chunk.table["c"].to_pylist()
    ]
    assert read == cells


def test_types_do_not_depend_on_block_size(tmp_path, monkeypatch):
    rows = "".join(f"{i},{i}.5,{'' if i % 3 else i},\n" for i in range(50))
    (tmp_path / "t.csv").write_text("a,b,c,d\n" + rows)
    for block_rows in range(1, 52):
        monkeypatch.setattr(csv_files, "BLOCK_ROWS", block_rows)
        assert open_source([str(tmp_path)]).input.schema.types == [INT, DOUBLE, INT, TEXT]


def test_a_text_column_stays_text_whatever_it_holds(tmp_path):
    """The column to classify is read as text even where every text is a number."""
    file = tmp_path / "digits.csv"
    file.write_text("text,rating\n5,5\n42,1\n")
    source = open_source([str(file)], text_columns=["text"])
    assert source.input.schema == pa.schema([("text", pa.string()), ("rating", pa.int64())])
    assert InputTable.from_json(json.loads(json.dumps(source.input.to_json()))) == source.input
