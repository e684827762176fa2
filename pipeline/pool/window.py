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
    Numbers = np.ndarray[Any, np.dtype[np.int64]]

# Longer texts count as equally long, which is 8,192 tokens. A model cuts them anyway, and 16 bits
# are sorted in a third of the time.
LONGEST = 2**16 - 1
# Steps of this part of a circle come closest to an even spread, wherever they end (golden ratio).
STEP = (5**0.5 - 1) / 2


class Window:
    """The oldest inputs that wait, as stretches of jobs (job, start, stop).

    A later window opens only when this one is used up, so a batch overtakes nothing but inputs of
    its own window. After `most_by_length` batches of `size` the rest goes in the order of the
    table; so no more than these overtake an input. Smaller batches count as a part of one.
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
        if most_by_length:
            self._lengths = np.concatenate([job.lengths[cut] for job, cut in cuts])
            if np.ptp(self._lengths[first:]) == 0:
                most_by_length = 0
        self._by_length: float = most_by_length
        self._sort(np.arange(first, end), size)

    def _sort(self, numbers: Numbers, size: int) -> None:
        # `_place` is where in the order of length the next batch is, from 0 to 1.
        self._size, self._place = size, 0.0
        if self._by_length:
            lengths = np.minimum(self._lengths[numbers], LONGEST).astype(np.uint16)
            numbers = numbers[np.argsort(lengths, kind="stable")]
            # Inside of a batch the order is that of the table.
            numbers[: len(numbers) // size * size].reshape(-1, size).sort()
        self._close_up(numbers)

    def _close_up(self, numbers: Numbers) -> None:
        """Take an order in which all inputs are left."""
        self._order, self._count = numbers, len(numbers)
        self._left = np.ones(len(numbers), dtype=bool)
        # Where batches of `_most` inputs may begin, so that others are not cut in pieces.
        self._most, self._starts = 0, [0]

    def split(self, size: int) -> list[Window]:
        """Return what is left as windows for smaller batches, the oldest inputs in the first one.

        That overtakes nothing of the others, so each of them may do what is left to this one.
        """
        if size >= self._size or not self._by_length:
            return [self]
        most = int(self._by_length) * size
        if not most:
            self._end_by_length()
            return [self]
        order, windows = np.sort(self._remaining), []
        for start in range(0, len(order), most):
            window = copy(self)
            window._sort(order[start : start + most], size)  # noqa: SLF001
            windows.append(window)
        return windows

    def __len__(self) -> int:
        return self._count

    @property
    def _remaining(self) -> Numbers:
        return self._order[self._left]

    @property
    def size_bytes(self) -> int:
        """The size of the inputs."""
        return int(self._sizes[self._remaining].sum())

    def take(self, most: int, room_bytes: int, like: int | None) -> list[Share]:
        """Take so many inputs of similar length, fewer if they would take more bytes.

        If `like` is given, they are close to that length, and there may be none; else there is one
        at least, however large.
        """
        if not self._by_length:
            start = len(self._order) - self._count
        elif like is None:
            start = self._start(most)
        else:
            start = self._start_like(most, like)
        block = self._order[start : start + most]
        if self._largest * len(block) > room_bytes:
            ends = np.cumsum(self._sizes[block])
            fitting = int(np.searchsorted(ends, room_bytes, side="right"))
            block = block[: fitting or int(like is None)]
        self._left[start : start + len(block)] = False
        self._count -= len(block)
        if self._by_length and len(block):
            # What completes a batch of the window before is part of a whole one.
            part = 1.0 if like is not None else min(1.0, most / self._size)
            self._by_length = max(0.0, self._by_length - part)
            if not self._by_length:
                self._end_by_length()
        return self._shares(block.tolist())

    def _end_by_length(self) -> None:
        """Let the rest go in the order of the table."""
        self._by_length = 0.0
        self._close_up(np.sort(self._remaining))

    def _start(self, most: int) -> int:
        """Return where in the order of length the next batch begins."""
        if most != self._most or not self._starts:
            self._most, self._starts = most, self._starts_of(most)
        place, self._place = self._place, (self._place + STEP) % 1
        if self._starts:
            return self._starts.pop(int(place * len(self._starts)))
        self._close_up(self._remaining)
        return most * int(place * (self._count // most))

    def _starts_of(self, most: int) -> list[int]:
        """Return where whole batches begin of which all is left.

        Those come first that are of a larger one of which something was taken.
        """
        whole = _all_in(self._left, most)
        times = self._size // most
        if times > 1:
            larger = np.repeat(_all_in(whole, times), times)
            broken = whole.copy()
            broken[: len(larger)] &= ~larger
            whole = broken if broken.any() else whole
        starts: list[int] = (np.flatnonzero(whole) * most).tolist()
        return starts

    def _start_like(self, most: int, like: int) -> int:
        """Return where inputs begin that are about so long."""
        self._close_up(self._remaining)
        # Close enough, though inside of a batch the order is another.
        start = bisect_left(self._order, like, key=self._lengths.__getitem__)
        return max(0, min(start, self._count - most))

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


def _all_in(marks: np.ndarray[Any, np.dtype[np.bool_]], most: int) -> Any:
    """Return for each `most` marks in a row, of whole ones, if all are set."""
    return marks[: len(marks) // most * most].reshape(-1, most).all(axis=1)
