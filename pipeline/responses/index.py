"""The index of the journal: where the answer of a key begins, in bounded memory.

A log-structured index, as small as the job allows: nothing is ever deleted, and it is derived
from the journal, so it need not survive. What is added together is sorted into a small segment;
these are merged as they come to be of like size, and in the end into large ones. These live in
unlinked temporary files, with their Bloom filters of 16 to 32 bits an entry, and what was read of
them is left to the kernel's cache. What grows in memory is one bit an entry that says whether it
was met before; the small segments, their filter, and what is left of loading stay below those of
one large segment. All steps work on whole arrays, most of them outside the interpreter's lock.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[np.uint64]]

# Not more: to sort what becomes a large segment is the peak of opening a large store.
LARGE_ENTRIES = 1 << 19

_LEAST_BITS_PER_ENTRY = 16
_SLICE = 1 << 16


_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))
_WORD_BIT: Array = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))
# Two bits of a word, by 12 bits of a key.
_PAIRS: Array = (_WORD_BIT[:, None] | _WORD_BIT).ravel()


class _Hashed(NamedTuple):
    """Keys, and the up to six bits of a filter's word that each sets."""

    keys: Array
    bits: Array

    @classmethod
    def of(cls, keys: Array) -> _Hashed:
        # From the top, since the lowest bits choose the word.
        first, second, third = (
            np.take(_PAIRS, (keys >> np.uint64(shift) & np.uint64(0xFFF)).view(np.int64))
            for shift in (52, 40, 28)
        )
        return cls(keys, first | second | third)


class _Filter:
    """A Bloom filter for so many keys: `maybe` never leaves out a key that was added.

    All bits of a key lie in one word, which is looked at once (Putze, Sanders, Singler: Cache-,
    Hash- and Space-Efficient Bloom Filters, 2007). Of strangers, 4 of 1,000 pass at most. Keys are
    hashes themselves.
    """

    def __init__(self, entries: int) -> None:
        count = 1 << max(0, (entries * _LEAST_BITS_PER_ENTRY - 1).bit_length() - 6)
        self._mask = np.uint64(count - 1)
        self.words = np.zeros(count, np.uint64)
        self._mapped: mmap.mmap | None = None

    def move_to(self, mapped: mmap.mmap) -> None:
        """Lie at the beginning of a map, where `words` were written; nothing can be added then."""
        self._mapped = mapped
        self.words = np.frombuffer(mapped, np.uint64, len(self.words))

    def add(self, keys: Array) -> None:
        # A slice at a time: what is made of many keys takes more memory than the filter.
        for at in range(0, len(keys), _SLICE):
            hashed = _Hashed.of(keys[at : at + _SLICE])
            np.bitwise_or.at(self.words, self._places(hashed), hashed.bits)

    def maybe(self, hashed: _Hashed) -> Any:
        """Return the indices of the keys that may be in it."""
        words = np.take(self.words, self._places(hashed))
        _let_go(self._mapped)
        return np.flatnonzero((words & hashed.bits) == hashed.bits)

    def _places(self, hashed: _Hashed) -> Any:
        return (hashed.keys & self._mask).view(np.int64)


class Found(NamedTuple):
    """What one part of the index has of the keys that were asked for, as arrays of one length.

    `places` are theirs among the keys, `positions` where their answers may be, and `met` tells
    which entries were met before: added so, or looked up.
    """

    places: Any
    positions: Array
    met: Any


