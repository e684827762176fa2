"""The log: numbered entries of records; it, not the listing of anything else, is the truth.

Entry 12 is the object `log/00000012.json`:

    {"sha256": "9f2c...", "entry": {"seq": 12, "before": "77ab...", "owner": "c41d...",
     "snapshot": false, "records": [{"kind": "part", ...}]}}

`sha256` is of the bytes of `entry`, `before` is the `sha256` of the entry before, and `owner` is a
nonce of the writer, so that no two writers make the same bytes. An entry is created only if its
number is free and is never changed, so of two writers one wins, and the other learns that it lost
the output.

A snapshot carries all the state that follows from what came before it, so older entries count for
nothing and are deleted. Reading goes from the last entry back to the last snapshot; whatever is
missing, damaged or out of order on that way is refused, and nothing is deleted.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.errors import OutputBusy, ResumeRefused, StoppedEarly
from pipeline.store.objects import claim
from pipeline.wording import setting

if TYPE_CHECKING:
    from pipeline.store.objects import Objects

    Record = dict[str, Any]

FOLDER = "log/"
_NAME = re.compile(r"log/(\d{8,})\.json")
_WRAPPED = re.compile(rb'\{"sha256":"([0-9a-f]{64})","entry":(.*)\}\n', re.DOTALL)
# An entry that was listed may be gone when it is read: a writer has put a snapshot above it.
_READ_ATTEMPTS = 5


class Entry(NamedTuple):
    """An entry as it was read; `digest` is its `sha256`."""

    name: str
    digest: str
    before: str
    snapshot: bool
    records: list[Record]


class Log:
    """The log of one run store; it is read before it is written."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self.place = f"{objects.place}/{FOLDER}"  # for messages
        self._owner, self._digest = secrets.token_hex(8), ""
        self._head = self._snapshot = 0
        self._failed: StoppedEarly | None = None

    def exists(self) -> bool:
        """Return True if there is an entry now."""
        return bool(self._numbers())

    def read(self) -> list[Entry]:
        """Read the last snapshot and the entries after it; empty if there are none.

        Raises ResumeRefused, naming the entry that cannot be believed.
        """
        self._owner, self._failed = secrets.token_hex(8), None
        for _ in range(_READ_ATTEMPTS):
            numbers = self._numbers()
            self._head, self._digest = max(numbers, default=0), ""
            entries = self._read_back()
            if entries is not None:
                if entries:
                    self._snapshot = self._head - len(entries) + 1
                    self._digest = entries[-1].digest
                return entries
        missing = max(set(range(1, self._head)) - set(numbers), default=self._head)
        raise self._refused(_name(missing), "is missing")

    def append(self, *records: Record, snapshot: bool = False) -> None:
        """Commit records as one entry.

        Raises OutputBusy if another run wrote to the log since it was read, StoppedEarly if the
        storage refuses. After that nothing is appended until the log is read again: the entry may
        be there or not.
        """
        if self._failed is not None:
            raise self._failed
        number = self._head + 1
        entry = orjson.dumps(
            {
                "seq": number,
                "before": self._digest,
                "owner": self._owner,
                "snapshot": snapshot,
                "records": records,
            }
        )
        digest = hashlib.sha256(entry).hexdigest()
        content = b'{"sha256":"%b","entry":%b}\n' % (digest.encode(), entry)
        try:
            self._create(_name(number), content)
        except StoppedEarly as failure:
            self._failed = failure
            raise
        self._head, self._digest = number, digest
        if snapshot:
            self._snapshot = number

    def shorten(self) -> None:
        """Delete the entries before the last snapshot."""
        old = [number for number in self._numbers() if number < self._snapshot]
        self._objects.delete(*map(_name, sorted(old, reverse=True)))

    def _create(self, name: str, content: bytes) -> None:
        if not claim(self._objects, name, content):
            raise OutputBusy(
                f"{self._objects.place}: another run took this output over ({name} is not of this "
                "one).",
                "Wait for it, stop it, or choose another output.",
            )

    def _numbers(self) -> list[int]:
        found = map(_NAME.fullmatch, self._objects.list(FOLDER))
        return [int(match[1]) for match in found if match and _name(int(match[1])) == match[0]]

    def _read_back(self) -> list[Entry] | None:
        """Read from the head back to the last snapshot; None if an entry is gone."""
        entries: list[Entry] = []
        for number in range(self._head, 0, -1):
            name = _name(number)
            try:
                content = self._objects.get(name)
            except StoppedEarly as failure:
                raise self._refused(name, f"cannot be read ({failure.__cause__})") from failure
            if content is None:
                return None
            entry = self._parsed(name, number, content)
            if entries and entries[-1].before != entry.digest:
                raise self._refused(entries[-1].name, f"does not follow {name}")
            entries.append(entry)
            if entry.snapshot:
                return entries[::-1]
        if entries:
            raise self._refused(entries[-1].name, "is the first entry, but begins no run")
        return []

    def _parsed(self, name: str, number: int, content: bytes) -> Entry:
        wrapped = _whole(content)
        if wrapped is None:
            raise self._refused(name, "is damaged, and not by a kill")
        entry = orjson.loads(wrapped[2])
        if entry["seq"] != number:
            raise self._refused(name, f"is a copy of entry {entry['seq']}")
        return Entry(
            name, wrapped[1].decode(), entry["before"], entry["snapshot"], entry["records"]
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
