"""How a stream of batches is cut into chunks."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.producer.chunks import MAX_CHUNK_BYTES, rechunk

SCHEMA = pa.schema([("text", pa.string())])


def batches(lengths: list[list[int]]) -> list[pa.RecordBatch]:
    """Build batches of texts with these lengths in bytes; the texts tell the rows apart."""
    made, row = [], 0
    for batch in lengths:
        texts = [str(row + i).ljust(length, ".")[:length] for i, length in enumerate(batch)]
        row += len(batch)
        made.append(pa.record_batch([pa.array(texts, pa.string())], schema=SCHEMA))
    return made


@settings(deadline=None, max_examples=300)
@given(
    lengths=st.lists(st.lists(st.integers(0, 60), max_size=8), max_size=8),
    max_rows=st.integers(1, 12),
    max_bytes=st.integers(1, 300),
)
def test_chunks_are_full_contiguous_and_bounded(lengths, max_rows, max_bytes):
    """Each chunk takes as many rows as both bounds allow, whatever the batches were."""
    stream = batches(lengths)
    chunks = list(rechunk(stream, SCHEMA, first_row=5, max_rows=max_rows, max_bytes=max_bytes))
    expected = [text for batch in stream for text in batch.column(0).to_pylist()]
    assert [t for chunk in chunks for t in chunk.table["text"].to_pylist()] == expected
    row = 0
    for chunk in chunks:
        rows = chunk.table.num_rows
        assert chunk.first_row == 5 + row
        assert 1 <= rows <= max_rows
        # One offset more than rows for each batch that contributed.
        least = sum(len(text) + 4 for text in expected[row : row + rows])
        assert rows == 1 or least <= max_bytes
        if row + rows < len(expected) and rows < max_rows:
            grown = least + len(expected[row + rows]) + 4
            assert grown + 4 * (len(stream) + 1) > max_bytes, "one more row would have fitted"
        row += rows


ROWS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=8), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(ROWS, st.lists(st.integers(0, 64), max_size=8).map(sorted), st.integers(1, 300))
def test_no_chunk_goes_over_a_border(lengths, borders, max_bytes):
    stream = batches(lengths)
    found = rechunk(stream, SCHEMA, first_row=3, max_rows=9, max_bytes=max_bytes, borders=borders)
    row = 3
    for chunk in found:
        assert chunk.first_row == row
        row += chunk.table.num_rows
        assert not any(chunk.first_row < border < row for border in borders)
    assert row == 3 + sum(map(len, lengths))


@settings(deadline=None, max_examples=200)
@given(ROWS, st.integers(1, 9), st.integers(1, 300), st.data())
def test_a_stream_that_begins_at_the_border_of_a_chunk_gives_the_same_chunks(
    lengths, max_rows, max_bytes, data
):
    """However its batches are cut, and whether or not there are nulls in them."""
    rows = pa.Table.from_batches(batches(lengths))
    texts = [None if len(text) % 7 == 3 else text for text in rows["text"].to_pylist()]
    flags = [None if text is None else len(text) % 2 == 0 for text in texts]
    table = pa.table({"text": pa.array(texts, pa.string()), "flag": pa.array(flags, pa.bool_())})

    def cut(first_row, step):
        found = rechunk(
            table.slice(first_row).to_batches(max_chunksize=step), table.schema,
            first_row=first_row, max_rows=max_rows, max_bytes=max_bytes,
        )  # fmt: skip
        return [(chunk.first_row, chunk.table.num_rows, chunk.size_bytes) for chunk in found]

    whole = cut(0, 1_000)
    at = data.draw(st.integers(0, len(whole) - 1))
    assert cut(whole[at][0], data.draw(st.integers(1, 9))) == whole[at:]


def test_a_row_larger_than_the_bound_is_a_chunk_by_itself():
    chunks = list(
        rechunk(batches([[3, 5000, 3, 3]]), SCHEMA, first_row=0, max_rows=10, max_bytes=200)
    )
    assert [chunk.table.num_rows for chunk in chunks] == [1, 1, 2]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary_view(),
        pa.list_(pa.string()),
        pa.struct([("a", pa.string())]),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)
def test_a_chunk_counts_and_keeps_its_own_rows_only(kind):
    """A slice of a large batch neither looks as large as the batch nor keeps it in memory."""
    values = [f"{row:0100}" for row in range(100)] * 50
    if pa.types.is_list(kind):
        values = [[value] for value in values]
    elif pa.types.is_struct(kind):
        values = [{"a": value} for value in values]
    if pa.types.is_dictionary(kind):
        column = pa.array(values).dictionary_encode().cast(kind)
    elif pa.types.is_binary_view(kind):
        column = pa.array([value.encode() for value in values], kind)
    else:
        column = pa.array(values, kind)
    schema = pa.schema([pa.field("c", kind, metadata={"unit": "none"})], metadata={"who": "me"})
    batch = pa.record_batch([column], schema=schema)
    chunks = list(rechunk([batch], schema, first_row=0, max_rows=50, max_bytes=8_000))
    assert [chunk.table.num_rows for chunk in chunks] == [50] * 100
    for chunk in chunks:
        assert chunk.table.schema.equals(schema, check_metadata=True)
        chunk.table.validate(full=True)
        assert chunk.table.get_total_buffer_size() < batch.get_total_buffer_size() / 3 or (
            pa.types.is_dictionary(kind)
        )
    assert [v for chunk in chunks for v in chunk.table["c"].to_pylist()] == column.to_pylist()


def test_dictionaries_that_do_not_fit_together_stay_apart():
    """Two batches whose dictionaries overflow int8 when joined keep type and values."""
    kind = pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema([("c", kind)])
    stream = [
        pa.record_batch(
            [pa.array([f"{part}{i}" for i in range(100)]).dictionary_encode().cast(kind)],
            schema=schema,
        )
        for part in "ab"
    ]
    (chunk,) = rechunk(stream, schema, first_row=0, max_rows=500, max_bytes=1 << 20)
    chunk.table.validate(full=True)
    assert chunk.table.schema == schema
    expected = [f"{part}{i}" for part in "ab" for i in range(100)]
    assert chunk.table["c"].to_pylist() == expected


@pytest.mark.parametrize(("max_rows", "max_bytes"), [(0, 1), (1, 0), (1, MAX_CHUNK_BYTES + 1)])
def test_impossible_bounds(max_rows, max_bytes):
    with pytest.raises(ValueError, match="must be at least 1"):
        list(rechunk([], SCHEMA, first_row=0, max_rows=max_rows, max_bytes=max_bytes))


@pytest.mark.fault(25)
def test_a_huge_dictionary_is_cut_down_to_what_is_used():
    """Each part would carry the whole of it; values, type and the order among values stay."""
    values = pa.array([f"{row:0100}" for row in range(5_000)])
    column = pa.DictionaryArray.from_arrays(pa.array([4_999, None, 7, 3] * 25), values)
    schema = pa.schema([("c", column.type)])
    batch = pa.record_batch([column], schema=schema)
    for chunk in rechunk([batch], schema, first_row=0, max_rows=50, max_bytes=10_000):
        assert chunk.table.schema == schema
        expected = column.slice(chunk.first_row, chunk.table.num_rows)
        assert chunk.table["c"].to_pylist() == expected.to_pylist()
        kept = chunk.table["c"].chunk(0).dictionary.to_pylist()
        assert kept == [values[3].as_py(), values[7].as_py(), values[4_999].as_py()]