class _Segment:
    """Sorted keys, the position of each, and which of them were met.

    `mapped` is what keys and positions lie in, if that is a file.
    """

    def __init__(
        self, keys: Array, positions: Array, *, met: bool, mapped: mmap.mmap | None = None
    ) -> None:
        self.keys = keys
        self.positions = positions
        self._mapped = mapped
        self._met = np.full(-(-len(keys) // 8), 0xFF if met else 0, np.uint8)  # a bit an entry

    def meet(self, keys: Array, maybe: Any) -> Found:
        """Look for those of the keys at `maybe`."""
        keys = keys[maybe]
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        here = np.flatnonzero(self.keys[at] == keys)
        at = at[here]
        byte, bit = at >> 3, _BIT[at & 7]
        met = (self._met[byte] & bit) != 0
        np.bitwise_or.at(self._met, byte, bit)
        found = Found(maybe[here], self.positions[at], met)
        _let_go(self._mapped)
        return found


class Index:
    """Maps 64-bit keys to positions; a key that is added again gets the newest position.

    `directory` is where large segments are kept, without a name: None for the system's own.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        # Added since the index was loaded, so all of them are met; one filter for all. Each is at
        # least twice as long as the next newer one, so there are few, and an entry moves seldom.
        self._small: list[_Segment] = []
        self._recent = _Filter(LARGE_ENTRIES)
        self._large: list[tuple[_Filter, _Segment]] = []
        self._loaded_keys: list[Array] = []
        self._loaded_positions: list[Array] = []
        self._loaded_entries = 0

    def load(self, keys: Array, positions: Array) -> None:
        """Add entries that are not met yet, newer than all before; `loaded` ends this."""
        self._loaded_keys.append(keys)
        self._loaded_positions.append(positions)
        self._loaded_entries += len(keys)
        if self._loaded_entries >= LARGE_ENTRIES:
            self.loaded()

    def loaded(self) -> None:
        """End loading; from now on entries are added and looked up."""
        if self._loaded_entries:
            self._loaded_entries = 0
            self._merge(self._loaded_keys, self._loaded_positions, met=False)

    def close(self) -> None:
        """Let go of the files: a map keeps its file open for as long as anything refers to it."""
        self._large.clear()

    def add(self, keys: Array, positions: Array) -> None:
        """Add entries that count as met, newer than all before."""
        if not len(keys):
            return
        self._recent.add(keys)
        sizes = [len(segment.keys) for segment in self._small]
        becomes_large = sum(sizes) + len(keys) >= LARGE_ENTRIES
        at, entries = len(sizes), len(keys)
        while at and (becomes_large or sizes[at - 1] < 2 * entries):
            at -= 1
            entries += sizes[at]
        keys_of = [*(segment.keys for segment in self._small[at:]), keys]
        positions_of = [*(segment.positions for segment in self._small[at:]), positions]
        if becomes_large:
            known, self._recent = self._recent, _Filter(LARGE_ENTRIES)
            self._small.clear()
            self._merge(keys_of, positions_of, met=True, known=known)
        else:
            self._small[at:] = [_Segment(*_sorted(keys_of, positions_of), met=True)]

    def meet(self, keys: Array) -> list[Found]:
        """Return where the answers of the keys may be, newest first.

        All that is found counts as met from then on.
        """
        hashed = _Hashed.of(keys)
        maybe = self._recent.maybe(hashed)
        small = reversed(self._small) if len(maybe) else ()
        found = [segment.meet(keys, maybe) for segment in small]
        for known, segment in reversed(self._large):
            maybe = known.maybe(hashed)
            if len(maybe):
                found.append(segment.meet(keys, maybe))
        return found

    def _merge(
        self,
        keys_of: list[Array],
        positions_of: list[Array],
        *,
        met: bool,
        known: _Filter | None = None,
    ) -> None:
        """Make one segment of entries in the order in which they were added; empties the lists.

        `known` is their filter, if there is one.
        """
        entries = sum(map(len, keys_of))
        keys, positions = _sorted(keys_of, positions_of)
        if known is None:
            known = _Filter(len(keys))
            known.add(keys)
        mapped = None
        # What is left of loading is mostly less: no file then, since reading a store writes none.
        if entries >= LARGE_ENTRIES:
            # One map for all, since each keeps a file open.
            mapped = _mapped(self._directory, known.words, keys, positions)
            begin = known.words.nbytes
            # A look-up touches most pages of a filter, and few of the rest.
            mapped.madvise(mmap.MADV_RANDOM, begin - begin % mmap.PAGESIZE)
            keys, positions = np.frombuffer(mapped, np.uint64, offset=begin).reshape(2, len(keys))
            known.move_to(mapped)
        self._large.append((known, _Segment(keys, positions, met=met, mapped=mapped)))


def _mapped(directory: Path | None, *arrays: Any) -> mmap.mmap:
    """Return a map of a file without a name that holds the arrays, one behind the other."""
    with tempfile.TemporaryFile(dir=directory) as file:
        for array in arrays:
            file.write(array)  # `tofile` reports no error if the last bytes do not fit
        file.flush()
        return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)


def _let_go(mapped: mmap.mmap | None) -> None:
    """Release the pages that a search touched.

    Each search touches others, which would all count as this process's memory in time. They stay in
    the kernel's cache.
    """
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def _sorted(keys_of: list[Array], positions_of: list[Array]) -> tuple[Array, Array]:
    """Sort entries that were added in this order, each key once, with the position added last.

    Takes at least one entry, and empties the lists: each step lets go of what the one before took,
    since this is the peak of a store.
    """
    together = np.concatenate(keys_of)
    keys_of.clear()
    # Most are sorted pieces already, which this kind merges: twenty times as fast as any other.
    order = np.argsort(together, kind="stable")
    keys = together[order]
    del together
    differs = keys[1:] != keys[:-1]
    if not differs.all():
        first = np.flatnonzero(np.append(True, differs))
        keys, order = keys[first], np.maximum.reduceat(order, first)
        del first
    together = np.concatenate(positions_of)
    positions_of.clear()
    return keys, together[order]
