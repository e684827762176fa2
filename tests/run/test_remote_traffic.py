"""What is asked of a storage, and read from it: requests and bytes, counted at the server."""

from collections import Counter
from dataclasses import replace

import obstore
import pyarrow as pa
import pytest

from pipeline.errors import StoppedEarly
from pipeline.job.status import status_of
from pipeline.responses import ResponseStore
from pipeline.store import PartRecord, RunRecord, open_store
from pipeline.store import log as log_module
from pipeline.system import remote

TEXTS = [f"review number {i}" for i in range(3_000)]


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", TEXTS)


@pytest.fixture
def asked(proxy):
    """Count the requests by method and kind of object, and the bytes, since it was called last."""

    def counted():
        kinds = Counter()
        for method, key in proxy.requests:
            folder = next((n for n in ("parts", "answers", "log", "events") if f"/{n}/" in key), "")
            kinds[method, folder] += 1
        sent = proxy.sent_bytes
        proxy.requests.clear()
        proxy.sent_bytes = 0
        return kinds, sent

    return counted


PARTS, COMMITS = 120, 100


@pytest.fixture
def stored(bucket, tmp_path, monkeypatch):
    """What opens the store of a run of so many parts, and so many commits of 50 answers."""
    monkeypatch.setattr(log_module, "MOST_LOOSE", 10)
    store = open_store(tmp_path / "out", f"{bucket.url}/run")
    store.lease.acquire(create=True)
    store.load()
    store.begin(RunRecord("test", {}, {"rows": 10 * PARTS}))
    for number in range(PARTS):
        content = pa.py_buffer(bytes([number % 256]) * 10_000)
        name, digest, stamp = store.put_part(10 * number, content, ".parquet")
        part = PartRecord(10 * number, 10, name, 10_000, digest, 0, "r", {"a": 10}, stamp)
        store.log.add_part(part)
    answers = ResponseStore(store.journal)
    for number in range(COMMITS):
        keys = [b"%08dkey ... " % each for each in range(50 * number, 50 * number + 50)]
        answers.put([(keys, [(("a", 0.5),)] * 50, "r")])
    answers.close()
    store.lease.release()
    return lambda: open_store(tmp_path / "out", f"{bucket.url}/run")


def test_status_reads_the_log_alone(stored, asked, tmp_path, bucket):
    """Neither answers nor parts, and a tenth of the requests that the log was written with."""
    asked()
    found = status_of(tmp_path / "out", f"{bucket.url}/run")
    kinds, sent = asked()
    assert (found.committed_rows, found.answers) == (10 * PARTS, COMMITS * 50)
    assert not kinds["GET", "parts"] + kinds["GET", "answers"]
    assert kinds["GET", "log"] <= 1 + PARTS // 11 + 10
    assert sent < 1_000 * PARTS
    assert stored().journal.size() > 1.5 * sent


def test_answers_are_read_in_few_requests(stored, asked):
    """Two commits a second would take hours to read one by one."""
    asked()
    answers = ResponseStore(stored().journal)
    kinds, sent = asked()
    assert kinds["GET", "answers"] <= COMMITS // 2 + 2
    found = answers.get([b"%08dkey ... " % each for each in range(50 * COMMITS)])
    answers.close()
    assert len(found) == 50 * COMMITS
    assert sent < stored().journal.size() * 1.1 + 500 * COMMITS


def test_a_run_that_goes_on_reads_no_part(stored, asked, bucket):
    store = stored()
    store.load()
    parts = store.log.run.parts
    asked()
    assert store.repair() == 0
    kinds, sent = asked()
    assert not kinds["GET", "parts"]
    assert sent < 1_000 * PARTS  # a listing tells some hundred bytes of each
    keys = [f"run/parts/{part.file}" for part in parts]
    bucket.put(keys[3], b"other bytes of somebody else")
    bucket.put(keys[4], b"\4" * 9_999)
    bucket.delete(keys[5])
    bucket.put("run/parts/000000000000-0123abcd.parquet", b"which nobody has recorded")
    assert store.damaged_parts(store.log.run) == list(parts[3:6])
    assert store.repair() == 3
    kinds, _ = asked()
    assert kinds["GET", "parts"] <= 2 * 3
    assert len(store._parts()) == PARTS - 3
    assert stored().load().rows == 10 * (PARTS - 3)


def test_what_another_storage_says_of_the_same_bytes_is_looked_at(stored, asked, bucket):
    """As of a copy, which has other ETags: its bytes are read, and are not damaged."""
    store, content = stored(), bytes(12 << 20)
    state = store.load()
    name, digest, stamp = store.put_part(0, content, ".parquet")
    made = PartRecord(0, 10, name, len(content), digest, 0, "r", {}, stamp)
    asked()
    assert store.damaged_parts(replace(state, parts=(made,))) == []
    assert not asked()[0]["GET", "parts"]
    place, key = remote.parts_of(f"{store.place}/parts/{name}")
    obstore.put(remote.store_at(place), key, content, use_multipart=False)
    asked()
    assert store.damaged_parts(replace(state, parts=(made,))) == []
    assert asked()[0]["GET", "parts"] == 1


@pytest.mark.usefixtures("small_chunks")
def test_a_run_that_was_stopped_reads_each_part_once(label, asked, bucket, source, tmp_path):
    """To put it into the output, and for nothing else; the bytes are those of a local run."""
    label(source, tmp_path / "local")
    place = {"run_dir": f"{bucket.url}/run", "batch_size": 8}
    with pytest.raises(StoppedEarly):
        label(source, tmp_path / "far", **place, max_requests=200)
    assert open_store(tmp_path / "far", f"{bucket.url}/run").load().rows > 0
    asked()
    label(source, tmp_path / "far", **place)
    kinds, _ = asked()
    files = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert kinds["GET", "parts"] == len(files)
    for file in files:
        assert (tmp_path / "far" / file).read_bytes() == (tmp_path / "local" / file).read_bytes()
