"""The window: inputs that wait, sorted by length, so that a batch has inputs of similar length.

A server that pads computes each text of a batch as long as the longest. So the inputs of a batch
are neighbours in length. Short and long batches go in turn, so that those of any few seconds stand
for all: what is under way at any time is a mixture, and throughput is measured with less noise.
"""

from __future__ import annotations

from bisect import bisect_left
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.pool.batching import Job

    # Some inputs of a job, by their places in it.
    Share = tuple[Job, Sequence[int]]

# Longer texts count as equally long, which is 8,192 tokens. A model cuts them anyway, and 16 bits
# are sorted in a third of the time.
LONGEST = 2**16 - 1
# Steps of this part of a circle come closest to an even spread, wherever they end (golden ratio).
STEP = (5**0.5 - 1) / 2


class Window:
    """The oldest inputs that wait, as stretches of jobs (job, start, stop).

    A later window opens only when this one is used up, so a batch overtakes nothing but inputs of
    its own window. After `most_by_length` batches the rest goes in the order of the table; so no
    more than these overtake an input, whatever their sizes. It is sorted for batches of `size`.
    """

    def __init__(
        self, stretches: Sequence[tuple[Job, int, int]], size: int, most_by_length: int
    ) -> None:
        # Inputs are numbered through all stretches, from the place of the first in its job: in a
        # window of one job, which is the usual one, numbers are places. A stretch here is its job,
        # the end of its numbers, and what a number is above its place.
        job, first, end = stretches[0]
        self._stretches = [(job, end, 0)]
        cuts = [(job, slice(end))]
        for job, start, stop in stretches[1:]:
            above, end = end - start, end + stop - start
            self._stretches.append((job, end, above))
            cuts.append((job, slice(start, stop)))
        self._sizes = np.concatenate([job.sizes[cut] for job, cut in cuts])
        self._largest = int(self._sizes[first:].max())
        order = np.arange(first, end)
        if most_by_length:
            self._lengths = np.concatenate([job.lengths[cut] for job, cut in cuts])
            if np.ptp(self._lengths[first:]) == 0:
                most_by_length = 0
        self._by_length = most_by_length
        self._sort(order, size)

    def _sort(self, order: np.ndarray[Any, np.dtype[np.int64]], size: int) -> None:
        # Where in the order of length the next batch is, from 0 to 1.
        self._size, self._place = size, 0.0
        if self._by_length:
            lengths = np.minimum(self._lengths[order], LONGEST).astype(np.uint16)
            order = order[np.argsort(lengths, kind="stable")]
            # Inside of a batch the order is that of the table.
            order[: len(order) // size * size].reshape(-1, size).sort()
        self._order: list[int] = order.tolist()

    def split(self, size: int, usual: int) -> list[Window]:
        """Return what is left as windows for smaller batches, the oldest inputs in the first one.

        That overtakes nothing of the others, so each of them may do what is left to this one. Its
        batches have `usual` inputs on average.
        """
        most = self._by_length * max(size, usual)
        if size >= self._size or not 0 < most < len(self):
            return [self]
        order, windows = np.sort(self._order), []
        for start in range(0, len(order), most):
            window = copy(self)
            window._sort(order[start : start + most], size)  # noqa: SLF001
            windows.append(window)
        return windows

    def __len__(self) -> int:
        return len(self._order)

    @property
    def size_bytes(self) -> int:
        """The size of the inputs."""
        return int(self._sizes[self._order].sum())

    def take(self, most: int, room_bytes: int, like: int | None) -> list[Share]:
        """Take so many inputs of similar length, fewer if they would take more bytes.

        If `like` is given, they are close to that length, and there may be none; else there is one
        at least, however large.
        """
        order = self._order
        start = self._start(most, like) if self._by_length else 0
        block = order[start : start + most]
        if self._largest * len(block) > room_bytes:
            ends = np.cumsum(self._sizes[block])
            fitting = int(np.searchsorted(ends, room_bytes, side="right"))
            block = block[: fitting or int(like is None)]
        del order[start : start + len(block)]
        if self._by_length:
            self._by_length -= 1
            if not self._by_length:
                order.sort()
        return self._shares(block)

    def _start(self, most: int, like: int | None) -> int:
        """Return where in the order of length the next batch begins."""
        order = self._order
        if like is not None:
            # Close enough, though inside of a batch the order is another.
            start = bisect_left(order, like, key=self._lengths.__getitem__)
            return max(0, min(start, len(order) - most))
        start = most * int(self._place * (len(order) // most))
        self._place = (self._place + STEP) % 1
        return start

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
