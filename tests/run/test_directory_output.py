"""A directory's files are the parts of the run: cut by the rows alone, and never read again."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoppedEarly
from pipeline.job import stream
from pipeline.store import LocalStore, open_ranges
from pipeline.store.runstore import RunStore
from pipeline.writer import parts

ROWS = 400
CHUNK_ROWS, FILE_ROWS = 16, 80
# Rows of very different sizes, and columns whose values Arrow and Parquet keep in several ways.
CHANCE = random.Random(7)
TEXTS = [f"text {i} " + "x" * CHANCE.choice([0, 5, 400]) for i in range(ROWS)]
TABLE = pa.table(
    {
        "text": TEXTS,
        "kind": pa.array([f"kind {i % 9}" if i % 7 else None for i in range(ROWS)])
        .dictionary_encode(),
        "flag": [None if i % 3 == 0 else i % 2 == 0 for i in range(ROWS)],
        "tags": pa.array(
            [[f"tag {i % 5}"] * (i % 4) for i in range(ROWS)],
            pa.list_(pa.dictionary(pa.int32(), pa.string())),
        ),
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def _small_files(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_ROWS", CHUNK_ROWS)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 4_000)
    monkeypatch.setattr(stream, "FILE_ROWS", FILE_ROWS)
    monkeypatch.setattr(stream, "FILE_BYTES", 9_000)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.parquet"
    pq.write_table(TABLE, path, row_group_size=150)
    return path


def files(output):
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


@pytest.fixture
def expected(label, server, source, tmp_path):
    """The files of a run that nothing disturbed."""
    label(source, tmp_path / "undisturbed", batch_size=4)
    server.reset()
    return files(tmp_path / "undisturbed")


def test_all_rows_in_order_under_names_that_sort(expected, tmp_path):
    assert list(expected) == [f"part-{i:05d}.parquet" for i in range(len(expected))]
    tables = [pq.read_table(tmp_path / "undisturbed" / name) for name in expected]
    assert pa.concat_tables(tables).select(TABLE.schema.names).to_pylist() == TABLE.to_pylist()
    assert all(0 < table.num_rows <= FILE_ROWS for table in tables)
    assert all(pq.read_metadata(pa.BufferReader(each)).num_row_groups == 1
               for each in expected.values())  # fmt: skip
    # Some end by rows, some by bytes.
    assert len(expected) > ROWS / FILE_ROWS + 1


def test_the_order_of_the_answers_does_not_show(label, server, source, expected, tmp_path):
    for seed in range(4):
        chance = random.Random(seed)
        server.script = lambda _, chance=chance: server.reply(delay_s=chance.choice([0, 0, 0.05]))
        output = tmp_path / str(seed) / "out"
        output.parent.mkdir()
        label(source, output, batch_size=3 + seed, concurrency=8)
        assert files(output) == expected


@pytest.mark.parametrize("most", [3, 7, 20, 41])
def test_nor_does_how_often_it_was_stopped(label, server, source, expected, tmp_path, most):
    output, stops = tmp_path / "out", 0
    for _ in range(2 + ROWS // (2 * most)):
        try:
            label(source, output, batch_size=4, max_requests=most, concurrency=2)
            break
        except StoppedEarly:
            stops += 1
            assert not output.exists()
    assert stops > 1
    assert files(output) == expected
    assert sorted(server.texts) == sorted(TEXTS)


def test_a_file_is_committed_whatever_is_open_before_it(label, server, source, expected, tmp_path):
    """One answer holds back the one file that it is for."""
    output = tmp_path / "out"
    first = pq.read_metadata(pa.BufferReader(expected["part-00000.parquet"])).num_rows
    hole = [range(first)]

    def others_are_committed():
        state = LocalStore(output).load()
        return state is not None and open_ranges(state.parts, ROWS) == hole

    server.script = lambda asked: server.reply(hold=TEXTS[8] in asked.texts)
    with pytest.raises(StoppedEarly, match="deadline"):
        # One text a request, since a batch has texts of several files.
        label(source, output, batch_size=1, concurrency=8, deadline=4, grace_s=0.1)
    assert others_are_committed()
    server.reset()
    label(source, output, batch_size=4)
    assert files(output) == expected
    assert set(server.texts) <= set(TEXTS[:first])


def test_a_damaged_file_is_made_again_and_no_other(label, server, source, expected, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=4, max_requests=90)
    state = LocalStore(output).load()
    damaged = state.parts[1]
    path = output.with_name("out.run") / "parts" / damaged.file
    path.write_bytes(path.read_bytes()[:-1])
    summary = label(source, output, batch_size=4)
    assert summary["resumed_rows"] == state.rows - damaged.rows
    assert files(output) == expected
    assert sorted(server.texts) == sorted(TEXTS)


def test_no_part_is_read_to_publish_it(label, server, source, expected, tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError("a part was read")

    monkeypatch.setattr(RunStore, "_open", read)
    monkeypatch.setattr(parts, "read_part", read)
    label(source, tmp_path / "out", batch_size=4)
    assert files(tmp_path / "out") == expected


def test_each_file_tells_the_revision_of_its_labels(label, server, tmp_path):
    """A file without a label tells none, however late the first answer comes."""
    server.script = lambda _: server.reply(headers={"x-sha": "0123abcd"}, delay_s=0.1)
    table = pa.table({"text": pa.array([None] * FILE_ROWS + ["good"] * FILE_ROWS, pa.string())})
    pq.write_table(table, tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out", max_errors="60%")
    told = [pq.read_schema(path).metadata for path in sorted((tmp_path / "out").iterdir())]
    assert [each[b"classify.model_revision"] for each in told] == [b"", b"0123abcd"]
    assert len({each[b"classify.software"] for each in told}) == 1


def test_an_input_without_rows_is_one_file(label, tmp_path):
    pq.write_table(TABLE.schema.empty_table(), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    assert file.name == "part-00000.parquet"
    assert pq.read_table(file).select(TABLE.schema.names).schema.equals(TABLE.schema)


@pytest.mark.usefixtures("expected")
def test_all_labels_of_a_row_make_smaller_files(label, source, tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FILE_ROWS_WITH_PREDICTIONS", 2 * CHUNK_ROWS)
    label(source, tmp_path / "out", top_k="all")
    rows = [pq.read_metadata(path).num_rows for path in (tmp_path / "out").iterdir()]
    assert max(rows) == 2 * CHUNK_ROWS
    assert sum(rows) == ROWS


def test_a_file_that_holds_more_than_may_be_held_is_made(label, source, tmp_path, monkeypatch):
    """Reading goes on for the rest of a file if nothing else is left to wait for."""
    monkeypatch.setattr(stream, "held_bytes", lambda _config: 1)
    label(source, tmp_path / "out")
    assert sum(pq.read_metadata(path).num_rows for path in (tmp_path / "out").iterdir()) == ROWS
