"""The store: answers in an append-only journal, found through the index.

The file is a sequence of frames, one a group commit, each

    "CLR2"  u32 length  u32 crc of the payload  u32 crc of these 12 bytes       16 bytes
    payload:  u32 count, u32 bytes of revision, revision
              count x u64         first half of each key
              u32 a block         its length
              blocks              of BLOCK_ANSWERS answers each, the last of what is left

    block:    u32 crc of the rest, u32 count, u32 bytes of JSON
              count x 8 bytes     second half of each key
              JSON                the list of the answers

A block is what is read to look up one answer. It is small enough to be read for one alone, and
large enough that what is done once a block is little an answer: rows that were answered together
are mostly asked for together.

A kill leaves a torn frame at the end, which is cut off on opening. A frame that is damaged is
passed over: its answers are asked for again, and no wrong one is ever given, since every block has
a checksum over the other halves of its keys and its answers. A file of which not even the first
header can be read may be somebody else's, and is refused, unless it lies in a run directory.

Several processes may share a file: each appends whole frames under the file's lock, and knows the
frames of the others from when it opened the file.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections import deque
from contextlib import nullcontext
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson

from pipeline.errors import StoppedEarly
from pipeline.responses.index import Index
from pipeline.store.files import DiskFile
from pipeline.store.objects import reading, writing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.outcomes import Answer
    from pipeline.responses.index import Found
    from pipeline.store.objects import GrowingFile

    # Keys, their answers, and the model revision that gave them.
    Group = tuple[Sequence[bytes], Sequence["Answer"], str | None]

_MAGIC = b"CLR2"
HEADER = struct.Struct("<4sIII")
COUNTS = struct.Struct("<II")
BLOCK = struct.Struct("<III")
_FRAME_ANSWERS = 1 << 15
_LONGEST_FRAME = 1 << 30
_WINDOW = 1 << 20
# A position in the index is where a block begins, and the answer's place in it.
_PLACE_BITS = 4
BLOCK_ANSWERS = 1 << _PLACE_BITS
# A block of answers of one label fits; a longer one takes a second read.
_FIRST_READ = 2_048


class Known(NamedTuple):
    """A stored answer, and under which model revision it was given.

    `position` grows with the time of storing, within one store. `met` says whether this opening
    has put it or looked it up before: it tells a repeated input from one that is seen first.
    """

    answer: Answer
    revision: str | None
    position: int
    met: bool


class _Frame(NamedTuple):
    """A frame as it was read: keys' first halves, and the position of each answer."""

    end: int
    revision: str | None
    keys: Any
    positions: Any


