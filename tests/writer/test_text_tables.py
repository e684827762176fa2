"""Tables as text: what is written is read again, by others and by this package."""

import csv
import io
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.producer import open_source
from pipeline.writer.text_tables import TextWriter

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['"', '""', ",", "\r", "\n", "\r\n", "\ufeff", " ", "", "\\N", "\\", "'", "sep=;", "\0"]
)
COLUMNS = st.lists(st.tuples(TEXT | st.none(), TEXT | st.none()), min_size=1, max_size=8)


def written(path, table, pieces=1):
    with pa.OSFile(str(path), "wb") as file, TextWriter(file, table.schema, path.name) as writer:
        for start in range(0, table.num_rows, pieces):
            writer.write_table(table.slice(start, pieces))
    return path.read_bytes().decode()


@pytest.mark.timeout(120)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=COLUMNS, name=TEXT.filter(lambda text: text.strip() not in ("", "two")))
def test_texts(tmp_path, rows, name):
    one, two = map(list, zip(*rows, strict=True))
    table = pa.table({name: pa.array(one, pa.string()), "two": pa.array(two, pa.string())})
    content = written(tmp_path / "t.csv", table)
    found = list(csv.reader(io.StringIO(content, newline=""), strict=True))
    assert found == [[name, "two"], *([one or "", two or ""] for one, two in rows)]
    source = open_source([str(tmp_path / "t.csv")], text_columns=[name, "two"])
    again = [row for chunk in source.chunks(0, max_rows=9, max_bytes=1 << 20)
             for row in chunk.table.to_pylist()]  # fmt: skip
    assert again == [{name: one or None, "two": two or None} for one, two in rows]
    content = written(tmp_path / "t.jsonl", table)
    assert [json.loads(line) for line in content.split("\n")[:-1]] == table.to_pylist()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_the_bytes_do_not_depend_on_the_pieces(tmp_path, name):
    table = pa.table({"a": ["x", None, 'q"', ""] * 5000, "b": range(20_000)})
    assert written(tmp_path / name, table, 20_000) == written(tmp_path / name, table, 777)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.float16()])
def test_numbers_are_the_same_again(tmp_path, kind):
    values = [1.0, -0.0, 0.1, 1e-10, 1e300 if kind == pa.float64() else 1e3, 1234.0, 1 / 3]
    table = pa.table({"n": pa.array(values).cast(kind, safe=False), "m": [1] * len(values)})
    cells = [line.split(",")[0] for line in written(tmp_path / "t.csv", table).splitlines()[1:]]
    assert pa.array(map(float, cells)).cast(kind, safe=False).equals(table["n"].combine_chunks())
    assert cells[0] == "1.0"
    lines = written(tmp_path / "t.jsonl", table).splitlines()
    assert [json.loads(line)["n"] for line in lines] == table["n"].to_pylist()
