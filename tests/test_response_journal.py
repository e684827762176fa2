"""The journal of answers: what a kill, a flipped bit or another process may do to it."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoppedEarly
from pipeline.responses import Keys, ResponseStore, index
from pipeline.responses import store as journal
from pipeline.store.files import DiskFile

KEYS = Keys({"model": "m"})
HEADER_BYTES = 16


def entry(text, label="positive", revision="r1"):
    return KEYS.of([text]), [((label, len(text) / 7),)], revision


def known(path, texts):
    store = ResponseStore(path)
    try:
        found = store.get(KEYS.of(texts))
        return {texts[i]: answer[0] for i, answer in found.items()}
    finally:
        store.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers"


@pytest.fixture
def three_frames(path):
    """Three group commits of two answers; gives the file's size after each."""
    store, sizes = ResponseStore(path), [0]
    for texts in (["a", "bb"], ["ccc", "dddd"], ["eeeee", "ffffff"]):
        store.put([entry(text) for text in texts])
        sizes.append(path.stat().st_size)
    store.close()
    return sizes


TEXTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
ALL = {text: entry(text)[1][0] for text in TEXTS}


@pytest.mark.fault(3)
def test_cut_off_at_every_byte(path, three_frames):
    """A kill in the middle of a write costs that group and nothing before it."""
    whole = path.read_bytes()
    for size in range(len(whole)):
        for file in (path, DiskFile(path)):
            path.write_bytes(whole[:size])
            if file is path and 0 < size < HEADER_BYTES:
                # Nothing tells that this is not somebody else's file.
                with pytest.raises(StoppedEarly, match="is no response store"):
                    ResponseStore(file)
                assert path.read_bytes() == whole[:size]
                continue
            frames = sum(size >= end for end in three_frames[1:])
            assert known(file, TEXTS) == {text: ALL[text] for text in TEXTS[: 2 * frames]}
            assert path.stat().st_size == three_frames[frames]


@pytest.mark.fault(3)
def test_answers_go_on_behind_a_torn_tail(path, three_frames):
    path.write_bytes(path.read_bytes()[:-1])
    store = ResponseStore(path)
    store.put([entry("g")])
    store.close()
    assert known(path, [*TEXTS, "g"]) == {**{t: ALL[t] for t in TEXTS[:4]}, "g": entry("g")[1][0]}


