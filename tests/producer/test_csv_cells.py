"""CSV cells come back as Python's csv module reads them."""

import csv
import gzip
import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.producer import FileSource, csv_files, open_source

ROOT = Path(__file__).parents[2]
# The sample; larger files may lie beside the checkout.
REAL_FILES = [
    ROOT / "data" / "sample" / "reviews.csv",
    *sorted((ROOT.parent / "shared" / "data").glob("*.csv")),
]

ENCODINGS = {
    "utf-8": "auto",
    "utf-8-sig": "auto",
    "utf-16": "auto",
    "utf-32": "auto",
    "utf-16-le": "utf-16-le",
    "cp1252": "cp1252",
    "gb18030": "gb18030",
}

CELLS = st.one_of(
    st.sampled_from(
        (
            *("", " ", "00123", "7", "-0", "0", "1.5", "1.50", "NA", "null", "None", "NaN", "\0"),
            *("a\r\nb", "\r", "\n", "\r\n", "x\r", ",", '"', '""', "a,b", "é", "1\n"),
        )
    ),
    st.text(st.sampled_from('ab,"\r\n\0 ;0é'), max_size=8),
)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12)
)

# Python's writer leaves a CR without quotes unless it is part of the terminator.
STYLES = (
    {"lineterminator": "\r\n", "quoting": csv.QUOTE_MINIMAL},
    {"lineterminator": "\r\n", "quoting": csv.QUOTE_ALL},
    {"lineterminator": "\n", "quoting": csv.QUOTE_ALL},
    {"lineterminator": "\r", "quoting": csv.QUOTE_ALL},
)


def as_text(value) -> str:
    """Print a value as a CSV cell: null is the empty cell, numbers are printed by Python."""
    return "" if value is None else str(value)


def read(source: FileSource, max_rows: int, start_row: int = 0) -> list[list[str]]:
    rows = []
    for chunk in source.chunks(start_row, max_rows=max_rows, max_bytes=1 << 20):
        assert chunk.first_row == start_row + len(rows)
        assert 1 <= chunk.table.num_rows <= max_rows
        assert chunk.table.schema == source.input.schema
        chunk.table.validate(full=True)
        rows += [list(map(as_text, row.values())) for row in chunk.table.to_pylist()]
    return rows


def reference(text: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("csv")


@settings(max_examples=200, deadline=None)
@given(
    table=TABLES,
    style=st.sampled_from(STYLES),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    emoji=st.booleans(),
    max_rows=st.integers(1, 14),
    block_rows=st.integers(1, 14),
    read_bytes=st.integers(1, 40),
)
def test_every_cell_is_read_as_it_was_written(
    folder, table, style, encoding, emoji, max_rows, block_rows, read_bytes
):
    """Whatever the cells hold and wherever block borders fall, each cell's text is unchanged."""
    if emoji and encoding != "cp1252":
        table = [[cell + "🙂" for cell in row] for row in table]
    header = [f"c{i}" for i in range(len(table[0]) if table else 2)]
    out = io.StringIO(newline="")
    csv.writer(out, **style).writerows([header, *table])
    path = folder / "written.csv"
    path.write_bytes(out.getvalue().encode(encoding))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "BLOCK_ROWS", block_rows)
        patch.setattr(csv_files, "READ_BYTES", read_bytes)
        source = open_source([str(path)], encoding=ENCODINGS[encoding])
        assert source.input.schema.names == header
        assert source.input.rows == len(table)
        assert read(source, max_rows) == table


def test_quoted_line_breaks_survive_every_block_border(tmp_path, hand_out):
    """The file on which pyarrow's reader loses line feeds reads right at every buffer size."""
    table = [[str(i), "x" * (i % 7) + "\r\n" + "y" * (i % 5) + "\n\r", f'"{i}"'] for i in range(60)]
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerows([["id", "text", "q"], *table])
    path = tmp_path / "borders.csv"
    path.write_bytes(out.getvalue().encode())
    for read_bytes in range(1, 200):
        hand_out(read_bytes)
        assert read(open_source([str(path)]), 11) == table


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda path: path.name)
def test_real_files_are_read_as_csv_reads_them(path):
    expected = reference(path.read_bytes().decode("utf-8-sig"))
    source = open_source([str(path)])
    assert source.input.schema.names == expected[0]
    assert source.input.rows == len(expected) - 1
    assert read(source, 1000) == expected[1:]


