"""The window: inputs that wait, sorted by length, so that a batch has inputs of similar length.

A server that pads computes each text of a batch as long as the longest. So the inputs of a batch
are neighbours in length. Which batch goes first is decided by age, so that batches of all lengths
are under way at any time, and inputs of equal length keep the order of the table.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.pool.batching import Job

    # Some inputs of a job, by their places in it.
    Share = tuple[Job, Sequence[int]]
    # In bytes of UTF-8.
    Sizes = np.ndarray[Any, np.dtype[np.int64]]


# Longer texts count as equally long. A model cuts them anyway, and 16 bits are sorted in a third of
# the time.
LONGEST_BYTES = 2**16 - 1


class Window:
    """The oldest inputs that wait, as stretches of jobs (job, start, stop).

    A later window opens only when this one is used up, so a batch overtakes nothing but inputs of
    its own window. After `most_by_length` batches the rest goes in the order of the table; so no
    more than these overtake an input, whatever their sizes. `size` is the one to expect.
    """

    __slots__ = ("_by_length", "_longest", "_order", "_sizes", "_stretches")

    def __init__(
        self, stretches: Sequence[tuple[Job, int, int]], size: int, most_by_length: int
    ) -> None:
        # Inputs are numbered through all stretches, from the place of the first in its job: in a
        # window of one job, which is the usual one, numbers are places. A stretch here is its job,
        # the end of its numbers, and what a number is above its place.
        job, first, end = stretches[0]
        self._stretches = [(job, end, 0)]
        sizes = [job.sizes[:end]]
        for job, start, stop in stretches[1:]:
            above, end = end - start, end + stop - start
            self._stretches.append((job, end, above))
            sizes.append(job.sizes[start:stop])
        self._sizes = np.concatenate(sizes)
        self._longest = int(self._sizes[first:].max())
        self._by_length = most_by_length
        order = np.arange(first, end)
        if most_by_length:
            lengths = np.minimum(self._sizes[first:], LONGEST_BYTES).astype(np.uint16)
            order = order[np.argsort(lengths, kind="stable")]
            # A batch has the order of the table again: its first input is its oldest.
            order[: len(order) // size * size].reshape(-1, size).sort()
        self._order: list[int] = order.tolist()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def size_bytes(self) -> int:
        """The size of the inputs."""
        return int(self._sizes[self._order].sum())

    def take(self, most: int, room_bytes: int, like_bytes: int | None) -> list[Share]:
        """Take so many inputs of similar length, fewer if they would take more bytes.

        If `like_bytes` is given, they are close to that length, and there may be none; else there
        is one at least, however large.
        """
        order = self._order
        start = self._start(most, like_bytes) if self._by_length else 0
        block = order[start : start + most]
        if self._longest * len(block) > room_bytes:
            ends = np.cumsum(self._sizes[block])
            fitting = int(np.searchsorted(ends, room_bytes, side="right"))
            block = block[: fitting or int(like_bytes is None)]
        del order[start : start + len(block)]
        if self._by_length:
            self._by_length -= 1
            if not self._by_length:
                order.sort()
        return self._shares(block)

    def _start(self, most: int, like_bytes: int | None) -> int:
        """Return where in the order of length the next batch begins."""
        order = self._order
        if like_bytes is not None:
            # Close enough, though inside of a batch the order is another.
            start = bisect_left(order, like_bytes, key=self._sizes.__getitem__)
            return max(0, min(start, len(order) - most))
        # The order as batches, of which the one with the oldest input is the next.
        firsts = order[: len(order) - most + 1 : most]
        return most * firsts.index(min(firsts)) if firsts else 0

    def _shares(self, numbers: list[int]) -> list[Share]:
        if len(self._stretches) == 1:
            return [(self._stretches[0][0], numbers)]
        numbers.sort()
        shares: list[Share] = []
        start = 0
        for job, end, above in self._stretches:
            stop = bisect_left(numbers, end, start)
            if stop > start:
                shares.append((job, [number - above for number in numbers[start:stop]]))
            start = stop
        return shares
