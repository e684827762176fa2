"""Whole CSV tables, as people have them, through a whole run: text exact, or refused at no cost."""

import codecs
import csv
import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, SettingsError

pytestmark = pytest.mark.fault(23)

NOT_NULL = ("NA", "N/A", "null", "NULL", "None", "nan", "NaN", "#N/A", "-", " ", "\t", "''", "\\N")


@pytest.fixture
def table(label, tmp_path):
    """Label what these bytes say and give the output; the input's name decides how it is read."""

    def run(content, name="in.csv", **settings):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        output = tmp_path / "out.parquet"
        label(settings.pop("input", path), output, **settings)
        return pq.read_table(output)

    return run


def rows(found):
    """The rows of the input's own columns."""
    return [tuple(row.values())[:-3] for row in found.to_pylist()]


def test_only_the_empty_cell_is_null(table, server):
    """Every spelling of nothing but nothing itself is text, and is sent as it stands."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["text", "x"], *([word, word] for word in NOT_NULL), ["a", ""]])
    found = table(out.getvalue() + 'b,""\n,c\n"",d\n')
    assert rows(found) == [
        *((word, word) for word in NOT_NULL),
        *(("a", None), ("b", None), (None, "c"), (None, "d")),
    ]
    assert found["error"].to_pylist() == [None] * (len(NOT_NULL) + 2) + ["null text"] * 2
    assert sorted(server.texts) == sorted({*NOT_NULL, "a", "b"})


def test_blank_lines_are_no_rows_but_empty_cells_are(table):
    found = table('\n\r\ntext\n\na\n""\n\n b \n\n')
    assert rows(found) == [("a",), (None,), (" b ",)]


def test_texts_that_are_digits_are_sent_as_they_stand(table, server):
    found = table("text,n\n00123,00123\n7,7\n1.50,1.5\n")
    assert rows(found) == [("00123", "00123"), ("7", "7"), ("1.50", "1.5")]
    assert sorted(server.texts) == ["00123", "1.50", "7"]
    assert found.schema.field("text").type == pa.string()


@pytest.mark.parametrize("name", ["label", "score", "error"])
def test_a_column_with_the_name_of_a_result_is_refused_or_renamed(table, server, name):
    """A labelled table labelled again: neither column takes the place of the other."""
    content = f"text,{name}\na,1\nb,2\n"
    with pytest.raises(SettingsError, match=rf"column '{name}' already.* `{name}_column=.NAME.`"):
        table(content)
    assert server.requests == []
    found = table(content, **{f"{name}_column": f"new {name}"})
    assert found[name].to_pylist() == [1, 2]
    assert f"new {name}" in found.column_names
    assert found.num_columns == 5


def test_predictions_collide_only_where_they_are_asked_for(table, server):
    content = "text,predictions\na,1\n"
    with pytest.raises(SettingsError, match='predictions_column="NAME"'):
        table(content, top_k=3)
    assert server.requests == []
    assert table(content)["predictions"].to_pylist() == [1]


@pytest.mark.parametrize("name", ["label", "score"])
def test_the_text_may_have_the_name_of_a_result(table, right_answer, name):
    found = table(f"{name}\na\n", text=name, **{f"{name}_column": "new"})
    assert found[name].to_pylist() == ["a"]
    assert right_answer("a")[0][name] in found["new"].to_pylist()


def test_two_results_of_one_name_are_refused(table, server):
    with pytest.raises(SettingsError):
        table("text\na\n", label_column="x", score_column="x")
    assert server.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,text\na,b\n", "two columns are named 'text'"),
        ('text,a,"a"\na,b,c\n', "two columns are named 'a'"),
        ("text,,b\na,b,c\n", "column 2 of 3 has no name"),
        ('text,"",b\na,b,c\n', "column 2 of 3 has no name"),
        ("text,\t\na,b\n", "column 2 of 2 has no name"),
        ("text,\na,\n", "column 2 of 2 has no name"),
        ("\n \n", "column 1 of 1 has no name"),
        ("\n\r\n\n", "has no header"),
        ("\ufeff", "has no header"),
        ("\ufeff\n\n", "has no header"),
        ("", "is empty (0 bytes)"),
    ],
)
def test_a_header_that_names_no_columns_is_refused(table, server, tmp_path, content, message):
    with pytest.raises(InputError) as caught:
        table(content)
    assert message in str(caught.value)
    assert server.requests == []
    assert not (tmp_path / "out.parquet.run").exists()


@pytest.mark.parametrize("missing", ["Text", "text ", "review"])
def test_a_missing_text_column_is_refused_with_those_there_are(table, server, missing):
    with pytest.raises(SettingsError, match=r"no column 'text'\. It has: .*`text`"):
        table(f"id,{missing}\n1,a\n")
    assert server.requests == []


def test_a_semicolon_file_read_with_commas_says_which_columns_it_found(table, server):
    with pytest.raises(SettingsError, match=r"no column 'text'\. It has: id;text"):
        table("id;text\n1;a\n")
    assert server.requests == []


@pytest.mark.parametrize("content", ["text,n\n", "text,n", '"text","n"\r\n', "\n\ntext,n\n\n\n"])
def test_a_header_alone_is_a_table_of_no_rows(table, server, content):
    found = table(content)
    assert found.num_rows == 0
    assert found.column_names == ["text", "n", "label", "score", "error"]
    assert server.requests == []


@pytest.mark.parametrize("terminator", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_every_make(table, terminator, last, mark):
    """With a mark before a quoted header, CR alone, and without a line break at the end."""
    lines = ['"text, long",n', "a,1", '"b\rc",2', '"d\r\ne",3', '"f\ng",4']
    content = mark + terminator.join(lines) + (terminator if last else "")
    found = table(content, text="text, long")
    assert rows(found) == [("a", 1), ("b\rc", 2), ("d\r\ne", 3), ("f\ng", 4)]


@pytest.mark.parametrize(
    ("encoding", "setting"),
    [
        *(("utf-8", "auto"), ("utf-8-sig", "auto"), ("utf-16", "auto"), ("utf-32", "auto")),
        *(("utf-16-be", "auto"), ("utf-32-be", "auto"), ("utf-16-le", "utf-16-le")),
        *(("cp1252", "cp1252"), ("latin-1", "latin-1"), ("shift_jis", "shift_jis")),
        *(("gb18030", "gb18030"), ("koi8-r", "koi8-r"), ("euc_kr", "euc_kr")),
    ],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", "¦"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_encodings_delimiters_and_compression_by_setting(
    table, encoding, setting, delimiter, suffix
):
    words = {"shift_jis": "語", "gb18030": "语", "koi8-r": "слово", "euc_kr": "말"}
    word = words.get(encoding, "é")
    if delimiter == "¦" and encoding in {"shift_jis", "koi8-r", "euc_kr"}:
        delimiter = "Z"
    text = (
        f'text{delimiter}n\r\n"{word}{delimiter}{word}\r\n"{delimiter}1\r\n{word}{delimiter}2\r\n'
    )
    data = text.encode(encoding)
    marks = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}
    data = marks.get(encoding, b"") + data
    if suffix == ".gz":
        data = gzip.compress(data)
    elif suffix == ".zst":
        data = pa.compress(data, "zstd", asbytes=True)
    found = table(data, "in.csv" + suffix, encoding=setting, delimiter=delimiter)
    assert rows(found) == [(f"{word}{delimiter}{word}\r\n", 1), (word, 2)]


@pytest.mark.parametrize("flip", [0, 5_000, 9_998, 9_999])
def test_a_type_that_flips_late_leaves_every_text_as_it_is(table, tmp_path, flip):
    """Over two files and many blocks, one cell that is no number keeps all cells text."""
    cells = [str(i) for i in range(10_000)]
    cells[flip] = "00" + cells[flip]
    (tmp_path / "in").mkdir()
    for name, part in (("b", cells[6_000:]), ("a", cells[:6_000])):
        lines = "".join(f"text {i % 3},{cell},{i}\n" for i, cell in enumerate(part))
        (tmp_path / "in" / f"{name}.csv").write_text("text,x,n\n" + lines)
    found = table("text,x,n\n", "unused.csv", input=tmp_path / "in")
    assert found.schema.field("x").type == pa.string()
    assert found.schema.field("n").type == pa.int64()
    assert found["x"].to_pylist() == cells


def test_a_gzip_file_that_is_not_called_so_is_refused(table, server):
    with pytest.raises(InputError, match="is compressed by gzip, not CSV"):
        table(gzip.compress(b"text\na\n"))
    assert server.requests == []


def test_zstd_frames_of_every_kind_are_one_file(table):
    """Several frames, an empty one, and one that says to be passed over (as pzstd writes)."""
    frames = [pa.compress(piece, "zstd", asbytes=True) for piece in (b"text\na", b"", b"b\nc\n")]
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    assert rows(table(skippable.join(frames), "in.csv.zst")) == [("ab",), ("c",)]


def test_a_file_name_that_is_no_text_is_refused(label, server, tmp_path):
    """The system takes any bytes for a name; the run's record cannot."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "caf\udce9.csv").write_text("text\na\n")
    with pytest.raises(InputError, match=r"name that is not valid UTF-8.*Rename"):
        label(tmp_path / "in", tmp_path / "out.parquet")
    assert server.requests == []
