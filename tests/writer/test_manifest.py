"""The manifest under torn tails, flipped bits and other versions."""

import zlib

import orjson
import pytest

from pipeline.errors import ResumeRefused, StoppedEarly
from pipeline.writer import Manifest, PartRecord, RunRecord

RUN = RunRecord(software="classify-pipeline 1", settings={"text": "é"}, plan={"rows": 30})


def _part(number):
    return PartRecord(
        first_row=10 * number, rows=10, file=f"part-{number}.parquet", size_bytes=100,
        sha256="0" * 64, errors=number, revision=None, labels={"näh": 10 - number},
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "manifest.jsonl"


@pytest.fixture
def written(path):
    """The bytes of a manifest with three parts."""
    manifest = Manifest.create(path, RUN)
    for number in range(3):
        manifest.add_part(_part(number))
    return path.read_bytes()


def test_reads_back_what_was_written(path, written):
    manifest = Manifest.load(path)
    assert (manifest.run, manifest.parts) == (RUN, [_part(0), _part(1), _part(2)])
    assert (manifest.rows, manifest.complete) == (30, None)


def test_no_file_is_no_manifest(path):
    assert Manifest.load(path) is None


@pytest.mark.fault(3)
def test_cut_off_at_every_byte(path, written):
    """A torn tail leads back to the last whole record; never to a part that is not recorded."""
    ends = [at + 1 for at, byte in enumerate(written) if byte == 10]
    for length in range(len(written) + 1):
        path.write_bytes(written[:length])
        manifest = Manifest.load(path)
        whole = sum(end <= length for end in ends)
        if not whole:
            assert manifest is None
            continue
        assert manifest.parts == [_part(number) for number in range(whole - 1)]
        manifest.cut_torn_tail()
        assert path.read_bytes() == written[: ends[whole - 1]]
        if whole < 4:
            manifest.add_part(_part(whole - 1))
            assert path.read_bytes() == written[: ends[whole]]


@pytest.mark.parametrize("tail", [b"\0" * 40, b"garbage", b"garbage\n", b"00000000 {}\n\n", b"\n"])
@pytest.mark.fault(3)
def test_garbage_at_the_end_is_cut_off(path, written, tail):
    """What a power cut may leave behind the last record: zeros, old blocks, an empty line."""
    path.write_bytes(written + tail)
    manifest = Manifest.load(path)
    assert manifest.rows == 30
    manifest.cut_torn_tail()
    assert path.read_bytes() == written


@pytest.mark.fault(3)
def test_any_flipped_bit_before_the_last_record_is_refused(path, written):
    """No kill does that, so what was done cannot be trusted; and no row is ever skipped."""
    for at in range(written[:-1].rindex(b"\n")):
        for bit in range(8):
            damaged = bytearray(written)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(ResumeRefused, match="damaged") as refused:
                Manifest.load(path)
            assert str(path) in str(refused.value)
            assert "--restart" in str(refused.value)


@pytest.mark.fault(3)
def test_any_flipped_bit_in_the_last_record_costs_no_more_than_that(path, written):
    """The rows of that record are done again; so are those before it if their line feed is hit."""
    before = written[:-1].rindex(b"\n")
    for at in range(before, len(written)):
        for bit in range(8):
            damaged = bytearray(written)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            kept = [_part(0)] if at == before else [_part(0), _part(1)]
            assert Manifest.load(path).parts == kept


def test_a_part_is_recorded_only_behind_the_one_before(path):
    manifest = Manifest.create(path, RUN)
    with pytest.raises(AssertionError, match="order"):
        manifest.add_part(_part(1))


def test_keep_parts_forgets_the_others_durably(path, written):
    Manifest.load(path).keep_parts(1)
    assert Manifest.load(path).parts == [_part(0)]
    assert path.read_bytes() == written[: len(path.read_bytes())]


def test_complete_keeps_the_facts_and_drops_the_parts(path, written):
    Manifest.load(path).set_complete({"rows": 30, "labels": {"näh": 27}})
    manifest = Manifest.load(path)
    assert manifest.complete == {"rows": 30, "labels": {"näh": 27}}
    assert (manifest.run, manifest.parts) == (RUN, [])


def test_a_newer_format_is_refused(path):
    Manifest.create(path, RunRecord(software="later 9", settings={}, plan={}, format=2))
    with pytest.raises(ResumeRefused, match=r"another version of this software \(later 9\)"):
        Manifest.load(path)


def test_a_directory_in_its_place_is_named(path):
    path.mkdir()
    with pytest.raises(ResumeRefused, match="cannot read the manifest"):
        Manifest.load(path)


def test_a_disk_that_refuses_stops_the_run(path, written):
    manifest = Manifest.load(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoppedEarly, match="cannot write"):
        manifest.add_part(_part(3))
    assert manifest.rows == 30


def test_each_line_is_readable_by_people(written):
    lines = [line[9:] for line in written.splitlines()]
    assert [orjson.loads(line)["kind"] for line in lines] == ["run", "part", "part", "part"]


def test_a_retry_keeps_what_was_recorded_of_the_output(path, written):
    """Read back at every step; dropped, the manifest is what it was before."""
    manifest = Manifest.load(path)
    manifest.set_assembled([[9, "a" * 64]])
    manifest.set_complete({"errors": 2})
    complete = path.read_bytes()
    manifest = manifest.retrying()
    manifest.save()
    manifest.add_part(_part(0))
    manifest.set_assembled([[8, "b" * 64]])
    for found in (manifest, Manifest.load(path)):
        assert (found.run, found.parts, found.complete) == (RUN, [_part(0)], None)
        assert (found.retry_of, found.retried_identity) == ({"errors": 2}, [[9, "a" * 64]])
        assert found.assembled == [[8, "b" * 64]]
    manifest.keep_parts(0)
    assert Manifest.load(path).retried_identity == [[9, "a" * 64]]
    assert (manifest.rows, manifest.assembled) == (0, None)
    manifest = manifest.without_retry()
    manifest.save()
    assert path.read_bytes() == complete
    assert (manifest.complete, manifest.retry_of) == ({"errors": 2}, None)


def test_a_record_of_a_kind_that_is_not_known_is_refused(path, written):
    """It belongs to a newer version, and what it says must not be passed over."""
    line = orjson.dumps({"kind": "new"})
    path.write_bytes(written + b"%08x %b\n" % (zlib.crc32(line), line))
    with pytest.raises(ResumeRefused, match="another version"):
        Manifest.load(path)
