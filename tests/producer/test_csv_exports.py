"""CSV as common programs export it."""

import bz2
import gzip
import io
import lzma
import zipfile

import pandas as pd
import pyarrow as pa
import pytest

from pipeline.errors import InputError, SettingsError
from pipeline.producer import open_source, text_bytes


def rows(path, **settings) -> list[dict]:
    chunks = open_source([str(path)], **settings).chunks(0, max_rows=100, max_bytes=1 << 26)
    return [row for chunk in chunks for row in chunk.table.to_pylist()]


def test_the_index_of_pandas_and_r_has_a_name(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"text": ["a", "b"]}).to_csv(path)
    assert rows(path) == [{"Unnamed: 0": 0, "text": "a"}, {"Unnamed: 0": 1, "text": "b"}]
    path.write_text('"","text"\n"1","a"\n')
    assert rows(path) == [{"Unnamed: 0": 1, "text": "a"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_separator_line_of_excel_holds(tmp_path, encoding, line):
    path = tmp_path / "t.csv"
    path.write_text(f"{line}\nid;text\n1;a,b\n", encoding=encoding, newline="\r\n")
    assert rows(path) == [{"id": 1, "text": "a,b"}]
    path.write_text(f"{line}\nid;text\n1;a;b\n", encoding=encoding, newline="\r\n")
    with pytest.raises(InputError, match=r"line 3: 3 cells"):
        rows(path)


def test_backslash_escapes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        'id,text,more\n1,"say \\"hi\\", \\\\ twice",\\N\n2,a\\,b,"\\N"\n3,"x\n,\\N,",\\Nx\n'
    )
    assert rows(path, escape="\\") == [
        {"id": 1, "text": 'say "hi", \\ twice', "more": None},
        {"id": 2, "text": "a,b", "more": "N"},
        {"id": 3, "text": "x\n,N,", "more": "Nx"},
    ]
    with pytest.raises(InputError, match="line 2"):
        rows(path)
    with pytest.raises(SettingsError, match="csv_escape"):
        rows(path, escape=",")


@pytest.mark.parametrize("name", ["a.csv", "z.csv", "z.csv.gz"])
def test_empty_part_files_beside_full_ones_have_no_rows(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"", mtime=0) if name.endswith("gz") else b"")
    (tmp_path / "full.csv").write_text("text\na\n")
    assert rows(tmp_path) == [{"text": "a"}]


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("t.csv", "text\na\n")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(b"text\na\n", mtime=0), "compressed by gzip"),
        (pa.compress(b"text\na\n", "zstd", asbytes=True), "compressed by zstd"),
        (bz2.compress(b"text\na\n"), "compressed by bzip2"),
        (lzma.compress(b"text\na\n"), "compressed by xz"),
        (_zip(), "a ZIP archive or an Excel workbook"),
        (b"PAR1....", "Parquet"),
    ],
    ids=["gzip", "zstd", "bzip2", "xz", "ZIP", "Parquet"],  # not the bytes, which tell the time
)
@pytest.mark.parametrize("encoding", ["auto", "latin-1"])
def test_files_of_another_kind_are_called_by_it(tmp_path, data, words, encoding):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=rf"t\.csv is {words}, not CSV"):
        open_source([str(tmp_path / "t.csv")], encoding=encoding)


LONG = text_bytes.ROW_BYTES
ROWS = {"line": "x" * LONG, "cell": '"' + "x\n" * (LONG // 2) + '"', "row": '"\n",' * (LONG // 4)}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_row_that_is_too_long_is_refused(tmp_path, row, suffix):
    """In one line or in many cells; memory would hold all of it, several times over."""
    path = tmp_path / f"t.csv{suffix}"
    data = ("text\na\n" + "b\n" * 300_000 + ROWS[row] * 2).encode()
    path.write_bytes(gzip.compress(data, 1, mtime=0) if suffix else data)
    with pytest.raises(InputError, match=r"line 300003: the row that begins here takes more"):
        open_source([str(path)])
