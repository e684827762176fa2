"""Log and index at the size of 10^9 rows: the real ones, measured small and extrapolated."""

from __future__ import annotations

import hashlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.responses import ResponseStore
from pipeline.responses.index import LARGE_ENTRIES, Index
from pipeline.store.disk import DiskObjects
from pipeline.store.records import PartRecord, RunLog, RunRecord


class Memory:
    """Objects in memory: what the log costs without a disk."""

    def __init__(self) -> None:
        self.place = "memory"
        self.objects: dict[str, bytes] = {}

    def create(self, name: str, content: bytes) -> bool:
        return self.objects.setdefault(name, content) is content

    def put(self, name: str, content: bytes) -> None:
        self.objects[name] = content

    def get(self, name: str) -> bytes | None:
        return self.objects.get(name)

    def list(self, _folder: str) -> list[str]:
        return list(self.objects)

    def stamps(self, folder: str) -> dict[str, str | None]:
        return dict.fromkeys(self.list(folder))

    def free_bytes(self) -> None:
        return None

    def delete(self, *names: str) -> None:
        for name in names:
            self.objects.pop(name, None)


@dataclass(frozen=True)
class LogSize:
    """What a log of so many entries takes: bytes in all, seconds to append the last and to read."""

    entries: int
    size_bytes: int
    append_s: float
    read_s: float


def _part(number: int) -> PartRecord:
    labels = {"NEGATIVE": 8_000, "NEUTRAL": 8_000, "POSITIVE": 8_576}
    name, sha = f"parts/{number:012d}-{number:016x}.arrows", hashlib.sha256(b"%d" % number)
    return PartRecord(
        number * 24_576, 24_576, name, 8_000_000, sha.hexdigest(), 12, "5130a1ed" * 5, labels
    )


def log_sizes(steps: tuple[int, ...]) -> list[LogSize]:
    """Append parts to a real log in memory, and read it again at each step."""
    objects, found = Memory(), []
    log = RunLog(objects)
    log.load()
    log.begin(RunRecord("simulation", {}, {}))
    done = 0
    for entries in steps:
        for number in range(done, entries):
            if number == entries - 100:
                last = time.perf_counter()
            log.add_part(_part(number))
        append_s, done = (time.perf_counter() - last) / 100, entries
        began = time.perf_counter()
        RunLog(objects).load()
        read_s = time.perf_counter() - began
        found.append(LogSize(entries, sum(map(len, objects.objects.values())), append_s, read_s))
    return found


def log_on_disk(entries: int, folder: Path) -> LogSize:
    """Append parts to a real log on disk, and read it again."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        objects = DiskObjects(Path(directory))
        log = RunLog(objects)
        log.load()
        log.begin(RunRecord("simulation", {}, {}))
        began = time.perf_counter()
        for number in range(entries):
            log.add_part(_part(number))
        append_s = (time.perf_counter() - began) / entries
        began = time.perf_counter()
        RunLog(objects).load()
        read_s = time.perf_counter() - began
        size = sum(each.stat().st_size for each in Path(directory).rglob("*.json"))
    return LogSize(entries, size, append_s, read_s)


@dataclass(frozen=True)
class IndexSize:
    """The index with so many entries: segments, open files, and seconds a key.

    `stranger_s` is to look up a key that is not there, in chunks of 4,096, with the adding of new
    ones; `bits_bytes` is what grows in memory.
    """

    entries: int
    segments: int
    files: int
    stranger_s: float
    add_s: float


def index_sizes(steps: tuple[int, ...], folder: Path) -> list[IndexSize]:
    """Fill a real index by so many large segments, and look up strangers at each step."""
    chance = np.random.default_rng(1)
    found = []
    index = Index(folder)
    before = _open_files()
    try:
        segments = 0
        for wanted in steps:
            began = time.perf_counter()
            added = (wanted - segments) * LARGE_ENTRIES
            for _ in range(added // 8_192):
                keys = chance.integers(0, 2**64, 8_192, np.uint64)
                index.add(keys, keys)
            add_s = (time.perf_counter() - began) / added
            segments = wanted
            chunks = [chance.integers(0, 2**64, 4_096, np.uint64) for _ in range(40)]
            index.meet(chunks[0])
            began = time.perf_counter()
            for keys in chunks:
                index.meet(keys)
            stranger_s = (time.perf_counter() - began) / (40 * 4_096)
            files = _open_files() - before
            found.append(IndexSize(wanted * LARGE_ENTRIES, wanted, files, stranger_s, add_s))
    finally:
        index.close()
    return found


def _open_files() -> int:
    opened = Path("/proc/self/fd")
    return len(list(opened.iterdir())) if opened.is_dir() else 0


@dataclass(frozen=True)
class JournalSize:
    """A journal of so many answers: bytes, seconds to store each, and to open it again."""

    answers: int
    size_bytes: int
    put_s: float
    open_s: float


def journal_size(answers: int, folder: Path) -> JournalSize:
    """Store answers in a real journal, and open it again."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        path = Path(directory, "answers.journal")
        store = ResponseStore(path)
        put_s, group = 0.0, 8_192
        for start in range(0, answers, group):
            numbers = range(start, min(start + group, answers))
            keys = [hashlib.blake2b(b"%d" % i, digest_size=16).digest() for i in numbers]
            given = [(("POSITIVE", 0.25 + i % 7 / 10),) for i in numbers]
            began = time.perf_counter()
            store.put([(keys, given, "5130a1ed" * 5)])
            store.get(keys[:1])  # takes what was put into the index
            put_s += time.perf_counter() - began
        store.close()
        began = time.perf_counter()
        ResponseStore(path).close()
        open_s = time.perf_counter() - began
        return JournalSize(answers, path.stat().st_size, put_s / answers, open_s)


__all__ = ["index_sizes", "journal_size", "log_on_disk", "log_sizes"]
