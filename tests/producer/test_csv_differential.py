"""CSV against Python's csv module: the same cells, or an error with the line; never a difference.

Hypothesis writes files that bite (quotes, line breaks of every kind, NUL, byte order marks, lone
surrogates, cells larger than a block), well-formed and not, in many encodings, plain and packed.
The oracle is `csv.reader(strict=True)` over the whole decoded text in memory. What is under test
gets its bytes a few at a time and in blocks of a few rows, so that every border falls everywhere.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.producer import csv_files, open_source, text_bytes

pytestmark = pytest.mark.fault(24)

# What is written, and what the setting says to read it.
ENCODINGS = (
    *(("utf-8", "auto"), ("utf-8-sig", "auto"), ("utf-16", "auto"), ("utf-16-be", "auto")),
    *(("utf-32", "auto"), ("utf-32-be", "auto"), ("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig")),
    *(("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be"), ("utf-32-le", "utf-32-le")),
    *(("latin-1", "latin-1"), ("cp1252", "cp1252"), ("shift_jis", "shift_jis")),
    *(("gb18030", "gb18030"), ("iso2022_jp", "iso2022_jp"), ("utf-7", "utf-7")),
    # A wrong setting decodes to other text, or not at all.
    *(("utf-8", "cp1252"), ("cp1252", "auto"), ("utf-16", "utf-8"), ("latin-1", "shift_jis")),
)
MARKS = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}
DELIMITERS = (",", ";", "\t", "|", " ", "a", "¦", "。", "🙂")

BITES = ('"', '""', "\r", "\n", "\r\n", "\n\r", "\0", "\ufeff", " ", "\\", "'", "\x1a", "\x85")
WORDS = ("", "a", "ab", "0", "7", "-1", "00123", "1.5", "1.50", "NA", "null", "None", "é", "語")
WIDE = ("🙂", "\U0001d4b3", "\ud800", "\udfff", "\u2028", "x" * 70, '"\r\n' * 30)
PIECES = st.sampled_from((*BITES, *WORDS, *WIDE))
CELLS = st.one_of(st.sampled_from(WORDS), st.lists(PIECES, max_size=4).map("".join))
DIALECTS = st.fixed_dictionaries(
    {
        "quoting": st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC)),
        "lineterminator": st.sampled_from(("\n", "\r\n", "\r", "\n\n", "\r\r\n", "\n\r")),
        "doublequote": st.sampled_from((True, True, True, False)),
        "escapechar": st.just("\\"),
    }
)


@st.composite
def written(draw: Any, delimiter: str, header: list[str]) -> str:
    """A table as Python's own writer writes it, in one of its styles, now and then ragged."""
    width = len(header)
    ragged = draw(st.sampled_from((False, False, False, True)))
    row = st.lists(CELLS, min_size=0 if ragged else width, max_size=width + ragged)
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, **draw(DIALECTS))
    writer.writerows([header, *draw(st.lists(row, max_size=9))])
    text = out.getvalue()
    # A last line that does not end is a line too.
    return text.rstrip("\r\n") if draw(st.booleans()) else text


@st.composite
def scrawled(draw: Any, delimiter: str, header: list[str]) -> str:
    """Characters that nobody's writer put in this order, below a good header or without one."""
    pieces = st.sampled_from((delimiter, delimiter, '"', '"', "\n", "\r", *BITES, *WORDS, *WIDE))
    body = "".join(draw(st.lists(pieces, max_size=30)))
    return draw(st.sampled_from(("", delimiter.join(header) + "\n"))) + body


@dataclass
class Case:
    """One input of one or two files, how it is read, and in how small pieces."""

    files: list[bytes]
    suffix: str
    encoding: str
    delimiter: str
    text_columns: list[str]
    read_bytes: int
    block_rows: int
    block_bytes: int
    max_rows: int
    max_bytes: int
    starts: list[int] = field(default_factory=list)


