"""JSON Lines are read as Python's `json` reads them, whatever the values and the blocks."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.producer import jsonl_files, open_source

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = {
    "text": TEXT,
    "number": st.integers(-(2**63), 2**63 - 1),
    "share": st.floats(allow_nan=False),
    "yes": st.booleans(),
    "list": st.lists(TEXT | st.none(), max_size=3),
    "deep": st.fixed_dictionaries({"a": st.lists(st.fixed_dictionaries({"b": TEXT}), max_size=2)}),
}
ROWS = st.lists(
    st.fixed_dictionaries({}, optional={name: kind | st.none() for name, kind in VALUES.items()}),
    max_size=12,
)


@pytest.mark.timeout(120)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=ROWS,
    plain=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n", "\n\n", " \n\t\n"]),
    block=st.sampled_from([1, 2, 5]),
    piece=st.sampled_from([1, 7, 64, 1 << 18]),
    start=st.integers(0, 3),
)
def test_each_value(tmp_path, monkeypatch, rows, plain, ends, block, piece, start):
    monkeypatch.setattr(jsonl_files, "BLOCK_ROWS", block)
    monkeypatch.setattr(jsonl_files, "READ_BYTES", piece)
    monkeypatch.setattr(jsonl_files, "BLOCK_BYTES", piece)
    rows = [*rows, dict.fromkeys(VALUES)]
    path = tmp_path / "in.jsonl"
    lines = [json.dumps(row, ensure_ascii=plain) for row in rows]
    path.write_bytes(ends.join(lines).encode())
    source = open_source([str(path)])
    assert source.input.rows == len(rows)
    start = min(start, len(rows))
    chunks = source.chunks(start, max_rows=3, max_bytes=1 << 20)
    found = [row for chunk in chunks for row in chunk.table.to_pylist()]
    assert (
        found
        == [{name: row.get(name) for name in source.input.schema.names} for row in rows][start:]
    )
    assert {name for row in rows for name in row} == set(source.input.schema.names)
