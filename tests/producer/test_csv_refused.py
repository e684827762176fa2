"""What is wrong with a CSV is an error that names the file, the line and the mend."""

import gzip
import random
import zlib

import pyarrow as pa
import pytest

from pipeline.errors import InputError, SettingsError
from pipeline.producer import open_source

GOOD = b"id,text\n1,a\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"id,text\n1,a\n2\n", "t.csv line 3: 1 cell, but the header names 2"),
        (b"id,text\n1,a,b\n", "t.csv line 2: 3 cells, but the header names 2"),
        (b'id,text\n1,"a\r\nb\rc\nd"\n\n3,a,b\n', "t.csv line 7: 3 cells"),
        (b'"id\n(number)",text\n1,a\n2\n', "t.csv line 4: 1 cell"),
        (b'id,text\n1,a\n2,"open\n3,b\n', "t.csv line 3: a quote that opens in this record"),
        (b'id,text\n1,"a"b\n', "t.csv line 2: ',' expected after '\"'"),
        (b'id,text\n1,"a\n\n"b\n', r"t.csv line 4 (the record begins at line 2): ',' expected"),
        (b"id,text\n1,a\n2,\xff\n", "t.csv line 3: not valid utf-8 (byte 0xff"),
        (b"id,te\xe9t\n", "t.csv line 1: not valid utf-8"),
        (b"id,text\r1,a\r\n2,b\n\xc3", "t.csv line 4: not valid utf-8"),
        (b"\xff\xfei\x00,\x00t\x00\n\x001\x00,\x00\x00\xd8x\x00\n\x00", "line 2: not valid utf-16"),
        (b"\xff\xfei\x00\n\x001", "t.csv line 2: not valid utf-16"),
        (b"\n\r\n\n", "t.csv has no header"),
        (b"\xef\xbb\xbf", "t.csv has no header"),
        (b"", "t.csv is empty (0 bytes)"),
        (b"id,,text\n", "t.csv: column 2 of 3 has no name"),
        (b"id, \n1,2\n", "t.csv: column 2 of 2 has no name"),
        (b"id,text,id\n", "t.csv: two columns are named 'id'"),
    ],
)
def test_bad_csv(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_source([str(tmp_path / "t.csv")])
    assert message in str(caught.value)


@pytest.mark.parametrize("read_bytes", [1, 2, 7, 256 << 10])
@pytest.mark.parametrize("terminator", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "shift_jis"])
def test_line_of_a_bad_byte(tmp_path, hand_out, read_bytes, terminator, encoding):
    """The line is exact wherever buffers end, for every line break and in every encoding."""
    hand_out(read_bytes)
    rows = ["id,text"] + [f"{i},語{i}" for i in range(40)] + ["x,"]
    bad = b"\x00\xd8\n\x00" if encoding == "utf-16" else b"\xff"
    path = tmp_path / "t.csv"
    path.write_bytes(terminator.join(rows).encode(encoding) + bad + b"\n\x00" * 9)
    with pytest.raises(InputError, match=r"t\.csv line 42: not valid"):
        open_source([str(path)], encoding="auto" if encoding == "utf-16" else encoding)


@pytest.mark.parametrize("at", [2, 4096, 4097, 4098, 9000])
def test_line_of_a_ragged_row_past_block_borders(tmp_path, at):
    rows = [f"{i},x" for i in range(2, 10_000)]
    rows[at - 2] += ",y"
    (tmp_path / "t.csv").write_text("id,text\n" + "\n".join(rows))
    with pytest.raises(InputError, match=rf"t\.csv line {at}: 3 cells"):
        open_source([str(tmp_path / "t.csv")])


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (b"id\n1\n", "b.csv has no column 'text', but"),
        (b"id,text,more\n", "b.csv has a column 'more' that"),
        (b"text,id\n", "b.csv has its columns in another order than"),
    ],
)
def test_files_with_other_columns(tmp_path, second, message):
    (tmp_path / "a.csv").write_bytes(GOOD)
    (tmp_path / "b.csv").write_bytes(second)
    with pytest.raises(InputError) as caught:
        open_source([str(tmp_path)])
    assert message in str(caught.value)
    assert "a.csv" in str(caught.value)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("rows", [3, 20_000])
