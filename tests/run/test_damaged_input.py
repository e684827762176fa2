"""Damage in the input is found before anything is sent; bytes that are no text cost one row."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError


@pytest.mark.fault(25)
@pytest.mark.parametrize("name", ["text", "other"])
def test_damage_in_any_column_is_found_before_anything_is_sent(server, label, tmp_path, name):
    """Also far behind the rows that are sent first, and in a column that is only copied."""
    path = tmp_path / "in.parquet"
    texts = [f"text {i}" for i in range(30_000)]
    table = pa.table({"text": texts, "other": texts})
    pq.write_table(table, path, row_group_size=10_000, write_page_checksum=True)
    column = pq.ParquetFile(path).metadata.row_group(2).column(table.schema.names.index(name))
    data = bytearray(path.read_bytes())
    data[column.dictionary_page_offset + column.total_compressed_size // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(InputError) as refused:
        label(path, tmp_path / "out.parquet")
    assert f"row group 2, column {name!r}" in str(refused.value)
    assert refused.value.exit_code == 2
    assert server.requests == []
    assert not (tmp_path / "out.parquet.run").exists()


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.large_string(), "dictionary"])
def test_text_that_is_not_utf8_is_an_error_of_its_row(
    server, label, tmp_path, right_answer, small_chunks, kind
):
    """In whichever row it comes; in a column that is only copied it is no error at all."""
    good = [f"text {i}".encode() for i in range(200)]
    damaged = [b"\xffbad" if i in (3, 150) else text for i, text in enumerate(good)]
    copied = pa.array(damaged[::-1]).view(pa.string())
    column = pa.array(damaged).view(pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    copied = copied.dictionary_encode() if kind == "dictionary" else copied.cast(kind)
    pq.write_table(pa.table({"text": column, "copied": copied}), tmp_path / "in.parquet")
    summary = label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (summary["exit_code"], summary["errors"], summary["labelled"]) == (3, 2, 198)
    found = pq.read_table(tmp_path / "out.parquet")
    for name, expected in (("text", damaged), ("copied", damaged[::-1])):
        values = found.column(name).combine_chunks()
        if kind == "dictionary":
            values = values.dictionary_decode()
        assert values.cast(pa.large_binary()).to_pylist() == expected
    errors = found.column("error").to_pylist()
    assert [i for i, error in enumerate(errors) if error] == [3, 150]
    assert "no valid text" in errors[3]
    labels = [None if i in (3, 150) else right_answer(f"text {i}")[0]["label"] for i in range(200)]
    assert found.column("label").to_pylist() == labels
    assert len(server.texts) == 198


@pytest.mark.parametrize("dedup", [True, False])
def test_a_long_text_of_a_dictionary_is_held_once(server, label, tmp_path, dedup):
    """Each row of a chunk has it; decoded, they would take more than 4 GB."""
    texts = pa.array(["x" * 1_000_000, "not used", "short", "short"])
    places = pa.array([0, 2, None, 3] * 1_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(places, texts)
    pq.write_table(pa.table({"text": column}), tmp_path / "in.parquet")
    before = pa.default_memory_pool().max_memory()
    summary = label(
        tmp_path / "in.parquet", tmp_path / "out.parquet", dedup=dedup, max_errors=5_000,
        limit=None if dedup else 40,
    )  # fmt: skip
    assert summary["errors"] == summary["rows"] // 4
    assert pa.default_memory_pool().max_memory() < before + 500_000_000
    if dedup:
        assert sorted(map(len, server.texts)) == [5, 1_000_000]
