"""The index of the journal: where the answer of a key begins, in bounded memory.

A log-structured index, as small as the job allows: nothing is ever deleted, and it is derived
from the journal, so it need not survive. New entries go to a dict; a full dict is sorted into a
segment, full segments are merged into large ones, which live in an unlinked temporary file. What
stays in memory for good is a Bloom filter of at most 16 bits an entry for each segment: 100 MB
for 50 million answers. All steps work on whole arrays, most of them outside the interpreter's lock.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Array = np.ndarray[Any, np.dtype[np.uint64]]

SMALL_ENTRIES = 1 << 17
SMALL_PER_LARGE = 8

_BITS_PER_ENTRY = 16
_PROBES = 4
# Odd, with well-mixed bits: makes a second hash out of the first (the golden ratio's, by Knuth).
_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class _Segment:
    """Sorted keys, the position of each, and the filter that tells most strangers at once."""

    keys: Array
    positions: Array
    filter: _Filter

    def find(self, keys: Array) -> tuple[Any, Array]:
        """Give the indices into `keys` of those that are here, and their positions."""
        maybe = np.flatnonzero(self.filter.maybe(keys))
        if not len(maybe):
            return maybe, self.positions[:0]
        places = np.searchsorted(self.keys, keys[maybe])
        places = np.minimum(places, len(self.keys) - 1)
        here = self.keys[places] == keys[maybe]
        return maybe[here], self.positions[places[here]]


class _Filter:
    """A Bloom filter: `maybe` is never wrong about a key that is in it."""

    def __init__(self, keys: Array) -> None:
        bits = 1 << max(6, (len(keys) * _BITS_PER_ENTRY).bit_length() - 1)
        self._mask = np.uint64(bits - 1)
        self._bits = np.zeros(bits // 8, np.uint8)
        for probe in self._probes(keys):
            np.bitwise_or.at(
                self._bits, probe >> np.uint64(3), _BIT[(probe & np.uint64(7)).astype(np.intp)]
            )

    def maybe(self, keys: Array) -> Any:
        found = np.ones(len(keys), bool)
        for probe in self._probes(keys):
            found &= (
                self._bits[probe >> np.uint64(3)] & _BIT[(probe & np.uint64(7)).astype(np.intp)]
            ) != 0
        return found

    def _probes(self, keys: Array) -> list[Array]:
        step = (keys * _MIX) >> np.uint64(20)
        start = keys >> np.uint64(8)
        return [(start + step * np.uint64(i)) & self._mask for i in range(_PROBES)]


_BIT = np.left_shift(np.uint8(1), np.arange(8, dtype=np.uint8))


class Index:
    """Maps 64-bit keys to positions; a key that is added again gets the newest position.

    `directory` is where large segments are kept, without a name.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._newest: dict[int, int] = {}
        self._small: list[_Segment] = []
        self._large: list[_Segment] = []

    def add(self, keys: Sequence[int], positions: Sequence[int]) -> None:
        """Add entries, newer than all before."""
        self._newest.update(zip(keys, positions, strict=True))
        if len(self._newest) >= SMALL_ENTRIES:
            self._seal()

    def find(self, keys: Array) -> dict[int, list[int]]:
        """Give, by index into `keys`, the positions that may hold its answer, newest first."""
        found: dict[int, list[int]] = {}
        if self._newest:
            newest = self._newest
            found = {i: [newest[key]] for i, key in enumerate(keys.tolist()) if key in newest}
        for segment in (*reversed(self._small), *reversed(self._large)):
            indices, positions = segment.find(keys)
            for i, position in zip(indices.tolist(), positions.tolist(), strict=True):
                found.setdefault(i, []).append(position)
        return found

    def _seal(self) -> None:
        count = len(self._newest)
        keys = np.fromiter(self._newest.keys(), np.uint64, count)
        positions = np.fromiter(self._newest.values(), np.uint64, count)
        self._newest = {}
        self._small.append(self._sorted(keys, positions))
        if len(self._small) >= SMALL_PER_LARGE:
            newest_first = self._small[::-1]
            keys, first = np.unique(
                np.concatenate([segment.keys for segment in newest_first]), return_index=True
            )
            positions = np.concatenate([segment.positions for segment in newest_first])[first]
            self._small = []
            self._large.append(
                _Segment(self._on_disk(keys), self._on_disk(positions), _Filter(keys))
            )

    @staticmethod
    def _sorted(keys: Array, positions: Array) -> _Segment:
        order = np.argsort(keys)
        return _Segment(keys[order], positions[order], _Filter(keys))

    def _on_disk(self, values: Array) -> Array:
        with tempfile.TemporaryFile(dir=self._directory) as file:
            values.tofile(file)
            file.flush()
            mapped: Array = np.memmap(file, np.uint64, "r")
            return mapped
