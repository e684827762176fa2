"""Parts are verified before they are trusted, and the output does not know how they were cut."""

import itertools
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoppedEarly
from pipeline.events import Notice, PartsDamaged
from pipeline.store import ByteSource, LocalStore, RunRecord, RunState, open_ranges
from pipeline.system.sizes import row_bytes
from pipeline.writer import assemble, write_part
from tests.store.memory_store import MemoryStore

ROWS = 10_000
TABLE = pa.table(
    {
        "n": range(ROWS),
        "text": [None if i % 11 == 0 else f"text {i * i % 977}" * (i % 5) for i in range(ROWS)],
        "score": [i / 7 for i in range(ROWS)],
        "tags": [[str(i), None] if i % 3 else None for i in range(ROWS)],
        # Whether there are nulls depends on where one looks.
        "error": [f"error {i}" if 3_000 < i < 3_050 else None for i in range(ROWS)],
    }
)


def _begun(place, name="out.parquet"):
    """The store of a run that has begun, with its output in `place`."""
    store = LocalStore(place / name)
    store.lease.acquire(create=True)
    store.begin(RunRecord("software", {}, {}))
    return store


def _write_parts(store, table, cuts):
    """Commit a table as parts, files of the output if that is a directory; gives their bytes."""
    final = None if store.output.is_file else table.schema
    edges = [0, *cuts, table.num_rows]
    for start, stop in pairwise(edges):
        if stop > start:
            part = write_part(
                store, table.slice(start, stop - start), first_row=start, errors=0, labels={},
                revision=None, final_schema=final,
            )  # fmt: skip
            store.log.add_part(part)
    return [store.part(part) for part in store.log.run.parts]


def _assemble(store, parts, *, rows=ROWS, schema=TABLE.schema):
    if store.output.is_file:
        assemble(parts, schema, store.output, rows=rows)
    else:
        assert store.draft_parts() == store.output.draft_identity()
    store.output.publish()
    left = {path.name for path in store.output.path.with_name(Path(store.place).name).iterdir()}
    assert left <= {"lock", "log", "parts"}
    return store.output.path


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of few rows, so that the borders fall inside the test's table."""
    monkeypatch.setattr(sys.modules["pipeline.writer.assembly"], "ROW_GROUP_ROWS", 3_072)


@pytest.fixture
def store(tmp_path):
    return _begun(tmp_path)


CUTS = st.lists(st.integers(1, ROWS - 1), max_size=6, unique=True).map(sorted)


@pytest.mark.usefixtures("small_groups")
def test_the_bytes_do_not_tell_how_the_rows_were_cut(tmp_path_factory):
    whole = _begun(tmp_path_factory.mktemp("whole"))
    expected = _assemble(whole, _write_parts(whole, TABLE, [])).read_bytes()

    @settings(max_examples=25, deadline=None)
    @given(CUTS)
    def check(cuts):
        store = _begun(tmp_path_factory.mktemp("cut"))
        assert _assemble(store, _write_parts(store, TABLE, cuts)).read_bytes() == expected

    check()


@pytest.mark.parametrize("bytes_a_group", [20_000, 100_000])
def test_nor_where_big_rows_make_small_groups(tmp_path, monkeypatch, bytes_a_group):
    """A border that is set by bytes is set by the same row, wherever the parts ended."""
    monkeypatch.setattr(sys.modules["pipeline.writer.assembly"], "ROW_GROUP_BYTES", bytes_a_group)
    found = set()
    for number, cuts in enumerate(([], [1], [3_000], [3_010, 3_020], [511, 1_025, 9_999])):
        store = _begun(tmp_path / str(number))
        output = _assemble(store, _write_parts(store, TABLE, cuts))
        assert pq.read_metadata(output).num_row_groups > 2
        assert pq.read_table(output).equals(TABLE)
        found.add(output.read_bytes())
    assert len(found) == 1


