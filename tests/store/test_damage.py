"""Damaged records are refused or passed over, never believed, and nothing is deleted for them."""

import hashlib
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ResumeRefused, StoppedEarly
from pipeline.responses import Keys, ResponseStore
from pipeline.store import LocalStore, PartRecord, RunRecord
from pipeline.store.files import DiskFile
from pipeline.store.records import RunLog
from tests.store.memory_store import MemoryObjects, MemoryStore

RUN = RunRecord("classify-pipeline 1", {"text": "é"}, {"rows": 30})
FACTS = {"rows": 30, "errors": 0, "labels": {"a": 30}, "model_revision": "r"}
KEYS = Keys({})


def _entry(number):
    return f"log/{number:08d}.json"


def _flipped(content, bit):
    bit %= 8 * len(content)
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


# --- what a damaged log does to the rest of a store


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    """A store with a run of three parts and an answer; the log has four entries."""
    store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "out.parquet")
    store.lease.acquire(create=True)
    store.load()
    store.begin(RUN)
    answers = ResponseStore(store.journal)
    answers.put([(KEYS.of(["a"]), [(("a", 1.0),)], None)])
    answers.close()
    for number in range(3):
        content = b"part %d" % number
        name, digest, _ = store.put_part(10 * number, content, ".arrows")
        store.log.add_part(PartRecord(10 * number, 10, name, len(content), digest, 0, None))
    yield store
    store.lease.release()


def _swapped(objects):
    second, third = objects.get(_entry(2)), objects.get(_entry(3))
    objects.put(_entry(2), third)
    objects.put(_entry(3), second)


def _without(*numbers):
    return lambda objects: [objects.delete(_entry(number)) for number in numbers]


def _with(number, change):
    return lambda objects: objects.put(_entry(number), change(objects.get(_entry(number))))


DAMAGE = {
    "swapped": _swapped,
    "doubled at the end": lambda objects: objects.put(_entry(5), objects.get(_entry(4))),
    "doubled in the middle": lambda objects: objects.put(_entry(3), objects.get(_entry(2))),
    "first missing": _without(1),
    "one missing": _without(3),
    "all but the head missing": _without(1, 2, 3),
    "all missing": _without(1, 2, 3, 4),
    "first emptied": _with(1, lambda _: b""),
    "head emptied": _with(4, lambda _: b""),
    "a bit of the first flipped": _with(1, lambda content: _flipped(content, 900)),
    "a bit of the head flipped": _with(4, lambda content: _flipped(content, 900)),
    "cut off": _with(2, lambda content: content[:-2]),
}


def _rest(store):
    parts = {name: store._objects.get(name) for name in store._objects.list("parts/")}
    with store.journal.reader() as journal:
        return parts, journal.read()


@pytest.mark.fault(27)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_log_is_refused_and_nothing_is_deleted(store, damage):
    before = _rest(store)
    DAMAGE[damage](store._objects)
    log = {name: store._objects.get(name) for name in store._objects.list("log/")}
    for _ in range(2):
        with pytest.raises(ResumeRefused) as refused:
            store.load()
        assert "start over with `restart=True`" in str(refused.value)
        assert store.place in str(refused.value)
    assert _rest(store) == before
    assert {name: store._objects.get(name) for name in store._objects.list("log/")} == log
    # The way out.
    assert store.load(restart=True) is None
    store.begin(RUN)
    assert store.load().run == RUN


