"""Batching: the inputs of several chunks become requests of `batch_size` inputs.

A batch is made of spans of jobs, so that batches run on over the borders of chunks: the number of
requests is the ceiling of inputs over batch size, however the input was cut into chunks.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from pipeline.outcomes import Arrived, Item, Outcome, Provisional

# TEI refuses bodies over 2 MB; this leaves room for JSON's escapes and its frame.
MAX_REQUEST_BYTES = 1_900_000
# So many good requests before a larger one is tried: twice as many after each refusal.
FIRST_PATIENCE = 32
LONGEST_PATIENCE = 2_048
# A text that every model of every language takes.
PLAIN = "Good."


@dataclass(eq=False)
class Job:
    """The inputs of one chunk that must be asked; `done` is set when each has an outcome.

    `arrived` gets the outcomes, request by request, and `provisional` those that cannot be believed
    yet. If the pool stops before, `failure` says why.
    """

    items: Sequence[Item]
    arrived: Arrived = lambda _first, _outcomes, _revision: True
    provisional: Provisional | None = None
    failure: BaseException | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    sizes: list[int] = field(init=False)
    open_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = list(accumulate(_sizes_bytes(self.items), initial=0))
        self.open_items = len(self.items)


def size_bytes(item: Item) -> int:
    """Bound from above the bytes of an input in UTF-8, without encoding it.

    ASCII is counted exactly, other text as four bytes a character.
    """
    if type(item) is str:
        return len(item) if item.isascii() else 4 * len(item)
    return sum(map(size_bytes, item))


def _sizes_bytes(items: Sequence[Item]) -> Iterator[int]:
    """Return `size_bytes` of each input, at once if all are ASCII."""
    if set(map(type, items)) == {str} and all(map(str.isascii, cast("Sequence[str]", items))):
        return map(len, items)
    return map(size_bytes, items)


class Batch:
    """The inputs of one request, as spans (job, start, stop)."""

    __slots__ = ("_count", "spans")

    def __init__(self, spans: tuple[tuple[Job, int, int], ...]) -> None:
        self.spans = spans
        self._count = sum([stop - start for _, start, stop in spans])

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """The size of the inputs, bounded from above."""
        return sum(job.sizes[stop] - job.sizes[start] for job, start, stop in self.spans)

    @property
    def items(self) -> list[Item]:
        """The inputs, in order."""
        if len(self.spans) == 1:
            job, start, stop = self.spans[0]
            return list(job.items[start:stop])
        return [item for job, start, stop in self.spans for item in job.items[start:stop]]

    def part(self, position: int) -> Batch:
        """Return the one input at a position, as a batch of its own."""
        for job, start, stop in self.spans:
            if position < stop - start:
                return Batch(((job, start + position, start + position + 1),))
            position -= stop - start
        raise IndexError(position)

    def without(self, positions: Collection[int]) -> Batch:
        """Return the other inputs."""
        kept = [self.part(i).spans[0] for i in range(len(self)) if i not in positions]
        return Batch(tuple(kept)) if positions else self

    def halves(self) -> tuple[Batch, Batch]:
        """Split in two, to find the row at fault."""
        half = len(self) // 2
        left, right = [], []
        for job, start, stop in self.spans:
            cut = min(stop, start + half)
            half -= cut - start
            if cut > start:
                left.append((job, start, cut))
            if stop > cut:
                right.append((job, cut, stop))
        return Batch(tuple(left)), Batch(tuple(right))

    def settle(self, outcomes: Sequence[Outcome], revision: str | None) -> bool:
        """Hand the outcomes of one answer to the jobs; False if the run ends with this answer."""
        assert len(outcomes) == len(self)
        at, taken = 0, True
        for job, start, stop in self.spans:
            count = stop - start
            taken &= job.arrived(start, outcomes[at : at + count], revision)
            at += count
            job.open_items -= count
            if not job.open_items:
                job.done.set()
        return taken

    def keep(self, outcomes: Sequence[Outcome], revision: str | None) -> None:
        """Keep answers that cannot be believed yet."""
        at = 0
        for job, start, stop in self.spans:
            if job.provisional is not None:
                job.provisional.keep(start, outcomes[at : at + stop - start], revision)
            at += stop - start

    async def kept(self) -> list[Outcome] | None:
        """Return the answers that an earlier attempt kept; None unless it did for all inputs."""
        found: list[Outcome | None] = []
        for job, start, stop in self.spans:
            if job.provisional is None:
                return None
            found += await job.provisional.earlier(start, stop)
        return None if None in found else cast("list[Outcome]", found)


def plain_batch(like: Batch) -> Batch:
    """Return one input that no model refuses, a pair if the batch's are; nobody waits for it."""
    item = PLAIN if type(like.items[0]) is str else (PLAIN, PLAIN)
    return Batch(((Job([item]), 0, 1),))