@st.composite
def cases(draw: Any) -> Case:
    delimiter = draw(st.sampled_from(DELIMITERS))
    written_in, encoding = draw(st.sampled_from(ENCODINGS))
    names = [f"c{i}" for i in range(draw(st.integers(1, 4)))]
    if draw(st.integers(0, 9)) == 0:
        names = draw(st.lists(CELLS, min_size=1, max_size=3))
    files = []
    for _ in range(draw(st.sampled_from((1, 1, 2)))):
        kind = draw(st.sampled_from((written, written, scrawled)))
        data = encode(draw(kind(delimiter, names)), written_in, marked=encoding == "auto")
        if draw(st.integers(0, 4)) == 0:
            data = draw(damaged(data))
        files.append(data)
    return Case(
        files=[data for data in files if data] or [b"\n"],
        suffix=draw(st.sampled_from((".csv", ".csv", ".csv.gz", ".csv.zst"))),
        encoding=encoding,
        delimiter=delimiter,
        text_columns=names[: draw(st.integers(0, 2))],
        read_bytes=draw(st.one_of(st.integers(1, 40), st.just(1 << 18))),
        block_rows=draw(st.integers(1, 12)),
        block_bytes=draw(st.one_of(st.integers(1, 90), st.just(1 << 20))),
        max_rows=draw(st.integers(1, 12)),
        max_bytes=draw(st.one_of(st.integers(1, 200), st.just(1 << 20))),
        starts=draw(st.lists(st.integers(0, 12), max_size=3)),
    )


def encode(text: str, encoding: str, *, marked: bool) -> bytes:
    """Encode text; lone surrogates become what a careless program writes for them."""
    passing = encoding.startswith(("utf-8", "utf-16", "utf-32"))
    data = text.encode(encoding, "surrogatepass" if passing else "replace")
    return MARKS.get(encoding, b"") + data if marked else data


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """Cut bytes out, put others in, or let the file end early."""
    at = draw(st.integers(0, len(data)))
    upto = at + draw(st.integers(0, 3))
    middle = draw(st.sampled_from((b"", b"\xff", b"\x80", b'"', b"\0", b"\xed\xa0\x80", b"\n\n")))
    return data[:at] if draw(st.booleans()) else data[:at] + middle + data[upto:]


@dataclass
class Expected:
    """What the oracle reads: rows, or else the lines that an error may name.

    `anywhere` where the fault has no line of its own (a header that names no columns).
    """

    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    wrong_lines: set[int] = field(default_factory=set)
    anywhere: bool = False
    empty: bool = False

    @property
    def refused(self) -> bool:
        return self.anywhere or bool(self.wrong_lines)


def oracle(data: bytes, encoding: str, delimiter: str) -> Expected:
    """Read one file with Python's csv, all in memory, and list every line that is wrong with it."""
    if encoding == "auto":
        encoding = next((name for mark, name in AUTO if data.startswith(mark)), "utf-8")
    expected = Expected()
    try:
        text, whole = data.decode(encoding), True
    except UnicodeDecodeError as error:
        text, whole = decodable(data, encoding, error), False
        expected.wrong_lines.add(1 + len(re.findall("\r\n|\r|\n", text)))
    text = text.removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    # The record that a bad byte is in is not a whole one.
    torn = not whole and not text.endswith(("\n", "\r"))
    try:
        for row in reader:
            records.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        torn = False
        at_end = "unexpected end of data" in str(error)
        if whole or not at_end:
            expected.wrong_lines.add(line if at_end else reader.line_num)
    filled = [(line, row) for line, row in records if row]
    if not filled:
        expected.anywhere = True
        expected.empty = whole and not text
        return expected
    expected.header = filled[0][1]
    if len(expected.header) > 1 and not expected.header[0].strip():
        expected.header = ["Unnamed: 0", *expected.header[1:]]
    expected.rows = [row for _, row in filled[1:]]
    if torn and records:
        filled = [(line, row) for line, row in filled if line != records[-1][0]]
    expected.anywhere = (
        len(set(expected.header)) < len(expected.header)
        or not all(name.strip() for name in expected.header)
        or any("\ud800" <= c <= "\udfff" for _, row in filled for cell in row for c in cell)
    )
    width = len(expected.header)
    expected.wrong_lines.update(line for line, row in filled[1:] if len(row) != width)
    return expected


def decodable(data: bytes, encoding: str, error: UnicodeDecodeError) -> str:
    """What comes before the first bad byte; utf-8-sig counts from behind its mark."""
    behind = 3 if encoding == "utf-8-sig" and data.startswith(codecs.BOM_UTF8) else 0
    return codecs.getincrementaldecoder(encoding)().decode(data[: error.start + behind])


AUTO = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def pack(data: bytes, suffix: str) -> bytes:
    """Compress as the suffix says, in two members where there is enough."""
    half = len(data) // 2
    pieces = [data[:half], data[half:]] if half > 20 else [data]
    if suffix.endswith(".gz"):
        return b"".join(map(gzip.compress, pieces))
    if suffix.endswith(".zst"):
        return b"".join(pa.compress(piece, "zstd", asbytes=True) for piece in pieces)
    return data


def as_cell(value: object) -> str:
    return "" if value is None else str(value)


