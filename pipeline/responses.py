"""The response store: what was already answered.

One store serves three purposes: deduplication within a run, the journal that makes a kill cheap,
and the cache between runs. It maps the digest of a request (never its text) to the answer.

Keys are 128 bits of BLAKE2b over everything that decides an answer, so that two different inputs
share one with a probability below 1e-22 even at 50 million. SQLite holds the first 64 bits as
the row's integer key, the most compact index it has, and the other 64 beside it for comparison.

Every lookup and every insert is one SQL statement over a JSON array. Python's sqlite3 releases
the interpreter's lock around each step, so a statement per row would fight the event loop for
the lock once a row; a statement per batch does the work outside of it.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# The text, or the text and its pair.
Item = str | tuple[str, str]
# The labels of one input with their scores, best first, as many as `top_k` asked for.
Answer = tuple[tuple[str, float], ...]


class RowError(NamedTuple):
    """Why an input has no label; the words for the error column."""

    message: str


Outcome = Answer | RowError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    key INTEGER PRIMARY KEY, rest INTEGER NOT NULL, crc INTEGER NOT NULL, answer TEXT NOT NULL,
    revision INTEGER
);
CREATE TABLE IF NOT EXISTS revisions (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
"""
# In the order of the keys, so that a group touches each page of the index once.
_PUT = """
INSERT OR REPLACE INTO responses
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
       json_extract(value, '$[3]'), json_extract(value, '$[4]')
FROM json_each(?) ORDER BY 1
"""
_GET = """
SELECT json_group_array(json_array(asked.key, found.crc, found.answer, found.revision))
FROM json_each(?) AS asked CROSS JOIN responses AS found
WHERE found.key = json_extract(asked.value, '$[0]')
  AND found.rest = json_extract(asked.value, '$[1]')
"""


class Keys:
    """Makes the key of an input: a digest over the input and all that decides its answer."""

    def __init__(self, decides: dict[str, Any]) -> None:
        scope = orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)
        self._scope = hashlib.blake2b(scope, digest_size=32).digest()

    def of(self, items: Iterable[Item]) -> list[bytes]:
        """Give one key of 16 bytes per item."""
        blake2b, scope = hashlib.blake2b, self._scope
        return [
            blake2b(
                item.encode() if type(item) is str else _joined(item), digest_size=16, key=scope
            ).digest()
            for item in items
        ]


def _joined(pair: Item) -> bytes:
    # The length in front keeps ("a", "bc") and ("ab", "c") apart, and 0xFF (which UTF-8 never
    # holds) keeps every pair apart from every single text.
    text = pair[0].encode()
    return b"\xff%d:%b%b" % (len(text), text, pair[1].encode())


class ResponseStore:
    """The store in one SQLite file; used from one thread at a time, shared between processes.

    Raises StoppedEarly where the file cannot be read or written: a damaged store is never
    guessed at, since deleting it costs requests and nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            # The log makes a commit one sequential write; FULL fsyncs it at each commit.
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA cache_size = -65536")
            self._db.execute("PRAGMA wal_autocheckpoint = 16384")
            self._db.executescript(_SCHEMA)
            self._revisions: dict[int, str] = dict(
                self._db.execute("SELECT id, name FROM revisions").fetchall()
            )
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def get(self, keys: Sequence[bytes]) -> dict[int, tuple[Answer, str | None]]:
        """Look up keys; gives what is known by position in `keys`: answer and model revision."""
        if not keys:
            return {}
        try:
            (found,) = self._db.execute(_GET, (_as_json(_halves(keys)),)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        known = {}
        for position, crc, text, revision in orjson.loads(found):
            if zlib.crc32(text.encode(), _seed(keys[position])) != crc:
                continue  # a flipped bit: as good as never answered
            answer = tuple((label, score) for label, score in orjson.loads(text))
            known[position] = (answer, self._revision_name(revision))
        return known

    def put(self, answers: Sequence[tuple[bytes, Answer, str | None]]) -> None:
        """Store answers, as (key, answer, model revision), durably and all or none."""
        ids = {name: self._revision_id(name) for name in {name for _, _, name in answers}}
        halves = _halves([key for key, _, _ in answers])
        rows = []
        for (key, answer, name), (first, rest) in zip(answers, halves, strict=True):
            text = orjson.dumps(answer)
            rows.append((first, rest, zlib.crc32(text, _seed(key)), text.decode(), ids[name]))
        try:
            self._db.execute(_PUT, (_as_json(rows),))
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _revision_id(self, name: str | None) -> int | None:
        """A small number for a revision, so that each answer needs not repeat its name."""
        if name is None:
            return None
        try:
            self._db.execute("INSERT OR IGNORE INTO revisions (name) VALUES (?)", (name,))
            found = self._db.execute("SELECT id FROM revisions WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        self._revisions[found[0]] = name
        return int(found[0])

    def _revision_name(self, number: int | None) -> str | None:
        if number is not None and number not in self._revisions:
            # Another process that shares the store met a revision since.
            found = self._db.execute("SELECT id, name FROM revisions").fetchall()
            self._revisions.update(found)
        return None if number is None else self._revisions.get(number)

    def close(self) -> None:
        """Close the file; what was put is durable already."""
        self._db.close()

    def _failed(self, error: sqlite3.Error) -> StoppedEarly:
        return StoppedEarly(
            f"{self._path}: the response store cannot be used: {error}. Run the same command "
            "again; if it stays so, delete that file: its answers will be asked for again."
        )


def _seed(key: bytes) -> int:
    """Seed the checksum with the key, so that an answer under the wrong key is noticed too."""
    return zlib.crc32(key)


def _halves(keys: Sequence[bytes]) -> list[list[int]]:
    halves: list[list[int]] = np.frombuffer(b"".join(keys), dtype="<i8").reshape(-1, 2).tolist()
    return halves


def _as_json(rows: Sequence[Any]) -> str:
    return orjson.dumps(rows).decode()