@pytest.mark.fault(27)
@pytest.mark.parametrize("rows", [(0, 5), (0, 0), (5, 0), (0, 20, 29)])
def test_parts_that_overlap_are_refused(rows):
    """Whole entries by the right writer, in the right order: there only a bug does that."""
    objects = MemoryObjects()
    log = RunLog(objects)
    log.load()
    log.begin(RUN)
    for first_row in rows:
        part = {"kind": "range", "first_row": first_row, "rows": 10, "file": "f", "size_bytes": 1}
        log.entries.append({**part, "sha256": "0", "errors": 0, "revision": None})
    again = RunLog(objects)
    with pytest.raises(ResumeRefused, match="overlap"):
        again.load()
    assert again.state is None


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "range", "colour": 1},
        {"kind": "part", "first_row": 0, "rows": 9},  # before parts were ranges
        {"kind": "cache"},
        {"a": 1},
    ],
)
def test_a_record_that_cannot_be_read_is_of_another_version(record):
    objects = MemoryObjects()
    log = RunLog(objects)
    log.load()
    log.begin(RUN)
    log.entries.append(record)
    with pytest.raises(ResumeRefused, match="another version"):
        RunLog(objects).load()


@pytest.mark.fault(27)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_with_a_damaged_log_sends_nothing(
    label, server, write_csv, tmp_path, small_chunks, damage
):
    source, output = write_csv("in.csv", [f"text {i}" for i in range(64)]), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=56, batch_size=1, concurrency=1)
    store = LocalStore(output)
    assert len(store._objects.list("log/")) == 4
    before = _rest(store)
    server.reset()
    DAMAGE[damage](store._objects)
    with pytest.raises(ResumeRefused) as refused:
        label(source, output)
    assert refused.value.exit_code == 2
    assert server.requests == []
    assert _rest(store) == before
    assert label(source, output, restart=True)["labelled"] == 64


# --- any damage


def _history():
    """A log with a record of each kind, and the state after each entry."""
    log = RunLog(MemoryObjects())
    log.load()
    part = [PartRecord(10 * i, 10, f"{i}", 1, "0" * 64, 0, "r", {"a": 10}) for i in range(3)]
    steps = [
        lambda: log.begin(RUN), lambda: log.add_cache("/c"), lambda: log.add_part(part[0], "r"),
        lambda: log.add_part(part[2]), lambda: log.forget_parts(part[:1]),
        lambda: log.add_part(part[1]), lambda: log.begin_again("s"),
        *(lambda i=i: log.add_part(part[i]) for i in range(3)),
        lambda: log.set_assembled([[9, "a" * 64]]), lambda: log.set_complete(FACTS),
        log.begin_retry, lambda: log.add_part(part[0]), log.drop_retry,
        log.abandon, lambda: log.begin(RUN), lambda: log.add_part(part[0]),
    ]  # fmt: skip
    states = [None]
    for step in steps:
        step()
        states.append(log.state)
    return log.entries._objects._objects, states


ENTRIES, STATES = _history()
numbers = st.integers(1, len(ENTRIES))
LOG_DAMAGE = st.one_of(
    st.tuples(st.just("flip"), numbers, st.integers(0, 1 << 16)),
    st.tuples(st.just("cut"), numbers, st.integers(0, 1 << 9)),
    st.tuples(st.just("extend"), numbers, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("swap"), numbers, numbers),
    st.tuples(st.just("copy"), numbers, st.integers(1, len(ENTRIES) + 3)),
    st.tuples(st.just("delete"), numbers, st.just(0)),
    st.tuples(st.just("delete from"), numbers, st.just(0)),
)


@pytest.mark.fault(27)
@settings(deadline=None)
@given(written=numbers, damage=st.lists(LOG_DAMAGE, min_size=1, max_size=4))
def test_any_damage_to_a_log_gives_an_earlier_state_or_is_refused(written, damage):
    objects = MemoryObjects()
    found = objects._objects
    found.update({name: ENTRIES[name] for name in sorted(ENTRIES)[:written]})
    for kind, number, how in damage:
        content = found.get(_entry(number), b"")
        if kind == "flip" and content:
            found[_entry(number)] = _flipped(content, how)
        elif kind == "cut":
            found[_entry(number)] = content[:how]
        elif kind == "extend":
            found[_entry(number)] = content + how
        elif kind == "swap":
            other = found.get(_entry(how), b"")
            found[_entry(number)], found[_entry(how)] = other, content
        elif kind == "copy":
            found[_entry(how)] = content
        else:
            for gone in range(number, number + 1 if kind == "delete" else len(ENTRIES) + 4):
                found.pop(_entry(gone), None)
    before = dict(found)
    log = RunLog(objects)
    try:
        state = log.load()
    except ResumeRefused:
        assert log.state is None
    else:
        head = max((int(name[4:12]) for name in found), default=0)
        assert head <= written
        assert state == STATES[head]
    assert found == before


