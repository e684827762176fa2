"""JSON Lines: rows, types that hold for all lines, and what is refused with its line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, StoppedEarly
from pipeline.producer import first_rows, jsonl_files, open_source


@pytest.fixture
def read(tmp_path):
    """Write files, and read them as one input: its schema, and its rows from one on."""

    def rows(*contents, start=0, name="in{}.jsonl", **options):
        paths = [tmp_path / name.format(number) for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        source = open_source([str(path) for path in paths], **options)
        chunks = source.chunks(start, max_rows=100, max_bytes=1 << 20)
        return source.input.schema, [row for each in chunks for row in each.table.to_pylist()]

    return rows


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
        ('{"a":1}\r\n{"a":2}', [{"a": 1}, {"a": 2}]),
        ('\n \t\n{"a":1}\n\n\r\n  {"a":2} \n\n', [{"a": 1}, {"a": 2}]),
        ('\ufeff{"a":1}\n', [{"a": 1}]),
        ('\ufeff{"a":1}', [{"a": 1}]),
        ('{"a":1}\n{}\n{"b":"x"}\n',
         [{"a": 1, "b": None}, {"a": None, "b": None}, {"a": None, "b": "x"}]),
        ('{"a":1}\n{"a":1.5}\n', [{"a": 1.0}, {"a": 1.5}]),
        ('{"a":"2020-01-01"}\n{"a":"2020-01-01T10:00:00Z"}\n{"a":"no time"}',
         [{"a": "2020-01-01"}, {"a": "2020-01-01T10:00:00Z"}, {"a": "no time"}]),
        ('{"a":["2020-01-01"]}\n{"a":[]}\n{"a":null}',
         [{"a": ["2020-01-01"]}, {"a": []}, {"a": None}]),
        ('{"a":null}\n{"a":null}\n', [{"a": None}, {"a": None}]),
        ('{"a":"00123"}\n', [{"a": "00123"}]),
        ('{"a":9223372036854775807}\n', [{"a": 2**63 - 1}]),
        ('{"a":{"b":1}}\n{"a":{"c":[{"d":true}]}}\n',
         [{"a": {"b": 1, "c": None}}, {"a": {"b": None, "c": [{"d": True}]}}]),
        ('{"a":"\\ud83d\\ude00 \\u2028 \\u0000|\u2028\u2029\x85|\\n\\r"}',
         [{"a": "\U0001f600 \u2028 \0|\u2028\u2029\x85|\n\r"}]),
    ],
)  # fmt: skip
def test_rows(read, content, rows):
    assert read(content)[1] == rows


def test_what_python_writes_for_numbers_that_are_none(read):
    _, rows = read('{"a":NaN}\n{"a":-Infinity}\n')
    assert list(map(str, (row["a"] for row in rows))) == ["nan", "-inf"]


def test_types_are_settled_over_all_lines_of_all_files(read, monkeypatch):
    monkeypatch.setattr(jsonl_files, "BLOCK_ROWS", 2)
    lines = ['{"n":1}', '{"n":2}', '{"n":2.5}', '{"t":"2020-01-01"}', '{"t":"x"}', '{"l":[]}']
    schema, rows = read("\n".join(lines), '{"l":["s"]}\n{"o":{"k":null}}\n', "")
    assert schema.equals(
        pa.schema(
            {
                "n": pa.float64(),
                "t": pa.string(),
                "l": pa.list_(pa.string()),
                "o": pa.struct({"k": pa.string()}),
            }
        )
    )
    assert [row["n"] for row in rows] == [1.0, 2.0, 2.5, *[None] * 5]
    assert [row["l"] for row in rows[5:]] == [[], ["s"], None]


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_a_row_keeps_its_number_wherever_reading_begins(read, monkeypatch, block):
    monkeypatch.setattr(jsonl_files, "BLOCK_ROWS", block)
    monkeypatch.setattr(jsonl_files, "READ_BYTES", 7)
    monkeypatch.setattr(jsonl_files, "BLOCK_BYTES", 20 * block)
    content = "".join(f'{{"i":{i}}}\n' + "\n" * (i % 3) for i in range(20))
    for start in range(0, 41, 5):
        _, rows = read(content, content, start=start)
        assert [row["i"] for row in rows] == [*range(20), *range(20)][start:]


def test_a_line_may_be_longer_than_a_block(read):
    text = "x" * (jsonl_files.BLOCK_BYTES + 5)
    _, rows = read(f'{{"a":"{text}"}}\n{{"a":"y"}}\n{{"a":"{text}"}}')
    assert [len(row["a"]) for row in rows] == [len(text), 1, len(text)]


@pytest.mark.parametrize("name", ["a{}.ndjson", "a{}.JSONL", "a{}.jsonl.gz", "a{}.ndjson.zst"])
def test_names(read, name):
    content = '{"a":"é"}\n'.encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    if name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as file:
            file.write(content)
        content = sink.getvalue().to_pybytes()
    assert read(content, name=name)[1] == [{"a": "é"}]


def test_folders_give_columns(tmp_path):
    (tmp_path / "t" / "day=1").mkdir(parents=True)
    (tmp_path / "t" / "day=1" / "x.jsonl").write_text('{"a":"x"}\n')
    source = open_source([str(tmp_path / "t")])
    table = next(source.chunks(0, max_rows=9, max_bytes=1 << 20)).table
    assert table.to_pylist() == [{"a": "x", "day": 1}]


OBJECT = r"Each line must be one object"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a":1}\n\n{"a":"x"}\n', r"line 3: column 'a' is text, but a number before\."),
        ('{"a":{"b":[1]}}\n{"a":{"b":["x"]}}', r"line 2: column 'a' \(a\.b\.\[\]\) is text, b"),
        ('{"a":true}\n{"a":[]}', r"line 2: column 'a' is a list, but true or false before"),
        ('{"a":1}\n{"a":1', r"line 2: the last line is cut off\. Wait until"),
        ('{"a":1}\n{"a":\n', r"line 2: not a JSON object \(Invalid value\)"),
        ('{"a":1}\nnull\n', rf"line 2: not an object, but null\. {OBJECT}"),
        ('{"a":1}\n"x"\n', rf'line 2: not an object, but "x"\. {OBJECT}'),
        ('{"a":1}null{"a":1}\n', r"line 1: not a JSON object \(Extra data"),
        ('{"a":1}{"a":2}\n', r"line 1: not a JSON object \(Extra data"),
        ('{"a":\n1}\n', r"line 1: not a JSON object \(Expecting value"),
        ('[{"a":1}]', r"is one JSON list, not JSON Lines\. Write each"),
        ('[\n{"a":1}\n]', r"is one JSON list"),
        ('{"a":1,"a":2}', r"line 1: not a JSON object \(Column\(/a\) was specified twice\)"),
        (r'{"a":"\ud800"}', r"line 1: not a JSON object \(The surrogate pair"),
        (b'{"a":"x"}\n{"a":"\xff"}', r"line 2: not valid UTF-8 \(byte 0xff"),
        ('{"a":1.5}\n{"a":9007199254740993}', r"line 2: column 'a' holds an integer that would"),
        ('{"a":9007199254740993}\n{"a":1.5}', r"line 1: column 'a' holds an integer that would"),
        ('{"a":18446744073709551616}', r"line 1: column 'a' holds an integer that would be"),
        ('{"a":1}'.encode("utf-16"), r"is UTF-16, by its byte order mark\. Write it as UTF-8"),
        (
            gzip.compress(b"{}", mtime=0),
            r"is compressed by gzip, not JSON Lines\. Name it \.jsonl\.gz",
        ),
        (b"PAR1....", r"is Parquet, not JSON Lines\. Name it \.parquet"),
        ("\n\n", rf"has no columns: it holds no object with a key\. {OBJECT}"),
        ("", r"is empty \(0 bytes\)"),
        ('{"a":{}}', r"column 'a' \(struct<>\) cannot be kept in Parquet"),
        ('{"a":"' + "x" * (16 << 20) + '"}\n', r"line 1: the row that begins here takes more"),
    ],
)  # fmt: skip
def test_refused(read, content, message):
    with pytest.raises(InputError, match=r"in0\.jsonl.*" + message):
        read(content)


def test_a_type_that_changes_in_a_later_block_or_file_is_found(read, monkeypatch):
    monkeypatch.setattr(jsonl_files, "BLOCK_ROWS", 3)
    with pytest.raises(InputError, match=r"in0\.jsonl line 8: column 'a' is text, but a number"):
        read('{"a":1}\n' * 7 + '{"a":"x"}\n')
    with pytest.raises(InputError, match=r"in1\.jsonl line 2: column 'a' is a list, but text bef"):
        read('{"a":"x"}\n', '{"b":1}\n{"a":[1]}\n')


def test_keys_that_are_data_are_refused(read):
    """Each would be a column, as long as all the others."""
    with pytest.raises(InputError, match=r"line 12000: .* more than 10,000 different keys"):
        read("".join(f'{{"user {i}":1}}\n' for i in range(12_000)))


def test_the_first_rows_are_of_as_many_files_as_it_takes(tmp_path):
    for number, content in enumerate(['{"a":1}\n', '{"b":"x"}\n{"b":"y"}', '{"a":"unseen"']):
        (tmp_path / f"{number}.jsonl").write_text(content)
    found = first_rows([str(tmp_path)], max_rows=2, max_bytes=1 << 20)
    assert found.to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_a_run_continues_with_the_same_rows(label, server, tmp_path, small_chunks):
    """Stopped and continued, it gives the bytes of a run that was not; nothing is asked twice."""
    path = tmp_path / "in.jsonl"
    rows = [{"id": i, "text": f"text {i}", "tags": [str(i)] * (i % 3)} for i in range(100)]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    with pytest.raises(StoppedEarly):
        label(path, tmp_path / "out.parquet", batch_size=8, concurrency=1, max_requests=7)
    summary = label(path, tmp_path / "out.parquet", batch_size=8)
    assert (summary["state"], summary["rows"], summary["labelled"]) == ("complete", 100, 100)
    assert not server.sent_twice()
    label(path, tmp_path / "at_once.parquet")
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "at_once.parquet").read_bytes()
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [{key: row[key] for key in ("id", "text", "tags")} for row in found] == rows


def test_nothing_is_sent_if_any_line_is_wrong(label, server, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text":"good"}\n' * 5000 + '{"text":3}\n')
    with pytest.raises(InputError, match=r"line 5001: column 'text' is a number, but text"):
        label(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    assert server.requests == []