def test_truncated_compressed_file_is_never_a_short_table(tmp_path, suffix, rows):
    """A download that stopped is an error at every length, not a table with fewer rows."""
    noise = random.Random(0)
    text = "id,text\n" + "".join(f"{i},{noise.random()}\n" for i in range(rows))
    pack = gzip.compress if suffix == "gz" else lambda d: pa.compress(d, "zstd", asbytes=True)
    data = pack(text.encode())
    path = tmp_path / f"t.csv.{suffix}"
    for length in {
        *range(1, len(data), max(1, len(data) // (150 if rows < 100 else 40))),
        *range(len(data) - 20, len(data)),
    }:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=rf"t\.csv\.{suffix} cannot be decompressed"):
            open_source([str(path)])
    path.write_bytes(data)
    assert open_source([str(path)]).input.rows == rows


def test_damaged_gzip_is_refused_or_reads_the_same(tmp_path):
    """The format carries a checksum: a flipped bit never changes a cell."""
    data = gzip.compress(b"id,text\n" + b"".join(b"%d,text %d\n" % (i, i * i) for i in range(40)))
    path = tmp_path / "t.csv.gz"
    refused = 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            source = open_source([str(path)])
        except InputError:
            refused += 1
            continue
        chunk = next(source.chunks(0, max_rows=99, max_bytes=1 << 20))
        assert chunk.table["text"].to_pylist() == [f"text {i * i}" for i in range(40)]
    assert refused > len(data) - 12, "only the ten bytes of the header are without a checksum"


@pytest.mark.parametrize("suffix", ["gz", "zst"])
@pytest.mark.parametrize("garbage", [GOOD, b"\x00\x00", b"\x1f\x8b", b"(\xb5/\xfd"])
def test_not_compressed_or_followed_by_garbage(tmp_path, suffix, garbage):
    path = tmp_path / f"t.csv.{suffix}"
    path.write_bytes(garbage)
    with pytest.raises(InputError, match=r"cannot be decompressed|has no header"):
        open_source([str(path)])
    pack = gzip.compress if suffix == "gz" else lambda d: pa.compress(d, "zstd", asbytes=True)
    path.write_bytes(pack(GOOD) + GOOD)
    with pytest.raises(InputError, match="cannot be decompressed"):
        open_source([str(path)])


def test_damage_inside_deflate_is_an_input_error(tmp_path):
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(GOOD) + packer.flush()
    (tmp_path / "t.csv.gz").write_bytes(data[:10] + b"\xff\xff\xff" + data[13:])
    with pytest.raises(InputError, match="cannot be decompressed"):
        open_source([str(tmp_path / "t.csv.gz")])


@pytest.mark.parametrize("delimiter", ["", ",,", "\\t", '"', "\n", "\r", "\0"])
def test_impossible_delimiter(tmp_path, delimiter):
    (tmp_path / "t.csv").write_bytes(GOOD)
    with pytest.raises(SettingsError, match=r"`delimiter`: .*must be one character"):
        open_source([str(tmp_path / "t.csv")], delimiter=delimiter)


@pytest.mark.parametrize("encoding", ["utf-9", "", "hex", "rot13", "a\0b"])
def test_unknown_encoding(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes(GOOD)
    with pytest.raises(SettingsError, match=r"`encoding`: .* is not a text encoding"):
        open_source([str(tmp_path / "t.csv")], encoding=encoding)


def test_text_that_is_not_unicode(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"id,\\ud800\n1,a\n")
    with pytest.raises(InputError, match="lone surrogates"):
        open_source([str(tmp_path / "t.csv")], encoding="unicode_escape")


def test_limit_below_one(tmp_path):
    (tmp_path / "t.csv").write_bytes(GOOD)
    with pytest.raises(SettingsError, match="`limit`: 0 takes no rows"):
        open_source([str(tmp_path / "t.csv")], limit=0)