def test_resuming_from_each_row_gives_the_tail(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK_ROWS", 4)
    for part, (first, last) in enumerate([(0, 9), (9, 9), (9, 10), (10, 23)]):
        rows = "".join(f'{i},"line\n{i}"\n\n' for i in range(first, last))
        (tmp_path / f"{part}.csv").write_text("id,text\n" + rows)
    source = open_source([str(tmp_path)])
    whole = read(source, 5)
    assert [row[0] for row in whole] == [str(i) for i in range(23)]
    for start_row in range(24):
        assert read(source, 5, start_row) == whole[start_row:]


@pytest.mark.parametrize("compress", ["gz", "gz in two members", "zst", "zst in two frames"])
def test_compressed_files_read_as_plain_ones(tmp_path, compress):
    text = "id,text\n" + "".join(f'{i},"naïve, ""{i}""\r\n🙂"\n' for i in range(5000))
    data = text.encode()
    cut = len(data) // 2
    pieces = [data[:cut], data[cut:]] if "two" in compress else [data]
    kind = compress.split()[0]
    pack = gzip.compress if kind == "gz" else lambda d: pa.compress(d, codec="zstd", asbytes=True)
    path = tmp_path / f"t.csv.{kind}"
    path.write_bytes(b"".join(map(pack, pieces)))
    source = open_source([str(path)])
    assert read(source, 700) == reference(text)[1:]
    assert source.input.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.input.files[0].size_bytes == path.stat().st_size


def test_zero_padding_after_gzip_is_part_of_the_checksum(tmp_path):
    path = tmp_path / "padded.csv.gz"
    path.write_bytes(gzip.compress(b"a\n1\n") + b"\0" * 1_000_000)
    table = open_source([str(path)]).input
    assert table.rows == 1
    assert table.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_cell_larger_than_every_buffer_is_kept(tmp_path):
    big = "wörd, \r\n" * 1_000_000
    path = tmp_path / "big.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "text"], ["1", "a"], ["2", big], ["3", "b"]])
    chunks = list(open_source([str(path)]).chunks(0, max_rows=10, max_bytes=1 << 20))
    assert [chunk.table["text"].to_pylist() for chunk in chunks] == [["a"], [big], ["b"]]


@pytest.mark.parametrize(("delimiter", "text"), [(";", "a;b\n1;x,y\n"), ("\t", "a\tb\n1\tx,y\n")])
def test_delimiter(tmp_path, delimiter, text):
    (tmp_path / "t.csv").write_text(text)
    source = open_source([str(tmp_path / "t.csv")], delimiter=delimiter)
    assert read(source, 10) == [["1", "x,y"]]


@pytest.mark.parametrize("encoding", ["auto", "utf-8", "utf8", "utf-8-sig"])
def test_byte_order_mark_is_not_part_of_a_name(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbf"id",text\n1,\xef\xbb\xbfx\n')
    source = open_source([str(tmp_path / "t.csv")], encoding=encoding)
    assert source.input.schema.names == ["id", "text"]
    assert read(source, 10) == [["1", "\ufeffx"]], "a mark inside the text is text"


def test_memory_does_not_grow_with_rows(tmp_path):
    """Four times the rows take no more memory, whether rows are thin or fat."""
    import tracemalloc

    def peak(rows: int, text: str) -> int:
        path = tmp_path / "t.csv"
        with path.open("w") as file:
            file.write("id,text\n")
            file.writelines(f"{i},{text}\n" for i in range(rows))
        tracemalloc.start()
        source = open_source([str(path)])
        for _ in source.chunks(0, max_rows=500, max_bytes=1 << 20):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    for rows, text in ((10_000, "thin"), (100, "fat" * 70_000)):
        assert peak(4 * rows, text) < 1.3 * peak(rows, text)