def read_cells(source: Any, case: Case, start_row: int) -> list[list[str]]:
    """Read all chunks from a row on, as cells; every chunk has the schema of its source."""
    rows: list[list[str]] = []
    for chunk in source.chunks(start_row, max_rows=case.max_rows, max_bytes=case.max_bytes):
        assert chunk.first_row == start_row + len(rows)
        assert 1 <= chunk.table.num_rows <= case.max_rows
        assert chunk.table.schema == source.input.schema
        chunk.table.validate(full=True)
        for column in chunk.table.columns:
            assert "" not in column.to_pylist(), "an empty cell is null"
        rows += [list(map(as_cell, row.values())) for row in chunk.table.to_pylist()]
    return rows


def check(folder: Any, case: Case) -> None:
    """Read the files of a case, and compare all that comes of it with the oracle."""
    paths = []
    for number, data in enumerate(case.files):
        paths.append(folder / f"t{number}{case.suffix}")
        paths[-1].write_bytes(pack(data, case.suffix))
    expected = [oracle(data, case.encoding, case.delimiter) for data in case.files]
    if not all(each.empty for each in expected):
        for each in expected:  # without a byte of text there is no row, nor anything wrong
            each.anywhere = each.anywhere and not each.empty
    headers = [each.header for each in expected if not each.empty] or [[]]
    same_columns = all(header == headers[0] for header in headers)
    refused = not same_columns or any(each.refused for each in expected)

    class Dribble(text_bytes.Tap):
        """Hands out a few bytes at a time, as a slow file system may."""

        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[: case.read_bytes])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_files, "BLOCK_ROWS", case.block_rows)
        patch.setattr(csv_files, "BLOCK_BYTES", case.block_bytes)
        patch.setattr(csv_files, "READ_BYTES", case.read_bytes)
        patch.setattr(text_bytes, "Tap", Dribble)
        inputs = [str(path) for path in paths]
        how = {"delimiter": case.delimiter, "encoding": case.encoding}
        try:
            source = open_source(inputs, text_columns=case.text_columns, **how)
        except InputError as error:
            refusal = str(error)
            source = None
        if source is None:
            assert refused, f"refused what csv reads: {refusal}"
            check_line(refusal, expected)
            return
        assert not refused, "read what csv refuses"
        rows = [row for each in expected for row in each.rows]
        schema = source.input.schema
        assert (schema.names, source.input.rows) == (headers[0], len(rows))
        assert [file.rows for file in source.input.files] == [len(each.rows) for each in expected]
        for name in set(case.text_columns) & set(schema.names):
            assert schema.field(name).type == pa.string()
        for start_row in {0, len(rows), *(start for start in case.starts if start <= len(rows))}:
            assert read_cells(source, case, start_row) == rows[start_row:]


def check_line(message: str, expected: list[Expected]) -> None:
    """An error that names a line names one that is wrong, in its own file."""
    found = re.search(r"t(\d)\.csv\S* line (\d+)", message)
    if found is None:
        assert any(each.anywhere for each in expected) or "column" in message, message
        return
    assert int(found[2]) in expected[int(found[1])].wrong_lines, message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("csv")


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_the_same_cells_or_an_error_with_the_line(folder, case):
    """Whatever a file holds, its cells are those that Python's csv reads, or it is refused."""
    check(folder, case)


# Once wrong, or near to it: a quote left open at a lone CR, blank lines before the header.
@pytest.mark.parametrize(
    "text", ['a,b\r\n"x\r', '\n\n"a"\n\n\r"1"\r', "a\n+2AA-\n", '\ufeff"a"\n1']
)
@pytest.mark.parametrize("encoding", ["auto", "utf-7"])
@pytest.mark.parametrize("block_rows", [1, 2])
def test_small_files_that_bite(folder, text, encoding, block_rows):
    data = text.encode("utf-8" if encoding == "auto" else "ascii", "replace")
    check(folder, Case([data], ".csv", encoding, ",", [], 1, block_rows, 1, 1, 1, [0, 1, 2]))


@pytest.mark.parametrize("torn", [b"\xef", b"\xef\xbb"])
@pytest.mark.parametrize("encoding", ["auto", "utf-8", "utf-8-sig"])
def test_a_torn_byte_order_mark_is_no_empty_file(folder, torn, encoding):
    """Python's incremental decoder of utf-8-sig passes over it."""
    whole = b"\xef\xbb\xbfc0\n"
    for files in ([torn], [whole, torn]):
        check(folder, Case(files, ".csv", encoding, ",", [], 1, 1, 1, 1, 1, [0]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=4_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_the_same_cells_or_an_error_with_the_line_at_length(folder, case):
    """As above, for as long as one is ready to wait."""
    check(folder, case)