@pytest.mark.fault(3)
def test_a_flipped_bit_never_gives_a_wrong_answer_and_costs_one_frame(path, three_frames):
    """What is damaged is asked for again; the frames around it stay known."""
    whole = path.read_bytes()
    for at in range(len(whole)):
        if at < 4:
            continue  # the mark at the very beginning: see the test below
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        found = known(path, TEXTS)
        assert found.items() <= ALL.items()
        damaged = sum(at >= end for end in three_frames[1:])
        spared = [text for i, text in enumerate(TEXTS) if i // 2 != damaged]
        assert set(spared) <= set(found)


@pytest.mark.fault(3)
def test_a_bit_flipped_while_the_store_is_open_makes_the_answer_unknown(path):
    store = ResponseStore(path)
    store.put([entry("text")])
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x00")
    assert store.get(KEYS.of(["text"])) == {}
    store.close()


@pytest.mark.parametrize("missing", [1, 8, 100, 800, 3000])
def test_a_disk_that_fills_under_a_large_segment_is_noticed(tmp_path, missing):
    """Also where only the last bytes do not fit: the disk's own error, no segment with holes."""
    arrays = [np.arange(33_000, dtype=np.uint64)] * 2
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * arrays[0].nbytes - missing, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            index._mapped(tmp_path, *arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("content", [b"no store at all", b"PAR1" + bytes(100), bytes(4096)])
def test_another_file_is_refused_and_left_as_it_is(path, content):
    path.write_bytes(content)
    with pytest.raises(StoppedEarly, match="is no response store"):
        ResponseStore(path)
    assert path.read_bytes() == content


def test_reading_a_small_store_makes_no_file(path, three_frames, monkeypatch):
    """A cache that is only read may lie where nothing can be written."""

    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(index.tempfile, "TemporaryFile", refuse)
    store = ResponseStore(path, read_only=True)
    assert len(store.get(KEYS.of(TEXTS))) == len(TEXTS)
    store.close()


def test_the_newest_answer_counts(path):
    """An answer of a newer revision replaces the older one, in memory and after opening."""
    store = ResponseStore(path)
    store.put([entry("x", "old", "r1")])
    store.put([entry("x", "new", "r2")])
    for _ in range(2):
        answer, revision, *_ = store.get(KEYS.of(["x"]))[0]
        assert (answer[0][0], revision) == ("new", "r2")
        store.close()
        store = ResponseStore(path)
    store.close()


def _fill(path, name, groups):
    store = ResponseStore(path)
    for group in range(groups):
        store.put([entry(f"{name} {group} {i}") for i in range(20)])
    store.close()


def test_processes_that_share_a_file_lose_nothing(path):
    """Frames of several writers stand whole, one behind the other."""
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(path, name, 30)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    texts = [f"{name} {group} {i}" for name in "abc" for group in range(30) for i in range(20)]
    assert len(known(path, texts)) == len(texts)


@pytest.fixture
def small_segments(monkeypatch):
    """Segments small enough that a test fills many of them."""
    monkeypatch.setattr(index, "LARGE_ENTRIES", 192)


@settings(max_examples=40)
@given(
    batches=st.lists(
        st.lists(st.integers(0, 400) | st.integers(0, 2**64 - 1), max_size=90), max_size=12
    ),
    loads=st.integers(0, 12),
)
def test_the_index_finds_what_a_dict_would(tmp_path_factory, batches, loads):
    """Through the small and the large segments, the newest position comes first.

    What is loaded counts as met once it was looked up, and what is added from the start.
    """
    old, index.LARGE_ENTRIES = index.LARGE_ENTRIES, 192
    try:
        found, truth, position = index.Index(tmp_path_factory.mktemp("index")), {}, 0
        met = set()
        for number, batch in enumerate(batches):
            positions = list(range(position, position + len(batch)))
            position += len(batch)
            entries = np.array(batch, np.uint64), np.array(positions, np.uint64)
            if number < loads:
                found.load(*entries)
            else:
                if number == loads:
                    found.loaded()
                found.add(*entries)
                met.update(positions)
            truth.update(zip(batch, positions, strict=True))
        found.loaded()
        asked = np.array(sorted({*truth, *range(0, 500, 7)}), np.uint64)
        newest = {}
        for part in found.meet(asked):
            for i, at, was_met in zip(*(each.tolist() for each in part), strict=True):
                newest.setdefault(asked[i], at)
                assert was_met == (at in met)
        assert newest == truth
        assert all(part.met.all() for part in found.meet(asked))
    finally:
        index.LARGE_ENTRIES = old


def _entries(count, begin=0):
    numbers = np.arange(begin, begin + count, dtype=np.uint64)
    return numbers * np.uint64(0x9E3779B97F4A7C15), numbers


def test_small_segments_are_few(tmp_path):
    """What is looked up again is sought in each of them: they are merged as they become alike."""
    found, rows = index.Index(tmp_path), 0
    for count in [1] * 300 + [7, 300, 2] * 40:
        found.add(*_entries(count, rows))
        rows += count
        keys, positions = _entries(rows)
        parts = found.meet(keys)
        assert len(parts) <= rows.bit_length()
        assert sum(len(part.places) for part in parts) == rows
    in_order = np.concatenate([part.positions[np.argsort(part.places)] for part in reversed(parts)])
    assert (in_order == positions).all()


@pytest.mark.parametrize(
    ("entries", "share"),
    [(1 << 15, 0.006), ((1 << 15) + 1, 0.001), ((1 << 15) - 1, 0.006), (1 << 16, 0.001)],
)
def test_few_strangers_pass_a_full_filter(monkeypatch, entries, share):
    monkeypatch.setattr(index, "_SLICE", 1_000)
    draw = np.random.default_rng(0)
    known, strangers = draw.integers(0, 2**64, (2, 1 << 15), np.uint64)
    sieve = index._Filter(entries)
    sieve.add(known)
    assert len(sieve.maybe(index._Hashed.of(known))) == len(known)
    assert len(sieve.maybe(index._Hashed.of(strangers))) < share * len(strangers)


def test_an_add_that_fails_loses_nothing_of_before(tmp_path, monkeypatch):
    found = index.Index(tmp_path)
    found.add(*_entries(100))
    with monkeypatch.context() as patch:
        patch.setattr(index, "_sorted", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            found.add(*_entries(100, 100))
    found.add(*_entries(10, 200))
    (newer, older) = found.meet(_entries(210)[0])
    assert (older.positions == np.arange(100)).all()
    assert (newer.positions == np.arange(200, 210)).all()


def test_a_long_answer_takes_a_second_read(path):
    store = ResponseStore(path)
    answer = tuple((f"label {i}", i / 3) for i in range(500))
    key = KEYS.of(["x"])[0]
    store.put([([key], [answer], None)])
    assert store.get([key])[0].answer == answer
    store.close()


def test_a_damaged_length_asks_for_no_more_than_the_file(path, monkeypatch):
    store = ResponseStore(path)
    store.put([entry("a")])
    content, size = path.read_bytes(), path.stat().st_size
    at = content.index(KEYS.of(["a"])[0][8:]) - 4
    path.write_bytes(content[:at] + (1 << 29).to_bytes(4, "little") + content[at + 4 :])
    asked, read = [], os.pread

    def pread(file, count, offset):
        asked.append(count)
        return read(file, count, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert store.get(KEYS.of(["a"])) == {}
    assert max(asked) < size + 2_048
    store.close()


def test_a_put_of_several_frames(path, monkeypatch):
    """Each answer keeps its revision, and is found before and after the store is opened again."""
    monkeypatch.setattr(journal, "_FRAME_ANSWERS", 20)
    texts = [f"text {i}" for i in range(90)]
    store = ResponseStore(path)
    store.put([entry(text, revision="r1") for text in texts[:55]] + [
        entry(text, revision="r2") for text in texts[55:]
    ])  # fmt: skip
    assert path.read_bytes().count(b"CLR2") == 3 + 2
    for opened in (store, ResponseStore(path)):
        found = opened.get(KEYS.of(texts))
        assert [found[i].answer[0] for i in range(90)] == [entry(text)[1][0][0] for text in texts]
        assert [found[i].revision for i in range(90)] == ["r1"] * 55 + ["r2"] * 35
        opened.close()


def test_only_the_newest_answers_are_read(path, small_segments, monkeypatch):
    """An answer that was stored again lies in an older segment too."""
    texts = [f"text {i}" for i in range(2_000)]
    store = ResponseStore(path)
    for revision in ("r1", "r2"):
        for start in range(0, 2_000, 50):
            store.put([entry(text, revision=revision) for text in texts[start : start + 50]])
    blocks, read = [], ResponseStore._read_block

    def read_block(self, begin):
        blocks.append(begin)
        return read(self, begin)

    monkeypatch.setattr(ResponseStore, "_read_block", read_block)
    found = store.get(KEYS.of(texts))
    assert {known.revision for known in found.values()} == {"r2"}
    assert len(blocks) == len(set(blocks)) == 2_000 // 50 * 4
    store.close()


def test_a_large_store_is_read_where_nothing_can_be_written(path, small_segments, monkeypatch):
    """Its index goes where temporary files go: its answers would be paid for again."""
    texts = [f"text {i}" for i in range(2_000)]
    store = ResponseStore(path)
    store.put([entry(text) for text in texts])
    store.close()
    access, make, made = os.access, index.tempfile.TemporaryFile, []

    def temporary_file(**where):
        made.append(where["dir"])
        return make(**where)

    monkeypatch.setattr(index.tempfile, "TemporaryFile", temporary_file)
    monkeypatch.setattr(
        os, "access", lambda at, mode, **more: at != path.parent and access(at, mode, **more)
    )
    store = ResponseStore(path, read_only=True)
    assert len(store.get(KEYS.of(texts))) == 2_000
    assert made
    assert set(made) == {None}
    store.close()


def _descriptors():
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_many_answers_survive_in_segments(path, small_segments):
    """Large segments keep files open, without a name, and no longer than the store is."""
    open_before = _descriptors()
    store = ResponseStore(path)
    texts = [f"text {i}" for i in range(2000)]
    for start in range(0, 2000, 50):
        store.put([entry(text) for text in texts[start : start + 50]])
    assert len(store.get(KEYS.of(texts))) == 2000
    assert store.get(KEYS.of([f"other {i}" for i in range(2000)])) == {}
    assert len(_descriptors() - open_before) > 2
    assert list(path.parent.iterdir()) == [path]
    store.close()
    assert _descriptors() <= open_before
    assert known(path, texts) == {text: entry(text)[1][0] for text in texts}
