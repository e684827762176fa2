"""Tables in memory offer the same description and chunks as files."""

import polars as pl
import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.producer import Source, TableSource, sources


def table(rows: int = 100) -> pa.Table:
    return pa.table(
        {
            "id": range(rows),
            "text": [None if i % 7 == 3 else f"text {i}" for i in range(rows)],
            "d": pa.array([f"kind {i % 3}" for i in range(rows)]).dictionary_encode(),
            "l": [[i] * (i % 3) for i in range(rows)],
        }
    )


@pytest.mark.parametrize("max_rows", [1, 7, 100, 1000])
def test_every_start_row_gives_the_tail(max_rows):
    source: Source = TableSource(table())
    assert source.input.schema == table().schema
    assert source.input.rows == 100
    for start_row in (0, 1, 50, 99, 100):
        row = start_row
        for chunk in source.chunks(start_row, max_rows=max_rows, max_bytes=1 << 20):
            assert chunk.first_row == row
            assert chunk.table.to_pylist() == table().slice(row, max_rows).to_pylist()
            row += chunk.table.num_rows
        assert row == 100


@pytest.mark.parametrize("seek_rows", [0, 20, 1_000])
def test_chunks_of_ranges_are_those_of_the_whole(monkeypatch, seek_rows):
    """Whether what lies between them is read or passed over."""
    monkeypatch.setattr(sources, "SEEK_ROWS", seek_rows)
    source: Source = TableSource(table())
    whole = {chunk.first_row: chunk for chunk in source.chunks(0, max_rows=7, max_bytes=1 << 20)}
    ranges = [range(7, 14), range(21, 42), range(84, 100)]
    found = list(source.chunks_of(ranges, max_rows=7, max_bytes=1 << 20, counted=["text"]))
    assert [chunk.first_row for chunk in found] == [7, 21, 28, 35, 84, 91, 98]
    assert all(chunk.table == whole[chunk.first_row].table for chunk in found)
    # Whatever cut them.
    ranges = [range(1, 3), range(5, 20), range(60, 61)]
    found = list(source.chunks_of(ranges, max_rows=7, max_bytes=1 << 20, counted=["text"]))
    rows = [(chunk.first_row, chunk.table.num_rows) for chunk in found]
    assert rows == [(1, 2), (5, 7), (12, 7), (19, 1), (60, 1)]
    assert list(source.chunks_of([], max_rows=7, max_bytes=1 << 20, counted=["text"])) == []


def test_identity_is_that_of_the_rows_not_of_their_chunks():
    whole = TableSource(table()).input
    pieces = [table().slice(0, 13), table().slice(13, 1), table().slice(14)]
    assert TableSource(pa.concat_tables(pieces)).input.differences(whole) == []
    assert (
        TableSource(pa.concat_tables([table(), table()]).slice(100)).input.differences(whole) == []
    )


def test_changed_rows_are_another_input():
    was = TableSource(table()).input
    texts = table()["text"].to_pylist()
    texts[50] = "Text 50"
    changed = table().set_column(1, "text", pa.array(texts))
    (difference,) = TableSource(changed).input.differences(was)
    assert difference.startswith("the table in memory: content changed (")
    assert TableSource(table().slice(1)).input.differences(was)
    kinds = pa.array([f"Kind {i % 3}" for i in range(100)]).dictionary_encode()
    assert TableSource(table().set_column(2, "d", kinds)).input.differences(was)


def test_views_from_polars_keep_type_values_and_size():
    """Polars hands over string views, whose slices refer to the whole table."""
    texts = [f"a text that is too long to lie inside a view: {i}" for i in range(10_000)]
    given = pa.table(pl.DataFrame({"text": texts}))
    assert given.schema.field("text").type == pa.string_view()
    source = TableSource(given)
    chunks = list(source.chunks(0, max_rows=1000, max_bytes=100_000))
    assert [chunk.table.num_rows for chunk in chunks] == [1000] * 10
    assert all(chunk.table.schema == given.schema for chunk in chunks)
    assert [t for chunk in chunks for t in chunk.table["text"].to_pylist()] == texts
    assert TableSource(given.slice(0)).input.differences(source.input) == []


def test_no_rows():
    source = TableSource(table().slice(0, 0))
    assert source.input.rows == 0
    assert list(source.chunks(0, max_rows=1, max_bytes=1)) == []


@pytest.mark.parametrize("names", [[], ["text", "text"]])
def test_columns_that_cannot_be_told_apart(names):
    with pytest.raises(InputError, match="The table"):
        TableSource(pa.Table.from_arrays([pa.array(["a"])] * len(names), names=names))
