"""A file that changes while it is read is noticed, and its versions never meet in one output.

The files are written to by another thread, at moments that the run itself announces: bytes read
to settle the input, rows asked of the endpoint, a run that stopped.
"""

import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, ResumeRefused, StoppedEarly
from pipeline.events import RunStarted
from pipeline.producer import csv_files, parquet_files, text_bytes

pytestmark = [pytest.mark.fault(24), pytest.mark.usefixtures("small_chunks")]

ROWS = 400
# Long enough that no buffer holds the whole file.
TEXTS = [f"text {i:03d} " + "x" * 200 for i in range(ROWS)]
LATER = [f"later {text}" for text in TEXTS]
KINDS = ("csv", "csv.gz", "parquet")


def write(path, texts):
    if path.suffix == ".parquet":
        table = pa.table({"text": texts})
        pq.write_table(table, path, row_group_size=20, compression="none", use_dictionary=False)
        return
    content = ("text\n" + "".join(f"{text}\n" for text in texts)).encode()
    if path.suffix == ".gz":
        # Without compression, so that a changed letter leaves the size as it is.
        import gzip

        content = gzip.compress(content, compresslevel=0, mtime=0)
    path.write_bytes(content)


def write_others(path, over):
    """Write rows of the same lengths, but of other letters, in the place of those of `over`."""
    texts = LATER if over.name.startswith("later") else TEXTS
    write(path, [text.replace("x", "y") for text in texts])


def appended(path):
    if path.suffix == ".parquet":
        with path.open("ab") as file:
            file.write(b"more")
        return
    fresh = path.with_name("fresh" + path.suffix)
    write(fresh, ["more"])
    with path.open("ab") as file:
        file.write(fresh.read_bytes())
    fresh.unlink()


def truncated(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def replaced(path):
    fresh = path.with_name("fresh" + path.suffix)
    write_others(fresh, path)
    fresh.replace(path)


def rewritten(path):
    size = path.stat().st_size
    write_others(path, path)
    assert path.stat().st_size == size


def touched(path):
    os.utime(path, (1, 1))


def deleted(path):
    path.unlink()


CHANGES = (appended, truncated, replaced, rewritten, touched, deleted)


@pytest.fixture(params=KINDS)
def source(request, tmp_path, monkeypatch):
    """A file whose rows are read a few at a time."""
    monkeypatch.setattr(csv_files, "BLOCK_ROWS", 8)
    monkeypatch.setattr(parquet_files, "BATCH_ROWS", 8)
    path = tmp_path / f"in.{request.param}"
    write(path, TEXTS)
    return path


def elsewhere(change, path):
    """Change the file from another thread, and wait until that is done."""
    writer = threading.Thread(target=change, args=(path,))
    writer.start()
    writer.join()


def once(action):
    done = threading.Event()

    def act():
        if not done.is_set():
            done.set()
            action()

    return act


@pytest.mark.parametrize("change", CHANGES)
def test_while_it_is_planned(label, server, source, tmp_path, monkeypatch, change):
    """Nothing is sent for a file that is still being written."""
    act = once(lambda: elsewhere(change, source))
    if source.suffix == ".parquet":
        pieces = []

        def between_pieces():
            pieces.append(None)
            if len(pieces) == 2:
                act()

        # The first checksum of a run is that of the input.
        monkeypatch.setattr("pipeline.producer.files._READ_BYTES", 2_000)
        monkeypatch.setattr("pipeline.producer.files.stop_point", between_pieces)
    else:

        class Tap(text_bytes.Tap):
            def readinto(self, buffer):
                count = super().readinto(memoryview(buffer)[:4_096])
                if self.position > 20_000:
                    act()
                return count

        monkeypatch.setattr(text_bytes, "Tap", Tap)
    with pytest.raises(InputError, match=r"in\.\S+ changed while it was being read.* run again"):
        label(source, tmp_path / "out.parquet")
    assert server.requests == []
    assert not (tmp_path / "out.parquet.run").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_between_plan_and_read(label, server, source, tmp_path, change):
    """The first row is read from the file that was settled, or from none."""

    def observe(event):
        if isinstance(event, RunStarted):
            elsewhere(change, source)

    with pytest.raises(InputError, match=r"in\.\S+ changed while it was being read"):
        label(source, tmp_path / "out.parquet", observers=(observe,))
    assert server.texts == []
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_while_it_is_read(label, server, source, right_answer, tmp_path, change):
    """The run stops; what was committed by then is of one version, and only that one goes on."""
    output = tmp_path / "out.parquet"
    before = source.read_bytes()
    act = once(lambda: elsewhere(change, source))

    def script(request):
        if request.number == 2:
            act()

    server.script = script
    with pytest.raises(StoppedEarly, match=r"in\.\S+ changed while it was being read"):
        label(source, output, batch_size=8, concurrency=1)
    assert not output.exists()
    assert set(server.texts) <= set(TEXTS), "no text of another version was sent"

    server.script = lambda _: None
    if change is touched:
        assert label(source, output)["state"] == "complete"
        assert not server.sent_twice()
    else:
        with pytest.raises((ResumeRefused, InputError)):
            label(source, output)
        assert not output.exists()
        # What it was is what continues, from a file with another inode and other times.
        source.write_bytes(before)
        assert label(source, output)["state"] == "complete"
    found = pq.read_table(output)
    assert found["text"].to_pylist() == TEXTS
    assert found["label"].to_pylist() == [right_answer(text)[0]["label"] for text in TEXTS]


@pytest.mark.parametrize("change", CHANGES)
def test_between_a_stop_and_its_resumption(label, server, source, tmp_path, change):
    """An unfinished run goes on with the content it began with, and with no other."""
    output = tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=8, concurrency=1, max_requests=9)
    before, sent = source.read_bytes(), len(server.requests)
    elsewhere(change, source)
    if change is not touched:
        with pytest.raises(
            (ResumeRefused, InputError), match=r"content changed|cannot be|not exist"
        ):
            label(source, output)
        assert len(server.requests) == sent
        source.write_bytes(before)
    assert label(source, output)["state"] == "complete"
    assert not server.sent_twice()
    assert pq.read_table(output)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("change", CHANGES)
def test_one_file_of_several(label, server, source, tmp_path, change):
    """A later file that changes before its turn stops the run there."""
    second = source.with_name("later" + "".join(source.suffixes))
    write(second, LATER)
    act = once(lambda: elsewhere(change, second))

    server.script = lambda _: act()
    with pytest.raises(StoppedEarly, match=r"later\.\S+ changed while it was being read"):
        label(source, tmp_path / "out.parquet", input=[str(source), str(second)],
              batch_size=8, concurrency=1)  # fmt: skip
    assert not (tmp_path / "out.parquet").exists()
    assert not any(text.startswith("later") for text in server.texts)


def test_rows_that_keep_coming(label, server, tmp_path):
    """A log that another process still appends to is refused, not labelled up to somewhere."""
    path = Path(tmp_path / "log.csv")
    write(path, TEXTS)
    enough = threading.Event()
    writing = threading.Event()

    def keep_writing():
        with path.open("a") as file:
            while not enough.is_set():
                file.write("more\n")
                file.flush()
                writing.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    writing.wait()
    try:
        with pytest.raises(InputError, match=r"log\.csv changed while it was being read"):
            label(path, tmp_path / "out.parquet")
    finally:
        enough.set()
        writer.join()
    assert server.requests == []