BIG = pa.table(
    {
        "text": ["x" * (1 + 997 * i % 5_000) for i in range(600)],
        "large": pa.array(["y" * (i % 300) or None for i in range(600)], pa.large_string()),
        "view": pa.array(["z" * (i % 90) for i in range(600)], pa.string_view()),
        "list": [["ab" * (i % 40)] * (i % 7) or None for i in range(600)],
        "fixed": pa.array([[i, None] for i in range(600)], pa.list_(pa.int32(), 2)),
        "texts": pa.array([["ab" * (i % 9)] * 2 for i in range(600)], pa.list_(pa.string(), 2)),
        "map": pa.array([[("k", "v" * (i % 50))] for i in range(600)],
                        pa.map_(pa.string(), pa.string())),
        "struct": [{"a": i, "b": "c" * (i % 60)} if i % 5 else None for i in range(600)],
        "kind": pa.array([f"kind {i % 3}" for i in range(600)]).dictionary_encode(),
        "nothing": pa.nulls(600),
        "flag": [i % 2 == 0 for i in range(600)],
    }
)  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 599), max_size=20, unique=True).map(sorted))
def test_groups_are_bounded_by_bytes_whatever_the_rows_hold(tmp_path_factory, cuts):
    """Cells may be of any size and kind: a group is cut by its rows' bytes, never by the parts."""
    place = tmp_path_factory.mktemp("big")
    parts = []
    for first, end in itertools.pairwise([0, *cuts, 600]):
        parts.append(_stream(place / f"{first}.arrows", BIG.slice(first, end - first)))
    module = sys.modules["pipeline.writer.assembly"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROW_GROUP_BYTES", 20_000)
        groups = list(module._row_groups(parts, BIG.schema))
        whole = list(module._row_groups([_stream(place / "whole.arrows", BIG)], BIG.schema))
    assert [group.num_rows for group in groups] == [group.num_rows for group in whole]
    assert pa.concat_tables(groups).to_pylist() == BIG.to_pylist()
    # One chunk a column, and a dictionary of what is used: the writer's bytes follow both.
    assert {column.num_chunks for group in groups for column in group.columns} == {1}
    sizes = [int(row_bytes(group).sum()) for group in groups]
    assert max(sizes) <= 20_000
    # Each group is as large as it may be: with the next group's first row it would be too large.
    for group, following in itertools.pairwise(groups):
        together = pa.concat_tables([group, following.slice(0, 1)])
        assert int(row_bytes(together).sum()) > 20_000


def _stream(path, table):
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return ByteSource.of(path)


def test_a_row_larger_than_a_group_is_one_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["pipeline.writer.assembly"], "ROW_GROUP_BYTES", 100)
    texts = ["a", "b" * 500, "c", "d" * 99, "e" * 99]
    table = pa.table({"text": texts})
    groups = sys.modules["pipeline.writer.assembly"]._row_groups(
        [_stream(tmp_path / "part.arrows", table)], table.schema
    )
    assert [group["text"].to_pylist() for group in groups] == [
        texts[:1], texts[1:2], texts[2:4], texts[4:],
    ]  # fmt: skip


def test_the_files_of_a_directory_are_its_parts(tmp_path):
    """They get their name without being read or copied, by the order of their rows."""
    store = _begun(tmp_path, "out")
    parts = _write_parts(store, TABLE, [4_096, 8_192])
    inodes = [Path(part.name).stat().st_ino for part in parts]
    files = sorted(_assemble(store, parts).iterdir())
    assert [file.name for file in files] == [f"part-{i:05d}.parquet" for i in range(3)]
    assert [file.stat().st_ino for file in files] == inodes
    assert [pq.read_metadata(file).num_rows for file in files] == [4_096, 4_096, ROWS - 8_192]
    assert pa.concat_tables([pq.read_table(file) for file in files]).equals(TABLE)
    # What was a part stays one until the run is known to be complete.
    assert not store.damaged_parts(store.log.run)


def test_names_are_in_the_order_of_rows_however_many_there_are(tmp_path):
    store = _begun(tmp_path, "out")
    parts = _write_parts(store, TABLE, [])
    record = store.log.run.parts[0]
    state = RunState(RunRecord("software", {}, {}), parts=(record,) * 100_001)
    store.log.state = state
    taken = []
    store.output.take_part = lambda part, name: taken.append(name)
    store.draft_parts()
    assert taken[::50_000] == ["part-000000.parquet", "part-050000.parquet", "part-100000.parquet"]
    assert taken == sorted(taken)
    assert len(parts) == 1


