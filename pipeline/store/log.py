"""The log: numbered entries of records; it, not the listing of anything else, is the truth.

Entry 12 is the object `log/00000012.json`:

    {"sha256": "9f2c...", "entry": {"seq": 12, "since": 12, "before": "77ab...", "owner": "c41d...",
     "snapshot": false, "records": [{"kind": "part", ...}]}}

`sha256` is of the bytes of `entry`, `before` is the `sha256` of the entry before `since`, and
`owner` is a nonce of the writer, so that no two writers make the same bytes. An entry is created
only if its number is free and is never changed, so of two writers one wins, and the other learns
that it lost the output.

Once MOST_LOOSE entries lie by themselves, the next one holds their records too, from entry `since`
on: a run of a billion rows has some 250,000 entries, and each takes a request to read. Of those
that it holds, the writer deletes its own, but for its first one, which fences the writer before. A
snapshot carries all the state that follows from what came before it, so older entries count for
nothing and are deleted, too. Reading goes from the last entry back to the last snapshot; whatever
is missing, damaged or out of order on that way is refused, and nothing is deleted.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice, repeat, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.errors import ResumeRefused, StoppedEarly
from pipeline.store.holder import taken_over
from pipeline.store.objects import claim
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from pipeline.store.objects import Objects

    Record = dict[str, Any]

FOLDER = "log/"
_NAME = re.compile(r"log/(\d{8,})\.json")
_WRAPPED = re.compile(rb'\{"sha256":"([0-9a-f]{64})","entry":(.*)\}\n', re.DOTALL)
# An entry that was listed may be gone when it is read: a writer has put a snapshot above it.
_READ_ATTEMPTS = 5
# About the root of how many a long run has: as many are read that hold others as that do not.
MOST_LOOSE = 500
# A request takes tens of milliseconds.
_READERS = 16


class Entry(NamedTuple):
    """An entry, whose records are those of the entries `since` to `number`; `digest` is its own."""

    number: int
    since: int
    digest: str
    before: str
    snapshot: bool
    records: list[Record]

    @property
    def name(self) -> str:
        """Return the name of its object."""
        return _name(self.number)

    @property
    def is_loose(self) -> bool:
        """True if the records of this entry are its own alone, and follow on others."""
        return self.since == self.number and not self.snapshot


class Log:
    """The log of one run store; it is read before it is written."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.place = f"{objects.place}/{FOLDER}"  # for messages
        self._owner, self._digest = secrets.token_hex(8), ""
        self._head = self._missing = 0
        self._fence = 1  # the number of the first entry that this writer makes
        self._kept: set[int] = set()  # the entries that count, and of these the loose ones
        self._loose: list[Entry] = []
        self._failed: StoppedEarly | None = None

    def exists(self) -> bool:
        """Return True if there is an entry now."""
        return bool(self._numbers())

    def read(self) -> list[Entry]:
        """Read the last snapshot and the entries after it; empty if there are none.

        Raises ResumeRefused, naming the entry that cannot be believed.
        """
        self._owner, self._failed = secrets.token_hex(8), None
        self._kept, self._loose = set(), []
        for _ in range(_READ_ATTEMPTS):
            numbers = sorted(self._numbers(), reverse=True)
            self._head, self._digest = max(numbers, default=0), ""
            self._fence = self._head + 1
            entries = self._read_back(numbers)
            if entries is not None:
                if entries:
                    self._kept = {entry.number for entry in entries}
                    self._loose = [*takewhile(lambda entry: entry.is_loose, entries[::-1])][::-1]
                    self._digest = entries[-1].digest
                return entries
        raise self._refused(_name(self._missing), "is missing")

    def append(self, *records: Record, snapshot: bool = False) -> None:
        """Commit records as one entry.

        Raises OutputBusy if another run wrote to the log since it was read, StoppedEarly if the
        storage refuses. After that nothing is appended until the log is read again: the entry may
        be there or not. A snapshot is also checked with `check_is_last`, since the caller then
        deletes what came before it.
        """
        if self._failed is not None:
            raise self._failed
        number = self._head + 1
        since, before, held = number, self._digest, list(records)
        joins = not snapshot and len(self._loose) >= MOST_LOOSE
        if joins:
            since, before = self._loose[0].number, self._loose[0].before
            held = [record for entry in self._loose for record in entry.records] + held
        content, digest = self._written(number, since, before, held, snapshot=snapshot)
        try:
            self._create(_name(number), content)
            if snapshot:
                self.check_is_last(number)
        except StoppedEarly as failure:
            self._failed = failure
            raise
        self._head, self._digest = number, digest
        if snapshot:
            self._kept, self._loose = set(), []
        elif joins:
            self._kept -= {entry.number for entry in self._loose}
            # An owner before may have been frozen, and wake: its next number must stay taken.
            joined = [entry.number for entry in self._loose if entry.number > self._fence]
            self._loose = []
        else:
            self._loose.append(Entry(number, since, digest, before, snapshot, held))
        self._kept.add(number)
        if joins:
            with suppress(StoppedEarly):  # they count for nothing
                self._objects.delete(*map(_name, reversed(joined)))

    def check_is_last(self, number: int | None = None) -> None:
        """Raise OutputBusy if there are entries after the last one of this writer, or `number`.

        The number of its entry is free again once a later snapshot has made that needless, so a
        writer that was frozen for long does not learn of the other run when it appends.
        """
        last = self._head if number is None else number
        if any(each > last for each in self._numbers()):
            raise taken_over(self._objects.place, f"there are entries after {_name(last)}")

    def shorten(self) -> None:
        """Delete the entries that count for nothing: the records of each are in a later one."""
        old = [each for each in self._numbers() if each < self._head and each not in self._kept]
        self._objects.delete(*map(_name, sorted(old, reverse=True)))

    def _written(
        self, number: int, since: int, before: str, records: list[Record], *, snapshot: bool
    ) -> tuple[bytes, str]:
        """Return the content of an entry, and its digest."""
        entry = orjson.dumps(
            {
                "seq": number,
                "since": since,
                "before": before,
                "owner": self._owner,
                "snapshot": snapshot,
                "records": records,
            }
        )
        digest = hashlib.sha256(entry).hexdigest()
        return b'{"sha256":"%b","entry":%b}\n' % (digest.encode(), entry), digest

    def _create(self, name: str, content: bytes) -> None:
        if not claim(self._objects, name, content):
            raise taken_over(self._objects.place, f"{name} was written by the other run")

    def _numbers(self) -> list[int]:
        found = map(_NAME.fullmatch, self._objects.list(FOLDER))
        return [int(match[1]) for match in found if match and _name(int(match[1])) == match[0]]

    def _read_back(self, numbers: list[int]) -> list[Entry] | None:
        """Read from the head back to the last snapshot; None if an entry is gone."""
        entries: list[Entry] = []
        self._missing = self._head  # the number of the entry that is to come next
        for number, reading in self._contents(numbers):
            if number > self._missing:
                continue  # its records are in a later one
            if number < self._missing or (content := reading.result()) is None:
                return None
            entry = self._parsed(number, content)
            if entries and entries[-1].before != entry.digest:
                raise self._refused(entries[-1].name, f"does not follow {entry.name}")
            entries.append(entry)
            if entry.snapshot:
                return entries[::-1]
            self._missing = entry.since - 1
        if self._missing:
            return None
        if entries:
            raise self._refused(entries[-1].name, "is the first entry, but begins no run")
        return []

    def _contents(self, numbers: list[int]) -> Iterator[tuple[int, Future[bytes | None]]]:
        """Read entries, several at a time, in this order; not those that a later one holds."""
        left = (number for number in numbers if number <= self._missing)
        reading: deque[tuple[int, Future[bytes | None]]] = deque()
        with ThreadPoolExecutor(_READERS, "log") as readers:
            try:
                for ahead in chain((1, 2, 4, 8), repeat(_READERS)):  # often, the last one is enough
                    for number in islice(left, ahead - len(reading)):
                        reading.append((number, readers.submit(self._content, number)))
                    if not reading:
                        return
                    yield reading.popleft()
            finally:
                for _, each in reading:
                    each.cancel()

    def _content(self, number: int) -> bytes | None:
        name = _name(number)
        try:
            return self._objects.get(name)
        except StoppedEarly as failure:
            raise self._refused(name, f"cannot be read ({failure.__cause__})") from failure

    def _parsed(self, number: int, content: bytes) -> Entry:
        wrapped = _whole(content)
        if wrapped is None:
            raise self._refused(_name(number), "is damaged, and not by a kill")
        entry = orjson.loads(wrapped[2])
        if entry["seq"] != number:
            raise self._refused(_name(number), f"is a copy of entry {entry['seq']}")
        return Entry(
            number,
            entry.get("since", number),
            wrapped[1].decode(),
            entry["before"],
            entry["snapshot"],
            entry["records"],
        )

    def _refused(self, name: str, what: str) -> ResumeRefused:
        return ResumeRefused(
            f"{self._objects.place}/{name} {what}, so what was done cannot be trusted.",
            f"Restore it, or start over with {setting('restart', 'True')}.",
        )


def is_entry(content: bytes) -> bool:
    """Return True if this is a whole entry of a log."""
    return _whole(content) is not None


def _whole(content: bytes) -> re.Match[bytes] | None:
    wrapped = _WRAPPED.fullmatch(content)
    if wrapped is None or hashlib.sha256(wrapped[2]).hexdigest().encode() != wrapped[1]:
        return None
    return wrapped


def _name(number: int) -> str:
    return f"{FOLDER}{number:08d}.json"