class ResponseStore:
    """The answers of one file; `get` and `put` may each be used by one thread, at the same time.

    With `read_only` the file must be there and stays as it is, and nobody who writes to it waits:
    a frame that is only half there by now counts as torn. Raises StoppedEarly if the file cannot be
    read or written, or is not a response store.
    """

    def __init__(self, file: GrowingFile | Path, *, read_only: bool = False) -> None:
        self._file = DiskFile.journal(file) if isinstance(file, Path) else file
        self._index = Index(self._file.scratch)
        # Where each frame begins, and its revision, which holds for the blocks in it.
        self._frames: list[tuple[int, str | None]] = []
        # What was put since the last look-up: only a look-up uses the index, so that a commit never
        # waits for one.
        self._unindexed: deque[tuple[Any, Any]] = deque()
        with reading(self._file.place) if read_only else writing(self._file.place):
            self._file.open(read_only=read_only)
            try:
                with nullcontext() if read_only else self._file.locked():
                    self._load(cut_torn_tail=not read_only)
                    self._index.loaded()
            except BaseException:
                self._file.close()
                raise

    def get(self, keys: Sequence[bytes]) -> dict[int, Known]:
        """Look up keys. Return what is known, by place in `keys`."""
        if not keys:
            return {}
        first_halves = np.frombuffer(b"".join(keys), np.uint64)[::2]
        known: dict[int, Known] = {}
        while self._unindexed:
            self._index.add(*self._unindexed[0])
            self._unindexed.popleft()
        with reading(self._file.place):
            # A key may have several positions: another key may have the same first half, or an
            # answer was stored again.
            for found in self._index.meet(first_halves):
                for begin, candidates in _by_block(found):
                    entries = [entry for entry in candidates if entry[0] not in known]
                    if not entries:
                        continue
                    second_halves, answers = self._read_block(begin)
                    frame = bisect_right(self._frames, begin, key=itemgetter(0)) - 1
                    revision = self._frames[frame][1]
                    for i, position, met in entries:
                        place = position & (BLOCK_ANSWERS - 1)
                        if second_halves[8 * place : 8 * place + 8] == keys[i][8:]:
                            answer = tuple([(label, score) for label, score in answers[place]])
                            known[i] = Known(answer, revision, position, met)
        return known

    def put(self, groups: Iterable[Group]) -> None:
        """Store the answers of all groups; durable when this returns."""
        with writing(self._file.place):
            for revision, members in groupby(groups, itemgetter(2)):
                keys: list[bytes] = []
                answers: list[Answer] = []
                for some_keys, some_answers, _ in members:
                    keys.extend(some_keys)
                    answers.extend(some_answers)
                for start in range(0, len(keys), _FRAME_ANSWERS):
                    stop = start + _FRAME_ANSWERS
                    self._append(keys[start:stop], answers[start:stop], revision)
            self._file.sync()

    def close(self) -> None:
        """Close the file; what was put is durable already."""
        self._index.close()
        self._file.close()

    def _append(
        self, keys: Sequence[bytes], answers: Sequence[Answer], revision: str | None
    ) -> None:
        assert len(keys) == len(answers)
        halves = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
        first_halves = halves[:, 0]
        second_halves = halves[:, 1].tobytes()
        blocks = [
            _packed(
                second_halves[8 * at : 8 * (at + BLOCK_ANSWERS)], answers[at : at + BLOCK_ANSWERS]
            )
            for at in range(0, len(answers), BLOCK_ANSWERS)
        ]
        name = (revision or "").encode()
        lengths = np.fromiter(map(len, blocks), "<u4", len(blocks))
        counts = COUNTS.pack(len(keys), len(name))
        payload = b"".join([counts, name, first_halves.tobytes(), lengths.tobytes(), *blocks])
        start = self._file.append(_header(payload) + payload, len(keys))
        first_block = start + HEADER.size + len(payload) - int(lengths.sum())
        self._frames.append((start, revision))
        self._unindexed.append((first_halves, _positions(first_block, lengths, len(keys))))

    def _read_block(self, begin: int) -> tuple[bytes, list[Any]]:
        """Read a block: second halves of keys, and answers; none if it is damaged."""
        piece = self._file.read(_FIRST_READ, begin)
        if len(piece) < BLOCK.size:
            return b"", []
        crc, count, length = BLOCK.unpack_from(piece)
        text_at = BLOCK.size + 8 * count
        if count > BLOCK_ANSWERS or length > _LONGEST_FRAME:
            return b"", []
        if len(piece) < text_at + length:
            # Room is made for all that is asked for, so a damaged length may ask for no more.
            if begin + text_at + length > self._file.size():
                return b"", []
            piece = self._file.read(text_at + length, begin)
        piece = piece[: text_at + length]
        if zlib.crc32(memoryview(piece)[4:]) != crc:
            return b"", []
        return piece[BLOCK.size : text_at], orjson.loads(memoryview(piece)[text_at:])

    def _load(self, *, cut_torn_tail: bool) -> None:
        """Read all frames into the index; a torn one at the end may be cut off."""
        start, size = 0, self._file.size()
        while start < size:
            frame = self._frame_at(start)
            if frame is None:
                following = self._next_frame(start + 1, size)
                if following is None:
                    if start == 0 and not (self._file.is_ours or self._header_at(0) is not None):
                        raise _no_store(self._file.place)
                    if cut_torn_tail and self._is_torn(start, size):
                        self._file.cut(start)
                    return
                start = following
                continue
            self._frames.append((start, frame.revision))
            self._index.load(frame.keys, frame.positions)
            start = frame.end

    def _next_frame(self, start: int, size: int) -> int | None:
        """Find where the next whole frame begins; None if there is none."""
        while start < size:
            window = self._file.read(_WINDOW, start)
            found = window.find(_MAGIC)
            if found < 0:
                # The mark may lie across the border of two windows.
                start += max(1, len(window) - len(_MAGIC) + 1)
            elif self._frame_at(start + found) is not None:
                return start + found
            else:
                start += found + 1
        return None

    def _is_torn(self, start: int, size: int) -> bool:
        """Return True if what begins here was not written to its end; else it is damaged."""
        rest = size - start - HEADER.size
        header = self._header_at(start)
        return rest < 0 or (header is not None and header[0] > rest)

    def _header_at(self, start: int) -> tuple[int, int] | None:
        return read_header(self._file.read(HEADER.size, start))

    def _frame_at(self, start: int) -> _Frame | None:
        """Read the frame that begins here; None if it is not whole."""
        header = self._header_at(start)
        if header is None:
            return None
        length, crc = header
        payload = self._file.read(length, start + HEADER.size)
        if len(payload) < length or zlib.crc32(payload) != crc:
            return None
        count, name_bytes = COUNTS.unpack_from(payload)
        at = COUNTS.size
        name = payload[at : at + name_bytes].decode()
        at += name_bytes
        # A copy, since the keys would keep the whole payload in memory.
        keys = np.frombuffer(payload, "<u8", count, at).copy()
        at += 8 * count
        blocks = -(-count // BLOCK_ANSWERS)
        lengths = np.frombuffer(payload, "<u4", blocks, at)
        positions = _positions(start + HEADER.size + at + 4 * blocks, lengths, count)
        return _Frame(start + HEADER.size + length, name or None, keys, positions)


def _by_block(found: Found) -> Iterator[tuple[int, Iterator[tuple[int, int, bool]]]]:
    """Return where each block begins, and the place, position and `met` of what may be in it."""
    order = np.argsort(found.positions)
    entries = zip(*[each[order].tolist() for each in found], strict=True)
    return groupby(entries, lambda entry: entry[1] >> _PLACE_BITS)


def _packed(second_halves: bytes, answers: Sequence[Answer]) -> bytes:
    """Return a block."""
    text = orjson.dumps(answers)
    rest = COUNTS.pack(len(answers), len(text)) + second_halves + text
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _positions(first_block: int, lengths: Any, count: int) -> Any:
    """Return the position of each of `count` answers, whose first block begins at `first_block`."""
    begins = np.cumsum(lengths, dtype=np.uint64) + np.uint64(first_block) - lengths
    places = np.arange(count, dtype=np.uint64)
    blocks = (places >> _PLACE_BITS).astype(np.intp)
    return (begins[blocks] << np.uint64(_PLACE_BITS)) | (places & np.uint64(BLOCK_ANSWERS - 1))


def read_header(header: bytes) -> tuple[int, int] | None:
    """Return length and checksum of the payload that a header tells; None if it is damaged."""
    if len(header) < HEADER.size:
        return None
    magic, length, crc, header_crc = HEADER.unpack(header)
    if magic != _MAGIC or zlib.crc32(header[:12]) != header_crc or length > _LONGEST_FRAME:
        return None
    return length, crc


def _no_store(place: object) -> StoppedEarly:
    return StoppedEarly(
        f"{place} is no response store, or nothing in it can be read.",
        "Name another file, or delete this one: its answers would be asked for again.",
    )


def check_store(path: Path) -> None:
    """Refuse a file that exists and is no response store, at little cost. Raises StoppedEarly."""
    if not path.exists():
        return
    if not path.is_file():
        raise _no_store(path)
    with reading(path), path.open("rb") as file:
        header = file.read(HEADER.size)
    if header and read_header(header) is None:
        ResponseStore(path, read_only=True).close()


def _header(payload: bytes) -> bytes:
    fields = HEADER.pack(_MAGIC, len(payload), zlib.crc32(payload), 0)[:12]
    return fields + zlib.crc32(fields).to_bytes(4, "little")


class ResponseStores:
    """The store of this attempt, and behind it those that earlier attempts wrote to.

    So no answer is paid for twice if `cache` was given in one attempt and not in another. The
    `earlier` ones are only read; `passed_over` says why some of them could not be. With
    `read_only` that of this attempt is only read too, and need not be there.
    """

    def __init__(
        self,
        file: GrowingFile | Path,
        earlier: Sequence[GrowingFile | Path] = (),
        *,
        read_only: bool = False,
    ) -> None:
        self._stores: list[ResponseStore] = []
        if file.exists() or not read_only:
            self._stores.append(ResponseStore(file, read_only=read_only))
        self.passed_over: list[str] = []
        try:
            for other in earlier:
                try:
                    self._stores.append(ResponseStore(other, read_only=True))
                except StoppedEarly as failure:
                    if not isinstance(failure.__cause__, FileNotFoundError):
                        self.passed_over.append(str(failure))
        except BaseException:
            self.close()
            raise

    def get(self, keys: Sequence[bytes]) -> list[dict[int, Known]]:
        """Look up keys. Return what each store knows, this attempt's first, by place in `keys`."""
        return [store.get(keys) for store in self._stores]

    def put(self, groups: Iterable[Group]) -> None:
        """Store answers; durable when this returns."""
        self._stores[0].put(groups)

    def close(self) -> None:
        """Close all files."""
        for store in self._stores:
            store.close()