def test_a_directory_replaces_the_one_before_as_a_whole(tmp_path):
    store = _begun(tmp_path, "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00099.parquet").write_text("of a run before")
    output = _assemble(store, _write_parts(store, TABLE, []))
    assert pq.read_table(output).num_rows == ROWS
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.run"}


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_in_memory_the_output_has_the_same_bytes(tmp_path, name):
    local, memory = _begun(tmp_path, name), MemoryStore(is_file=name != "out")
    memory.begin(RunRecord("software", {}, {}))
    output = _assemble(local, _write_parts(local, TABLE, [5_000]))
    if name == "out":
        _write_parts(memory, TABLE, [5_000])
        memory.draft_parts()
    else:
        assemble(_write_parts(memory, TABLE, [3_000]), TABLE.schema, memory.output, rows=ROWS)
    assert memory.output.content is None
    assert memory.output.draft_identity() == local.output.identity()
    memory.output.publish()
    files = {"": output} if output.is_file() else {file.name: file for file in output.iterdir()}
    assert memory.output.content == {each: file.read_bytes() for each, file in files.items()}
    assert [file.size_bytes for file in memory.output.files()] == [
        file.size_bytes for file in local.output.files()
    ]


def test_no_parts_give_a_table_of_the_schema(tmp_path):
    output = _assemble(_begun(tmp_path), [], rows=0)
    assert pq.read_table(output).equals(TABLE.schema.empty_table())


def test_row_groups_have_one_size(store):
    """65,536 rows each, the last one fewer: readers skip and parallelise by them."""
    table = pa.table({"n": range(200_000)})
    parts = _write_parts(store, table, [4_096, 4_097, 100_000])
    metadata = pq.read_metadata(_assemble(store, parts, rows=200_000, schema=table.schema))
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [65_536] * 3 + [200_000 - 3 * 65_536]


@pytest.mark.fault(7)
def test_a_missing_row_never_reaches_the_output(tmp_path):
    """Were a row lost on the way, there would be no output rather than a shorter one."""
    store = _begun(tmp_path)
    parts = _write_parts(store, TABLE, [5_000])
    with pytest.raises(AssertionError, match="5000 rows assembled, 10000 expected"):
        _assemble(store, parts[:1])
    assert not store.output.exists()


@pytest.mark.fault(7)
def test_a_part_that_cannot_be_read_leaves_nothing_at_the_output(tmp_path, store):
    """No readable file stands at the output, however far the assembly came."""
    parts = _write_parts(store, TABLE, [5_000])
    Path(parts[1].name).write_bytes(b"PAR1")
    with pytest.raises(pa.ArrowInvalid):
        _assemble(store, parts)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.fault(6)
def test_a_disk_that_refuses_stops_resumably(tmp_path, store):
    parts = _write_parts(store, TABLE, [])
    nowhere = LocalStore(tmp_path / "taken" / "out.parquet")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StoppedEarly, match="cannot write"):
        assemble(parts, TABLE.schema, nowhere.output, rows=ROWS)
    with pytest.raises(StoppedEarly, match="cannot write"):
        write_part(nowhere, TABLE, first_row=0, errors=0, labels={}, revision=None)


def _damage(file, kind):
    content = file.read_bytes()
    if kind == "gone":
        file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "short":
        file.write_bytes(content[:-1])
    elif kind == "long":
        file.write_bytes(content + b"\0")
    else:
        file.write_bytes(bytes([content[0]]) + bytes([content[1] ^ 1]) + content[2:])


@pytest.mark.parametrize("kind", ["gone", "empty", "short", "long", "flipped bit"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.fault(3)
def test_a_damaged_part_opens_its_own_rows(store, kind, number):
    parts = _write_parts(store, TABLE, [3_000, 6_000])
    assert store.repair() == 0
    _damage(Path(parts[number].name), kind)
    assert store.repair() == 1
    cuts = [0, 3_000, 6_000, ROWS]
    found = open_ranges(store.log.run.parts, ROWS)
    assert found == [range(cuts[number], cuts[number + 1])]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("kind", ["gone", "empty", "short", "flipped bit"])
@pytest.mark.fault(3)
def test_a_damaged_part_is_done_again_from_stored_answers(label, server, write_csv, tmp_path, kind):
    """What a power cut spoilt is noticed and made anew, and no text is paid for again."""
    texts = [f"text {i}" for i in range(100)]
    source, output = write_csv("in.csv", texts), tmp_path / "out.parquet"
    label(source, tmp_path / "at_once.parquet")
    server.reset()
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=8, max_requests=12, concurrency=1)
    parts = sorted((tmp_path / "out.parquet.run" / "parts").iterdir())
    assert len(parts) > 2
    _damage(parts[1], kind)
    seen = []
    summary = label(source, output, observers=[seen.append])
    assert [event for event in seen if isinstance(event, Notice)] == [PartsDamaged(1)]
    assert summary["resumed_rows"] == 16 * (len(parts) - 1)
    assert not server.sent_twice()
    assert sorted(server.texts) == sorted(texts)
    assert output.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()
