"""The index of the journal: where the answer of a key begins, in bounded memory.

A log-structured index, as small as the job allows: nothing is ever deleted, and it is derived
from the journal, so it need not survive. New entries go to a dict; a full dict is sorted into a
segment, full segments are merged into large ones, which live in an unlinked temporary file. What
stays in memory for good is a Bloom filter of at most 16 bits an entry for each segment, and one
bit that says whether the entry was met before: 106 MB for 50 million answers. All steps work on
whole arrays, most of them outside the interpreter's lock.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[np.uint64]]

SMALL_ENTRIES = 1 << 16
# Not more: to sort what becomes a large segment is the peak of opening a large store.
SMALL_PER_LARGE = 8

_BITS_PER_ENTRY = 16
_PROBES = 4
_SLICE = 1 << 16
# Odd, with well-mixed bits: makes a second hash out of the first (the golden ratio's, by Knuth).
_MIX = np.uint64(0x9E3779B97F4A7C15)


class _Bits:
    """Bits that are set and read many at a time, by their numbers; `packed` has eight a byte."""

    def __init__(self, packed: Any) -> None:
        self._bytes = packed

    def set(self, numbers: Any) -> None:
        np.bitwise_or.at(self._bytes, numbers >> 3, _BIT[numbers & 7])

    def are_set(self, numbers: Any) -> Any:
        return (self._bytes[numbers >> 3] & _BIT[numbers & 7]) != 0


_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))


class _Filter:
    """A Bloom filter: `maybe` is never wrong about a key that is in it."""

    def __init__(self, keys: Array) -> None:
        count = 1 << max(6, (len(keys) * _BITS_PER_ENTRY).bit_length() - 1)
        self._mask = np.uint64(count - 1)
        self._bits = _Bits(np.zeros(count // 8, np.uint8))
        # A slice at a time: the probes of all keys take more memory than the filter.
        for at in range(0, len(keys), _SLICE):
            for probe in self._probes(keys[at : at + _SLICE]):
                self._bits.set(probe)

    def maybe(self, keys: Array) -> Any:
        found = np.ones(len(keys), bool)
        for probe in self._probes(keys):
            found &= self._bits.are_set(probe)
        return found

    def _probes(self, keys: Array) -> list[Any]:
        step = (keys * _MIX) >> np.uint64(20)
        start = keys >> np.uint64(8)
        return [
            ((start + step * np.uint64(i)) & self._mask).astype(np.intp) for i in range(_PROBES)
        ]


class _Segment:
    """Sorted keys, the position of each, which of them were met, and a filter for strangers.

    `mapped` is what keys and positions lie in, where that is a file.
    """

    def __init__(
        self, keys: Array, positions: Array, met: Any, mapped: mmap.mmap | None = None
    ) -> None:
        self.keys = keys
        self.positions = positions
        self._mapped = mapped
        self._filter = _Filter(keys)
        self._met = _Bits(np.packbits(met, bitorder="little"))

    @property
    def met(self) -> Any:
        """For each entry whether it was met."""
        return self._met.are_set(np.arange(len(self.keys)))

    def meet(self, keys: Array) -> tuple[Any, Array, Any]:
        """Give the indices into `keys` of those that are here, their positions, which were met."""
        maybe = np.flatnonzero(self._filter.maybe(keys))
        if not len(maybe):
            return maybe, self.positions[:0], maybe
        places = np.searchsorted(self.keys, keys[maybe])
        places = np.minimum(places, len(self.keys) - 1)
        here = self.keys[places] == keys[maybe]
        places = places[here]
        met = self._met.are_set(places)
        self._met.set(places)
        positions = self.positions[places]
        if self._mapped is not None:
            # Each search touches other pages, which would all count as this process's memory in
            # time. They stay in the kernel's cache.
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return maybe[here], positions, met


class Found(NamedTuple):
    """Where an answer may be, and whether its entry was met before: added so, or looked up."""

    position: int
    met: bool


class Index:
    """Maps 64-bit keys to positions; a key that is added again gets the newest position.

    `directory` is where large segments are kept, without a name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Added since the index was loaded, so all of them are met.
        self._newest: dict[int, int] = {}
        self._small: list[_Segment] = []
        self._large: list[_Segment] = []
        self._loaded_keys: list[Array] = []
        self._loaded_positions: list[Array] = []
        self._loaded_entries = 0

    def load(self, keys: Array, positions: Array) -> None:
        """Add entries that are not met yet, newer than all before; `loaded` ends this."""
        self._loaded_keys.append(keys)
        self._loaded_positions.append(positions)
        self._loaded_entries += len(keys)
        if self._loaded_entries >= SMALL_ENTRIES * SMALL_PER_LARGE:
            self._large.append(self._take_loaded(on_disk=True))

    def loaded(self) -> None:
        """End loading; from now on entries are added and looked up."""
        if self._loaded_keys:
            self._small.append(self._take_loaded(on_disk=False))

    def add(self, keys: Sequence[int], positions: Sequence[int]) -> None:
        """Add entries that count as met, newer than all before."""
        self._newest.update(zip(keys, positions, strict=True))
        if len(self._newest) >= SMALL_ENTRIES:
            self._seal()

    def meet(self, keys: Array) -> dict[int, list[Found]]:
        """Give, by index into `keys`, where its answer may be, newest first.

        All that is found counts as met from then on.
        """
        found: dict[int, list[Found]] = {}
        newest = self._newest
        if newest:
            for i, key in enumerate(keys.tolist()):
                if key in newest:
                    found[i] = [Found(newest[key], met=True)]
        for segment in (*reversed(self._small), *reversed(self._large)):
            for i, *entry in zip(*(part.tolist() for part in segment.meet(keys)), strict=True):
                found.setdefault(i, []).append(Found._make(entry))
        return found

    def _take_loaded(self, *, on_disk: bool) -> _Segment:
        met = [np.zeros(self._loaded_entries, bool)]
        self._loaded_entries = 0
        return self._merge(self._loaded_keys, self._loaded_positions, met, on_disk=on_disk)

    def _seal(self) -> None:
        count = len(self._newest)
        keys = np.fromiter(self._newest.keys(), np.uint64, count)
        positions = np.fromiter(self._newest.values(), np.uint64, count)
        self._newest = {}
        order = np.argsort(keys)
        self._small.append(_Segment(keys[order], positions[order], np.ones(count, bool)))
        if len(self._small) >= SMALL_PER_LARGE:
            parts = [(each.keys, each.positions, each.met) for each in self._small]
            self._small.clear()
            keys_of, positions_of, met_of = map(list, zip(*parts, strict=True))
            del parts
            self._large.append(self._merge(keys_of, positions_of, met_of, on_disk=True))

    def _merge(
        self, keys_of: list[Array], positions_of: list[Array], met_of: list[Any], *, on_disk: bool
    ) -> _Segment:
        """Make one segment of entries in the order in which they were added; empties the lists."""
        # Each step lets go of what the one before took: this is the peak of a store.
        together = np.concatenate(keys_of)
        keys_of.clear()
        keys, newest = _newest_of(together)
        del together
        together = np.concatenate(positions_of)
        positions_of.clear()
        positions = together[newest]
        del together
        met = np.concatenate(met_of)[newest]
        del newest
        if not on_disk:
            return _Segment(keys, positions, met)
        with tempfile.TemporaryFile(dir=self._directory) as file:
            keys.tofile(file)
            positions.tofile(file)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        keys, positions = np.frombuffer(mapped, np.uint64).reshape(2, -1)
        return _Segment(keys, positions, met, mapped)


def _newest_of(keys: Array) -> tuple[Array, Any]:
    """Sort keys that were added in this order; gives each once, and where it was added last."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.zeros(0, bool)
    return (keys, order) if last.all() else (keys[last], order[last])