def _journal():
    """The frames of a journal with two answers each, and the texts in each."""
    with tempfile.TemporaryDirectory() as place:
        path, sizes, texts = Path(place) / "answers", [0], []
        store = ResponseStore(path)
        for number in range(5):
            texts.append([f"text {number} {i}" for i in range(2)])
            store.put([(KEYS.of(texts[-1]), [_answer(text) for text in texts[-1]], f"r{number}")])
            sizes.append(path.stat().st_size)
        store.close()
        content = path.read_bytes()
    return [content[a:b] for a, b in itertools.pairwise(sizes)], texts


def _answer(text):
    return ((hashlib.sha256(text.encode()).hexdigest()[:5], len(text) / 7),)


FRAMES, FRAME_TEXTS = _journal()
ALL_TEXTS = [text for some in FRAME_TEXTS for text in some]
LONGEST = max(map(len, FRAMES))
HEADER_BYTES = 16
PIECES = st.one_of(
    st.integers(0, len(FRAMES) - 1),  # a whole frame
    st.tuples(st.integers(0, len(FRAMES) - 1), st.integers(0, 8 * LONGEST)),  # a flipped bit
    st.tuples(  # a part of a frame
        st.integers(0, len(FRAMES) - 1), st.integers(0, LONGEST), st.integers(0, LONGEST)
    ),
    st.binary(max_size=40),
    st.integers(1, 99).map(bytes),
)


@pytest.mark.fault(3)
@settings(deadline=None)
@given(pieces=st.lists(PIECES, max_size=8), is_ours=st.booleans())
def test_any_damage_to_a_journal_costs_what_it_hit_and_nothing_else(pieces, is_ours):
    """Whole frames are found, whatever lies between them; nothing else is, and none is cut off."""
    content, whole = b"", set()
    for piece in pieces:
        if isinstance(piece, int):
            whole.add(piece)
            content += FRAMES[piece]
        elif isinstance(piece, bytes):
            content += piece
        elif len(piece) == 2:
            content += _flipped(FRAMES[piece[0]], piece[1])
        else:
            number, begin, end = piece
            content += FRAMES[number][begin:end]
    whole |= {number for number, frame in enumerate(FRAMES) if frame in content}
    expected = {text for number in whole for text in FRAME_TEXTS[number]}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "answers"
        path.write_bytes(content)
        file = DiskFile(path, is_ours=is_ours)
        try:
            store = ResponseStore(file)
        except StoppedEarly:
            assert not is_ours
            assert not whole
            assert path.read_bytes() == content
            return
        found = store.get(KEYS.of(ALL_TEXTS))
        assert {ALL_TEXTS[i]: known.answer for i, known in found.items()} == {
            text: _answer(text) for text in expected
        }
        kept = path.read_bytes()
        assert content.startswith(kept)
        assert not any(frame in content[len(kept) :] for frame in FRAMES)
        dropped = content[len(kept) :]
        assert len(dropped) < HEADER_BYTES or any(
            dropped[:HEADER_BYTES] == frame[:HEADER_BYTES] and len(dropped) < len(frame)
            for frame in FRAMES
        )
        # What is put from now on is found after it.
        store.put([(KEYS.of(["new"]), [_answer("new")], None)])
        store.close()
        again = ResponseStore(DiskFile(path, is_ours=is_ours))
        assert len(again.get(KEYS.of([*ALL_TEXTS, "new"]))) == len(expected) + 1
        again.close()
