"""The log under two writers, lost answers, damage and older versions; on every kind of storage."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OutputBusy, ResumeRefused, StoppedEarly
from pipeline.store import LocalStore, PartRecord, RunRecord, RunState, open_ranges
from pipeline.store import log as log_module
from pipeline.store.beat import BeatLease
from pipeline.store.disk import DiskObjects
from pipeline.store.log import Log
from pipeline.store.records import RunLog
from pipeline.store.runstore import RunStore
from tests.store.memory_store import MemoryObjects, MemoryStore, Refusing

RUN = RunRecord(software="classify-pipeline 1", settings={"text": "é"}, input={"rows": 30})
FACTS = {"rows": 30, "errors": 2, "labels": {"näh": 28}, "model_revision": "r"}


def _part(number):
    return PartRecord(
        first_row=10 * number, rows=10, file=f"part-{number}.parquet", size_bytes=100,
        sha256="0" * 64, errors=number, revision=None, labels={"näh": 10 - number},
    )  # fmt: skip


@pytest.fixture(params=["disk", "memory"])
def objects(request, tmp_path):
    return DiskObjects(tmp_path) if request.param == "disk" else MemoryObjects()


def _opened(objects):
    log = RunLog(objects)
    log.load()
    return log


@pytest.fixture
def written(objects):
    """A log of a run with three parts: four entries."""
    log = _opened(objects)
    log.begin(RUN)
    for number in range(3):
        log.add_part(_part(number))
    return log


def _contents(objects):
    return {name: objects.get(name) for name in objects.list("log/")}


def _name(number):
    return f"log/{number:08d}.json"


def test_reads_back_what_was_written(objects, written):
    state = RunLog(objects).load()
    assert state == written.state
    assert (state.run, state.parts) == (RUN, (_part(0), _part(1), _part(2)))
    assert (state.rows, state.errors, state.labels) == (30, 3, {"näh": 27})
    assert state.complete is None


def test_an_empty_log_is_of_no_run(objects):
    assert RunLog(objects).load() is None


def test_entries_are_readable_by_people(objects, written):
    entries = [json.loads(content) for content in _contents(objects).values()]
    assert [each["entry"]["seq"] for each in entries] == [1, 2, 3, 4]
    assert [each["entry"]["records"][0]["kind"] for each in entries] == [
        "run", "range", "range", "range",
    ]  # fmt: skip
    assert [each["entry"]["before"] for each in entries[1:]] == [
        each["sha256"] for each in entries[:-1]
    ]


def test_a_state_is_never_changed_in_place(objects):
    log = _opened(objects)
    log.begin(RUN)
    before = log.state
    log.add_cache("/answers")
    log.set_revision("r1")
    log.add_part(_part(0))
    assert before == RunState(RUN)
    assert log.state == RunState(RUN, ("/answers",), "r1", (_part(0),))


def test_a_log_that_goes_on_after_it_was_read_loses_nothing(objects, written):
    """What an earlier attempt committed stays committed, whatever this one appends."""
    again = _opened(objects)
    again.forget_parts([_part(1)])
    again.add_part(_part(1))
    assert RunLog(objects).load().parts == (_part(0), _part(1), _part(2))


def test_the_first_revision_that_is_told_is_recorded(objects, written):
    written.set_revision(None)
    assert written.state.revision is None
    written.set_revision("r1")
    written.set_revision("r2")
    assert RunLog(objects).load().revision == "r1"
    written.begin_again("r3")
    written.add_part(_part(0), "r4")
    found = RunLog(objects).load()
    assert (found.revision, found.parts) == ("r3", (_part(0),))


def test_a_part_and_the_revision_are_one_entry(objects):
    log = _opened(objects)
    log.begin(RUN)
    log.add_part(_part(0), "r1")
    assert len(objects.list("log/")) == 2
    assert RunLog(objects).load() == RunState(RUN, (), "r1", (_part(0),))


def test_parts_are_recorded_in_any_order(objects):
    log = _opened(objects)
    log.begin(RUN)
    for number, rows in ((2, 10), (0, 20), (1, 30)):
        log.add_part(_part(number))
        assert RunLog(objects).load().rows == log.run.rows == rows
    assert RunLog(objects).load().parts == (_part(0), _part(1), _part(2))


@pytest.mark.parametrize("first_row", [0, 1, 19, 29])
def test_a_row_is_recorded_once(objects, first_row):
    log = _opened(objects)
    log.begin(RUN)
    log.add_part(_part(0))
    log.add_part(_part(2))
    with pytest.raises(AssertionError, match="once"):
        log.add_part(replace(_part(1), first_row=first_row))
    assert len(objects.list("log/")) == 3


PARTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=9)


@given(parts=PARTS, after=st.integers(0, 5))
def test_open_is_what_no_part_covers(parts, after):
    """Parts are given as how many rows are between them, and how many they have."""
    made, row = [], 0
    for between, rows in parts:
        made.append(replace(_part(0), first_row=row + between, rows=rows))
        row += between + rows
    found = open_ranges(made, row + after)
    covered = {row for part in made for row in range(part.first_row, part.end_row)}
    rows = [row for each in found for row in each]
    assert rows == sorted(set(range(row + after)) - covered)
    # Nothing is empty, and no two could be one.
    assert all(found)
    assert all(one.stop < other.start for one, other in pairwise(found))


def test_complete_keeps_the_facts_and_one_entry(objects, written):
    written.set_assembled([[9, "a" * 64]])
    written.set_complete(FACTS)
    written.entries.shorten()
    assert objects.list("log/") == [_name(6)]
    state = RunLog(objects).load()
    assert state == RunState(RUN, assembled=[[9, "a" * 64]], complete=FACTS)
    assert (state.rows, state.errors, state.labels) == (30, 2, {"näh": 28})
    assert state.latest_revision == "r"


def test_a_retry_keeps_what_was_recorded_of_the_output(objects, written):
    """Read back at every step; dropped, the state is what it was before."""
    written.set_assembled([[9, "a" * 64]])
    written.set_complete(FACTS)
    complete = written.state
    written.begin_retry()
    written.add_part(_part(0))
    written.set_assembled([[8, "b" * 64]])
    for state in (written.state, RunLog(objects).load()):
        assert state == RunState(
            RUN, parts=(_part(0),), assembled=[[8, "b" * 64]], retry_of=complete
        )
        assert (state.retried_identity, state.latest_revision) == ([[9, "a" * 64]], "r")
    written.forget_parts([_part(0)])
    assert (written.run.rows, written.run.assembled) == (0, None)
    assert RunLog(objects).load().retried_identity == [[9, "a" * 64]]
    written.drop_retry()
    assert RunLog(objects).load() == written.state == complete


def test_numbers_are_never_used_again(objects, written):
    """A run that is thrown away leaves its numbers behind."""
    written.abandon()
    written.entries.shorten()
    assert RunLog(objects).load() is None
    again = _opened(objects)
    again.begin(RUN)
    again.entries.shorten()
    assert objects.list("log/") == [_name(6)]
    assert RunLog(objects).load() == RunState(RUN)


@pytest.mark.fault(27)
@pytest.mark.parametrize("kept", range(2**5))
def test_whatever_is_left_below_a_snapshot_counts_for_nothing(objects, written, kept):
    """A kill, or a power cut, may leave any of the entries that were being deleted."""
    written.set_complete(FACTS)
    for number in range(1, 5):
        if not kept >> number & 1:
            objects.delete(_name(number))
    assert RunLog(objects).load() == written.state
    again = _opened(objects)
    again.entries.shorten()
    assert objects.list("log/") == [_name(5)]
    again.begin_retry()
    assert RunLog(objects).load().retry_of == written.state


# --- entries that hold those before them


@pytest.fixture
def joined_soon(monkeypatch):
    monkeypatch.setattr(log_module, "MOST_LOOSE", 4)


@pytest.mark.parametrize("refuses", [False, True])
@pytest.mark.parametrize("attempts", [1, 7])
def test_entries_are_joined_and_read_back_at_every_step(objects, joined_soon, refuses, attempts):
    """Also if nothing that counts no more can be deleted, and whoever goes on."""
    place = Refusing(objects) if refuses else objects
    log = _opened(place)
    log.begin(RUN)
    for number in range(42):
        if number % 6 == 0 and attempts > 1:
            log = _opened(place)
        log.add_part(_part(number), "r1")
        assert RunLog(objects).load() == log.state
    counting = 1 + 42 // 5 + 42 % 5
    # Each attempt leaves alone what it found, and its own first entry.
    left = 43 if refuses else counting if attempts == 1 else 28
    assert len(objects.list("log/")) == left
    log.entries = _opened(objects).entries
    log.entries.shorten()
    assert len(objects.list("log/")) == counting
    assert RunLog(objects).load().rows == 420
    log.set_complete(FACTS)
    log.entries.shorten()
    assert objects.list("log/") == [_name(44)]


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", [1, 4, 5, 12])
def test_joining_leaves_what_fences_a_frozen_writer(objects, joined_soon, before, after):
    frozen = _opened(objects)
    frozen.begin(RUN)
    for number in range(before):
        frozen.add_part(_part(number))
    other = _opened(objects)
    other.take_over()
    for number in range(before, before + after):
        other.add_part(_part(number))
    with pytest.raises(OutputBusy):
        frozen.add_part(_part(before))
    assert RunLog(objects).load() == other.state


@pytest.mark.fault(27)
@pytest.mark.parametrize("kept", range(2**4))
def test_whatever_is_left_of_joined_entries_counts_for_nothing(objects, joined_soon, kept):
    """A kill, or a power cut, may leave any of the entries that were being deleted."""
    log = _opened(Refusing(objects))
    log.begin(RUN)
    for number in range(5):
        log.add_part(_part(number))
    for number in range(4):
        if not kept >> number & 1:
            objects.delete(_name(2 + number))
    assert RunLog(objects).load() == log.state
    again = _opened(objects)
    again.add_part(_part(5))
    again.entries.shorten()
    assert objects.list("log/") == [_name(1), _name(6), _name(7)]
    assert RunLog(objects).load() == again.state


@pytest.mark.fault(27)
@pytest.mark.parametrize("number", [1, 6, 11, 12])
def test_what_is_missing_between_joined_entries_is_refused(objects, joined_soon, number):
    log = _opened(objects)
    log.begin(RUN)
    for part in range(12):
        log.add_part(_part(part))
    assert objects.list("log/") == [_name(each) for each in (1, 6, 11, 12, 13)]
    content = objects.get(_name(number))
    objects.delete(_name(number))
    _check_refused(objects, _name(number), "is missing")
    stranger = MemoryObjects()
    other = _opened(stranger)
    other.begin(replace(RUN, software="other"))
    for part in range(12):
        other.add_part(_part(part))
    objects.put(_name(number), stranger.get(_name(number)))
    _check_refused(objects, _name(number), "does not follow")
    objects.put(_name(number), content)
    assert RunLog(objects).load() == log.state


@pytest.mark.fault(10)
def test_a_writer_that_was_frozen_before_it_joins_is_fenced(objects, joined_soon):
    """It deletes nothing: what it would have held is still there, and what came after, too."""
    frozen = _opened(objects)
    frozen.begin(RUN)
    for number in range(4):
        frozen.add_part(_part(number))
    other = _opened(objects)
    other.take_over()
    before = _contents(objects)
    with pytest.raises(OutputBusy, match="took this output over"):
        frozen.add_part(_part(4))
    assert _contents(objects) == before
    assert RunLog(objects).load().rows == 40


@pytest.mark.fault(27)
def test_what_counts_for_nothing_is_not_read(objects, joined_soon):
    """A leftover of entries that were joined may be out of reach; the log is whole without it."""

    class Unreadable(Refusing):
        def get(self, name):
            if name in {_name(number) for number in range(2, 6)}:
                raise StoppedEarly("out of reach", "")
            return objects.get(name)

    log = _opened(Refusing(objects))
    log.begin(RUN)
    for number in range(5):
        log.add_part(_part(number))
    assert objects.list("log/") == [_name(number) for number in range(1, 7)]
    assert RunLog(Unreadable(objects)).load() == log.state


class Counting(Refusing):
    """Storage that deletes nothing, and knows what was read of it."""

    def __init__(self, objects):
        super().__init__(objects)
        self.read = []

    def get(self, name):
        self.read.append(name)
        return self._objects.get(name)


def test_few_entries_are_read_that_count_for_nothing(objects):
    """Each takes a request. A snapshot is enough, and some are asked for ahead of an answer."""
    place = Counting(objects)
    log = _opened(place)
    log.begin(RUN)
    for number in range(100):
        log.add_part(_part(number))
    log.set_complete(FACTS)
    place.read.clear()
    assert RunLog(place).load() == log.state
    assert place.read == [_name(102)]
    log.begin_retry()
    log.add_part(_part(0))
    place.read.clear()
    assert RunLog(place).load() == log.state
    assert len(place.read) <= 3 + 4


# --- two writers


@pytest.mark.fault(10)
@pytest.mark.parametrize("ended", [1, 2])
def test_a_writer_that_wakes_after_others_were_complete_publishes_nothing(objects, ended):
    """Its next number is free again, so its entries are created; they count for nothing."""
    frozen = _opened(objects)
    frozen.begin(RUN)
    frozen.add_part(_part(0))
    for _ in range(ended):
        other = _opened(objects)
        other.begin(RUN)
        for number in range(4):
            other.add_part(_part(number))
        other.set_complete(FACTS)
        other.entries.shorten()
    before = _contents(objects)
    frozen.add_part(_part(1))
    with pytest.raises(OutputBusy, match="entries after"):
        frozen.set_assembled([[1, "0" * 64]])
    with pytest.raises(OutputBusy, match="entries after"):
        frozen.set_complete(FACTS)
    assert before.items() <= _contents(objects).items()
    assert RunLog(objects).load() == other.state


@pytest.mark.fault(10)
def test_of_two_writers_one_is_fenced(objects, written):
    """The entry of the other one stands; what the loser wanted to record is not recorded."""
    other = _opened(objects)
    other.add_cache("/of the other")
    before = written.state
    for _ in range(2):
        with pytest.raises(OutputBusy, match=r"took this output over .*00000005\.json"):
            written.add_cache("/of the first")
        assert written.state == before
    other.add_cache("/once more")
    assert RunLog(objects).load().caches == ("/of the other", "/once more")


@pytest.mark.fault(10)
def test_writers_at_once(objects):
    """Each number has one winner; all that a winner was told is committed, and nothing else."""
    first = _opened(objects)
    first.begin(RUN)
    told, lock = [], threading.Lock()

    def work(writer):
        for turn in range(25):
            log = _opened(objects)
            try:
                log.add_cache(f"/{writer}/{turn}")
            except OutputBusy:
                continue
            with lock:
                told.append(f"/{writer}/{turn}")

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, range(3)))
    found = RunLog(objects).load().caches
    assert sorted(found) == sorted(told)
    assert len(objects.list("log/")) == 1 + len(told)


@pytest.mark.fault(10)
def test_processes_at_once(tmp_path):
    """The same between processes on a disk, where no lock is held."""
    _opened(DiskObjects(tmp_path)).begin(RUN)
    code = (
        "import sys; from pathlib import Path\n"
        "from pipeline.errors import OutputBusy\n"
        "from pipeline.store.disk import DiskObjects\n"
        "from pipeline.store.records import RunLog\n"
        "sys.stdin.readline()\n"
        "for turn in range(30):\n"
        "    log = RunLog(DiskObjects(Path(sys.argv[1])))\n"
        "    log.load()\n"
        "    try: log.add_cache(f'/{sys.argv[2]}/{turn}')\n"
        "    except OutputBusy: continue\n"
        "    print(f'/{sys.argv[2]}/{turn}')\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for writer in writers:
        writer.stdin.write("\n")
        writer.stdin.flush()
    told = [line for writer in writers for line in writer.communicate()[0].split()]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(RunLog(DiskObjects(tmp_path)).load().caches) == sorted(told)
    assert {len(os.fsdecode(path.name)) for path in (tmp_path / "log").iterdir()} == {13}


class _Unsure:
    """A storage far away: `create` works, and says of some that the name was taken."""

    def __init__(self, objects, answers):
        self._objects, self._answers = objects, answers

    def create(self, name, content):
        act, told = self._answers.pop(0) if self._answers else (True, None)
        done = self._objects.create(name, content) if act else False
        return done if told is None else told

    def __getattr__(self, name):
        return getattr(self._objects, name)


@pytest.mark.fault(10)
def test_an_answer_that_was_lost_is_resolved_by_reading(objects, written):
    """The same bytes are ours, by an earlier try; if nothing is there, it is tried again."""
    log = _opened(_Unsure(objects, [(True, False), (False, False), (False, False)]))
    log.add_cache("/there already")
    log.add_cache("/there at last")
    assert RunLog(objects).load().caches == ("/there already", "/there at last")
    assert len(objects.list("log/")) == 6


def test_a_storage_that_contradicts_itself_stops_the_run(objects, written):
    log = _opened(_Unsure(objects, [(False, False)] * 9))
    with pytest.raises(StoppedEarly, match="both that it is there and that it is not"):
        log.add_cache("/never")
    assert log.state == written.state


@pytest.mark.fault(6)
def test_a_disk_that_refuses_stops_the_run(tmp_path):
    log = _opened(DiskObjects(tmp_path))
    log.begin(RUN)
    (tmp_path / "log").rename(tmp_path / "gone")
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(StoppedEarly, match="cannot write"):
        log.add_part(_part(0))
    assert log.run.rows == 0


# --- damage


def _check_refused(objects, name, what):
    """The place is named, with what to do; nothing is deleted; --restart goes on from there."""
    before = _contents(objects)
    log = RunLog(objects)
    with pytest.raises(ResumeRefused, match=what) as refused:
        log.load()
    assert name in str(refused.value)
    assert "restart=True" in str(refused.value)
    assert log.state is None
    assert _contents(objects) == before


@pytest.mark.fault(27)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_missing_entry_is_refused(objects, written, number):
    objects.delete(_name(number))
    _check_refused(objects, _name(number), "is missing")


@pytest.mark.fault(27)
@pytest.mark.parametrize(("source", "target"), [(2, 3), (3, 2), (2, 5), (4, 5), (1, 5), (1, 3)])
def test_a_doubled_entry_is_refused(objects, written, source, target):
    objects.put(_name(target), objects.get(_name(source)))
    _check_refused(objects, _name(target), f"is a copy of entry {source}")


@pytest.mark.fault(27)
def test_entries_in_another_order_are_refused(objects, written):
    second, third = (objects.get(_name(number)) for number in (2, 3))
    objects.put(_name(2), third)
    objects.put(_name(3), second)
    _check_refused(objects, _name(3), "is a copy of entry 2")


@pytest.mark.fault(27)
def test_an_entry_of_another_log_is_refused(objects, written):
    """It is whole and has the right number, but does not follow the one before."""
    stranger = MemoryObjects()
    log = _opened(stranger)
    log.begin(RunRecord("other", {}, {}))
    for number in range(3):
        log.add_part(_part(number))
    objects.put(_name(4), stranger.get(_name(4)))
    _check_refused(objects, _name(4), "does not follow log/00000003.json")


@pytest.mark.fault(3)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_any_flipped_bit_is_refused(objects, written, number):
    """Also in the last entry: no kill does that, and no row is ever skipped."""
    content = objects.get(_name(number))
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        objects.put(_name(number), bytes(damaged))
        with pytest.raises(ResumeRefused, match=_name(number)):
            RunLog(objects).load()
    _check_refused(objects, _name(number), "is damaged")


@pytest.mark.fault(3)
@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_entry_cut_off_at_any_byte_is_refused(objects, written, number):
    content = objects.get(_name(number))
    for size in range(len(content)):
        objects.put(_name(number), content[:size])
        with pytest.raises(ResumeRefused, match=_name(number)):
            RunLog(objects).load()
    for tail in (b"\n", b"\0", b"{}"):
        objects.put(_name(number), content + tail)
        _check_refused(objects, _name(number), "is damaged")


@pytest.mark.fault(27)
def test_a_log_that_begins_no_run_is_refused(objects):
    log = _opened(objects)
    log.entries.append({"kind": "part"})
    _check_refused(objects, _name(1), "begins no run")


@pytest.mark.fault(27)
def test_a_directory_in_the_place_of_an_entry_is_named(tmp_path):
    log = _opened(DiskObjects(tmp_path))
    log.begin(RUN)
    log.add_part(_part(0))
    (tmp_path / _name(2)).unlink()
    (tmp_path / _name(2)).mkdir()
    with pytest.raises(ResumeRefused, match=r"00000002\.json cannot be read"):
        RunLog(DiskObjects(tmp_path)).load()


@pytest.mark.parametrize("name", ["notes.txt", "00000005.json~", "5.json", "00000005.json.0a.tmp"])
def test_what_is_no_entry_is_passed_over(objects, written, name):
    objects.put(f"log/{name}", b"somebody's")
    assert RunLog(objects).load() == written.state
    written.set_complete(FACTS)
    written.entries.shorten()
    assert objects.list("log/") == sorted([f"log/{name}", _name(5)])


@pytest.mark.fault(27)
def test_restart_goes_on_above_what_cannot_be_read(objects, written):
    """Not one number is used twice, and the new run owes nothing to the damaged entries."""
    objects.put(_name(4), b"damaged")
    log = RunLog(objects)
    with pytest.raises(ResumeRefused):
        log.load()
    log.abandon()
    log.begin(RUN)
    assert RunLog(objects).load() == RunState(RUN)
    assert objects.list("log/")[-1] == _name(6)


# --- versions


def test_a_newer_format_is_refused(objects):
    _opened(objects).begin(RunRecord(software="later 9", settings={}, input={}, format=2))
    log = RunLog(objects)
    log.entries.read()
    log.entries.append(
        {"kind": "run", "software": "later 9", "settings": {}, "plan": {}, "format": 3},
        snapshot=True,
    )
    with pytest.raises(ResumeRefused, match=r"another version of this software \(later 9\)"):
        RunLog(objects).load()


def test_a_record_of_a_kind_that_is_not_known_is_refused(objects, written):
    """It belongs to a newer version, and what it says must not be passed over."""
    written.entries.append({"kind": "new"})
    with pytest.raises(ResumeRefused, match=r"another version .*classify-pipeline 1"):
        RunLog(objects).load()


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "out.parquet")
    store.lease.acquire(create=True)
    return store


@pytest.mark.fault(10)
@pytest.mark.parametrize("does", ["clear", "repair"])
def test_a_writer_that_wakes_after_others_were_complete_deletes_nothing(store, does):
    """It has read a run, and was frozen before it tidied up or went on."""
    store.load()
    store.begin(RUN)
    shared = store._objects, BeatLease(store._objects), store.journal, store.events, store.output
    frozen = RunStore(*shared)
    frozen.load()
    store.log.set_complete(FACTS)
    store.begin(RUN)
    store.journal.open()
    store.journal.append(b"paid for")
    store.journal.close()
    name, *_ = store.put_part(0, b"of the other run", ".parquet")
    with pytest.raises(OutputBusy, match="entries after"):
        getattr(frozen, does)()
    assert store.holds_answers()
    assert store._objects.get(f"parts/{name}") == b"of the other run"


OLD = b'0 {"kind":"run","software":"classify-pipeline 0.1.0"}\n'
OLD_COMPLETE = OLD + b'0 {"kind":"complete","rows":3}\n'
OLD_RETRY = OLD_COMPLETE + b'0 {"kind":"retry"}\n'


@pytest.mark.parametrize("manifest", [OLD, OLD_COMPLETE, OLD_RETRY])
def test_a_run_of_a_previous_version_is_refused(store, manifest):
    """It is named with what to do, and left as it is until it is thrown away."""
    objects = store.log.entries._objects
    objects.put("manifest.jsonl", manifest)
    complete = manifest == OLD_COMPLETE
    with pytest.raises(ResumeRefused, match="previous version") as refused:
        store.load()
    advice = "overwrite=True" if complete else "Finish it with the version that began it"
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)
    if complete:
        assert store.load(overwrite=True) is None
    else:
        with pytest.raises(ResumeRefused, match="restart=True"):
            store.load(overwrite=True)
    assert objects.get("manifest.jsonl") == manifest
    assert store.load(restart=True) is None
    objects.put("parts/part-000000000000.parquet", b"")
    objects.put("parts/part-000000004096.parquet.tmp", b"")
    store.begin(RUN)
    assert objects.get("manifest.jsonl") is None
    assert objects.list("parts/") == []
    assert store.load() == RunState(RUN)


def test_a_store_begins_with_whatever_else_lies_there(store):
    """Nothing is deleted that is not provably a run's."""
    objects = store.log.entries._objects
    others = ["notes.txt", "parts/mine.parquet", "parts/part-00000.parquet", "x.tmp"]
    for name in others:
        objects.put(name, b"somebody's work")
    store.load()
    store.begin(RUN)
    store.log.abandon()
    store.begin(RUN)
    store.repair()
    assert [objects.get(name) for name in others] == [b"somebody's work"] * len(others)


def test_after_a_failed_append_the_failure_is_told_again(tmp_path, monkeypatch):
    """Whether the entry is there is not known; another one would look like a rival's."""
    objects = DiskObjects(tmp_path)
    log = Log(objects)
    log.read()
    log.append({"kind": "one"}, snapshot=True)
    create = objects.create

    def lost(name, content):
        create(name, content)
        raise StoppedEarly("the answer was lost")

    monkeypatch.setattr(objects, "create", lost)
    for _ in range(2):
        with pytest.raises(StoppedEarly, match="the answer was lost"):
            log.append({"kind": "two"})
    monkeypatch.undo()
    assert [entry.records[0]["kind"] for entry in log.read()] == ["one", "two"]
    log.append({"kind": "three"})