class BatchSize:
    """How many inputs a request carries: `most`, or fewer after so many were refused together.

    After a run of good requests one of twice the size is tried, so that a refusal by chance
    (another client's load on the GPU) costs speed for a while only, and a limit of the server is
    tried again ever less often.
    """

    def __init__(self, most: int) -> None:
        self._most = self.now = most
        self._good = self._trial = 0
        self._patience = FIRST_PATIENCE

    def cap(self, most: int) -> None:
        """Take no more than this from now on: the server told its limit."""
        self._most = min(self._most, most)
        self.now = min(self.now, self._most)

    def take(self, waiting: int) -> int:
        """Return the size of the next batch, given how many inputs wait."""
        larger = min(2 * self.now, self._most)
        if self._good < self._patience or waiting < larger:
            return self.now
        self._good, self._trial = 0, larger
        return larger

    def answered(self, size: int) -> None:
        """Learn from a batch that was answered whole."""
        if size > self.now:
            self.now = size
        elif size == self.now < self._most:
            self._good += 1

    def refused(self, size: int) -> bool:
        """Learn from a batch that was refused though its halves were not; True if size sinks."""
        smaller = max(1, size // 2)
        sinks = smaller < self.now
        # The other refusals of one moment say nothing new.
        if sinks or size == self._trial:
            self._good = self._trial = 0
            self._patience = min(2 * self._patience, LONGEST_PATIENCE)
            self.now = min(self.now, smaller)
        return sinks


class Batcher:
    """The queue between chunks and workers: jobs go in, batches of full size come out.

    What is left of the newest job waits for the next one; it goes out as a smaller batch only
    after `flush`. `outstanding` batches were taken and are not finished.
    """

    def __init__(self, batch_size: int) -> None:
        self.size = BatchSize(batch_size)
        self._spans: deque[tuple[Job, int, int]] = deque()
        self._takers: deque[asyncio.Future[Batch | None]] = deque()
        self._waiting_items = self._waiting_bytes = 0
        self._flush_items = 0
        self.outstanding = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Add the inputs of a job."""
        if job.items:
            self._spans.append((job, 0, len(job.items)))
            self._waiting_items += len(job.items)
            self._waiting_bytes += job.sizes[-1]
            self._hand_out()

    def close(self) -> None:
        """Say that no more jobs come: every `take` returns None once all is taken."""
        self._closed = True
        self._hand_out()

    def flush(self) -> None:
        """Let out what waits now, without waiting for a full batch."""
        self._flush_items = self._waiting_items
        self._hand_out()

    @property
    def waiting(self) -> bool:
        """True if inputs wait that no batch took."""
        return self._waiting_items > 0

    async def take(self) -> Batch | None:
        """Wait for the next batch; None once all is taken and the batcher is closed.

        Each batch is given back with `finished`.
        """
        if not self._takers and (batch := self.take_now()) is not None:
            return batch
        taker: asyncio.Future[Batch | None] = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        self._hand_out()
        try:
            return await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled() and (batch := taker.result()):
                self._spans.extendleft(reversed(batch.spans))
                self._waiting_items += len(batch)
                self._waiting_bytes += batch.size_bytes
                self.outstanding -= 1
            raise

    def take_now(self) -> Batch | None:
        """Return a batch that is due; None if there is none."""
        return self._cut() if self.due else None

    def finished(self) -> None:
        """Say that a batch that was taken has all its outcomes."""
        self.outstanding -= 1

    @property
    def due(self) -> bool:
        """True if there is a batch to hand out."""
        return bool(
            self._waiting_items >= self.size.now
            or self._waiting_bytes > MAX_REQUEST_BYTES
            or (self._spans and (self._closed or self._flush_items))
        )

    def _hand_out(self) -> None:
        while self._takers:
            if self._takers[0].done():
                self._takers.popleft()
            elif self.due:
                self._takers.popleft().set_result(self._cut())
            elif self._closed:
                self._takers.popleft().set_result(None)
            else:
                return

    def _cut(self) -> Batch:
        """Take a batch's number of inputs, fewer if their bytes would exceed a request."""
        spans: list[tuple[Job, int, int]] = []
        size = self.size.take(self._waiting_items)
        room, room_bytes = size, MAX_REQUEST_BYTES
        while room and self._spans:
            job, start, stop = self._spans[0]
            cut = min(stop, start + room)
            while cut > start and job.sizes[cut] - job.sizes[start] > room_bytes:
                cut -= 1
            if cut == start:
                if spans:
                    break
                cut = start + 1  # an input that is too large on its own goes alone
            spans.append((job, start, cut))
            room -= cut - start
            room_bytes -= job.sizes[cut] - job.sizes[start]
            if cut < stop:
                self._spans[0] = (job, cut, stop)
                break
            self._spans.popleft()
        taken = size - room
        self._waiting_items -= taken
        self._waiting_bytes -= MAX_REQUEST_BYTES - room_bytes
        if self._flush_items:
            self._flush_items = max(0, self._flush_items - taken)
        self.outstanding += 1
        return Batch(tuple(spans))
