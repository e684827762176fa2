"""A table without rows has a labelled table without rows, and costs nothing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(params=["csv", "parquet", "parquet without row groups"])
def empty_table(request, tmp_path):
    """A table of no rows, and the schema that its output must begin with."""
    if request.param == "csv":
        path = tmp_path / "in.csv"
        path.write_text("id,text\n")
        return path, pa.schema([("id", "string"), ("text", "string")])
    path = tmp_path / "in.parquet"
    schema = pa.schema(
        [("id", pa.int32()), ("text", pa.large_string()), ("n", pa.decimal128(9, 2))]
    )
    with pq.ParquetWriter(path, schema) as writer:
        if request.param == "parquet":
            writer.write_table(schema.empty_table())
    return path, schema


@pytest.mark.parametrize("top_k", [1, 3])
def test_gives_zero_rows_with_the_whole_schema(label, server, tmp_path, empty_table, top_k):
    source, schema = empty_table
    output = tmp_path / "out.parquet"
    summary = label(source, output, top_k=top_k)
    for field in (("label", pa.string()), ("score", pa.float64()), ("error", pa.string())):
        schema = schema.append(pa.field(*field))
    if top_k > 1:
        predictions = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))
        schema = schema.append(pa.field("predictions", predictions))
    found = pq.read_table(output)
    assert found.num_rows == 0
    assert found.schema.equals(schema), found.schema
    assert (summary["state"], summary["exit_code"], summary["rows"]) == ("complete", 0, 0)
    assert server.requests == []


def test_as_a_directory_of_parts_too(label, server, tmp_path, empty_table):
    """A dataset without rows still holds a file that tells its schema."""
    source, schema = empty_table
    label(source, tmp_path / "out")
    found = pq.read_table(tmp_path / "out")
    assert found.num_rows == 0
    assert found.column_names == [*schema.names, "label", "score", "error"]
    assert server.requests == []


def test_from_the_command_line(cli, server, tmp_path, empty_table):
    source, _ = empty_table
    ended = cli("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    assert ended.code == 0, ended.stderr
    assert json.loads(ended.stdout)["rows"] == 0
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 0
    assert server.requests == []
