"""A disk that fails, is full, or makes an exception in the middle (faults 5, 6 and 7)."""

from __future__ import annotations

import errno
import json

import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoppedEarly

FEW = 5_000


def slow(*values):
    """One of many like it; `make test` does without."""
    return pytest.param(*values, marks=pytest.mark.slow)


# What is synced or written, as an expression for its path.
PART = r"/parts/.*\.tmp$"
PARTS = r"/parts$"
ENTRY = r"/log/.*\.tmp$"
LOG = r"/log$"
JOURNAL = r"/responses\.journal$"
OUTPUT = r"/assembled\.tmp$"
BESIDE = r"/test_[^/]*$"  # the directory of the output

STOPPED = 75


def fail(work, call, match, number, **rule):
    work.disk["log"] = str(work.output.parent / "disk.log")
    work.disk["fail"] = [{"call": call, "match": match, "errno": number, **rule}]


def stop(work):
    """Work until the disk refuses; the message is for people, and nothing is at the output."""
    attempt = work.end(work.begin())
    assert attempt.code == STOPPED, attempt
    for words in ("cannot write", "run the same command again"):
        assert words in attempt.stderr
    for words in ("Traceback", "never retrieved", "was destroyed"):
        assert words not in attempt.stderr
    assert not work.output.exists()
    return attempt


def records(work):
    log = work.output.parent / "disk.log"
    return [json.loads(line) for line in log.read_bytes().splitlines()]


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    ("match", "at"),
    [(PART, 1), slow(PART, 2), slow(PARTS, 1), slow(ENTRY, 2), (ENTRY, 3), slow(ENTRY, 1),
     slow(LOG, 2), (JOURNAL, 1), slow(OUTPUT, 1)],
    ids=["first part", "second part", "name of a part", "first record", "second record", "new log",
         "name of a record", "journal", "output"],
)  # fmt: skip
def test_an_fsync_fails_once(job, record_property, match, at):
    """The run stops, what was not durable counts for nothing, and no second fsync lies about it."""
    work = job(rows=FEW)
    fail(work, "fsync", match, errno.EIO, at=at)
    attempt = stop(work)
    found = records(work)
    (failed,) = (i for i, record in enumerate(found) if "failed" in record)
    later = [record for record in found[failed + 1 :] if record.get("call") == "fsync"]
    assert found[failed]["inode"] not in {record["inode"] for record in later}
    if match == PART:
        assert attempt.committed_rows == (at - 1) * 4_096
    work.disk.clear()
    work.resume()
    if match != JOURNAL:  # answers that could not be stored are all that is sent again
        record_property("sent again", work.check())
    assert work.found() == work.expected


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("call", "match", "at"),
    [("write", JOURNAL, 1), slow("open", JOURNAL, 1), slow("fsync", PART, 1),
     slow("fsync", ENTRY, 2), slow("fsync", OUTPUT, 1)],
)  # fmt: skip
def test_no_space_is_left(job, call, match, at):
    """It stays so until somebody makes space; then the same command continues."""
    work = job(rows=FEW)
    fail(work, call, match, errno.ENOSPC, at=at, lasting=True)
    assert "No space left on device" in stop(work).stderr
    work.disk.clear()
    work.resume()
    assert work.found() == work.expected


@pytest.mark.fault(6)
@pytest.mark.parametrize("file_bytes", [slow(0), slow(2_000), slow(60_000), 150_000])
def test_files_may_not_grow(job, file_bytes):
    """A limit that every write meets, also those of pyarrow: of records, answers, parts, output."""
    work = job(rows=FEW)
    work.disk["file_bytes"] = file_bytes
    attempt = work.end(work.begin())
    assert attempt.code == STOPPED, attempt
    assert "File too large" in attempt.stderr
    assert "Traceback" not in attempt.stderr
    assert not work.output.exists()
    work.disk.clear()
    work.resume()
    assert work.found() == work.expected
    left = {path.name for path in work.run_directory.iterdir()}
    assert not {name for name in left if name.endswith(".tmp")}


@pytest.mark.fault(6)
@pytest.mark.parametrize("what", ["events.jsonl", "summary.json"])
def test_a_log_that_cannot_be_written_does_not_stop_the_run(job, record_property, what):
    """The event log and the summary are a help; the labels are what was paid for."""
    work = job(rows=FEW)
    work.run_directory.mkdir()
    # A directory in its place refuses every write, as a full disk does.
    (work.run_directory / what).mkdir()
    work.resume()
    (work.run_directory / what).rmdir()
    record_property("sent again", work.check())


def failing_after(armed, batches):
    """Make the writer of Parquet raise after so many batches or row groups."""
    real = pq.ParquetWriter.write_table
    left = [batches]

    def write_table(self, *arguments, **named):
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("raised between two batches")
        return real(self, *arguments, **named)

    armed.setattr(pq.ParquetWriter, "write_table", write_table)


@pytest.mark.fault(7)
@pytest.mark.parametrize("out", ["out.parquet", slow("out")])
@pytest.mark.parametrize("batches", range(5))
@pytest.mark.usefixtures("small_chunks")
def test_an_exception_in_the_middle_of_writing(
    label, server, write_csv, tmp_path, monkeypatch, out, batches
):
    """Two parts, then two row groups: whichever is not written, nothing stands at the output.

    pyarrow's writer closes a file with a valid footer when an exception passes through it.
    """
    monkeypatch.setattr("pipeline.writer.assembly.ROW_GROUP_ROWS", 1_024)
    monkeypatch.setattr("pipeline.job.stream.CHUNK_ROWS", 1_024)
    texts = [f"text {i}" for i in range(2_000)]
    source, output = write_csv("in.csv", texts), tmp_path / out
    expected = tmp_path / "undisturbed" / out
    label(source, expected)
    server.requests.clear()
    if batches < 4:
        with pytest.MonkeyPatch.context() as armed:
            failing_after(armed, batches)
            with pytest.raises(StoppedEarly, match="Not enough memory: raised between two batches"):
                label(source, output)
        assert not output.exists()
    label(source, output)
    paths = [output] if output.is_file() else sorted(output.iterdir())
    others = [expected] if expected.is_file() else sorted(expected.iterdir())
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in others]
    assert sorted(server.texts) == sorted(texts)
