"""Batching: the inputs of several chunks become requests of `batch_size` inputs.

A batch is made of shares of jobs, so that batches run on over the borders of chunks: the number of
requests is the ceiling of inputs over batch size, however the input was cut into chunks. Its inputs
are of similar length, see `window`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from operator import itemgetter
from typing import TYPE_CHECKING, cast

import numpy as np

from pipeline.pool.lengths import Load, lengths_of, sizes_of
from pipeline.pool.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from pipeline.outcomes import Arrived, Item, Outcome, Provisional
    from pipeline.pool.lengths import Sizes
    from pipeline.pool.window import Share

# TEI refuses bodies over 2 MB; this leaves room for JSON's escapes and its frame.
MAX_REQUEST_BYTES = 1_900_000
# So many good requests before a larger one is tried: twice as many after each refusal.
FIRST_PATIENCE = 32
LONGEST_PATIENCE = 2_048
# So many batches for each request in flight may overtake an input: the more, the closer their
# inputs are in length, and the longer a chunk waits for its last one.
# More of them bring no inputs together that are closer by anything that counts.
OVERTAKING, MOST_OVERTAKING = 2, 256
# A text that every model of every language takes.
PLAIN = "Good."


def overtaking(concurrency: int) -> int:
    """Return how many batches may overtake an input, with so many requests in flight."""
    return min(OVERTAKING * concurrency, MOST_OVERTAKING)


@dataclass(eq=False)
class Job:
    """The inputs of one chunk that must be asked; `done` is set when each has an outcome.

    `arrived` gets the outcomes, request by request, and `provisional` those that cannot be believed
    yet. If the pool stops before, `failure` says why. `sizes` are the bytes of each input.
    """

    items: Sequence[Item]
    arrived: Arrived = lambda _places, _outcomes, _revision: True
    provisional: Provisional | None = None
    failure: BaseException | None = None
    done: asyncio.Event = field(default_factory=asyncio.Event)
    sizes: Sizes = field(init=False)
    open_items: int = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = sizes_of(self.items)
        self.open_items = len(self.items)

    @cached_property
    def lengths(self) -> Sizes:
        """About how long a model finds each input; nobody asks if each is sent alone."""
        return lengths_of(self.items, self.sizes)


class Batch:
    """The inputs of one request, as shares (job, places of its inputs)."""

    __slots__ = ("_count", "passed_on", "shares")

    def __init__(self, shares: Sequence[Share], passed_on: int = 0) -> None:
        self.shares = shares
        # How often one of several servers passed it on after it had failed there.
        self.passed_on = passed_on
        self._count = sum([len(places) for _, places in shares])

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """The size of the inputs."""
        return sum([int(job.sizes[places].sum()) for job, places in self.shares])

    @property
    def load(self) -> Load:
        """What a server has to do for the inputs."""
        lengths = np.concatenate([job.lengths[places] for job, places in self.shares])
        length, longest = float(lengths.sum()), float(lengths.max())
        return Load(len(self), self.size_bytes, length, longest)

    @property
    def is_of_pairs(self) -> bool:
        """True if each input is a text and its pair."""
        job, places = self.shares[0]
        return type(job.items[places[0]]) is not str

    @property
    def items(self) -> list[Item]:
        """The inputs, in order."""
        found: list[Item] = []
        for job, places in self.shares:
            items = job.items
            found += [items[place] for place in places]
        return found

    def part(self, position: int) -> Batch:
        """Return the one input at a position, as a batch of its own."""
        for job, places in self.shares:
            if position < len(places):
                return Batch([(job, [places[position]])])
            position -= len(places)
        raise IndexError(position)

    def without(self, positions: Collection[int]) -> Batch:
        """Return the other inputs."""
        kept = [self.part(i).shares[0] for i in range(len(self)) if i not in positions]
        return Batch(kept) if positions else self

    def halves(self) -> tuple[Batch, Batch]:
        """Split in two, to find the row at fault."""
        half = len(self) // 2
        left, right = [], []
        for job, places in self.shares:
            if half > 0:
                left.append((job, places[:half]))
            if half < len(places):
                right.append((job, places[max(half, 0) :]))
            half -= len(places)
        return Batch(left, self.passed_on), Batch(right, self.passed_on)

    def settle(self, outcomes: Sequence[Outcome], revision: str | None) -> bool:
        """Hand the outcomes of one answer to the jobs; False if the run ends with this answer."""
        assert len(outcomes) == len(self)
        at, taken = 0, True
        for job, places in self.shares:
            count = len(places)
            taken &= job.arrived(places, outcomes[at : at + count], revision)
            at += count
            job.open_items -= count
            if not job.open_items:
                job.done.set()
        return taken

    def keep(self, outcomes: Sequence[Outcome], revision: str | None) -> None:
        """Keep answers that cannot be believed yet."""
        at = 0
        for job, places in self.shares:
            if job.provisional is not None:
                job.provisional.keep(places, outcomes[at : at + len(places)], revision)
            at += len(places)

    async def kept(self) -> list[Outcome] | None:
        """Return the answers that an earlier attempt kept; None unless it did for all inputs."""
        found: list[Outcome | None] = []
        for job, places in self.shares:
            if job.provisional is None:
                return None
            found += await job.provisional.earlier(places)
        return None if None in found else cast("list[Outcome]", found)


def plain_batch(*texts: str, pair: bool) -> Batch:
    """Return inputs that no model refuses, or the texts that are given; nobody waits for them."""
    items = [(text, text) if pair else text for text in texts or (PLAIN,)]
    return Batch([(Job(items), range(len(items)))])


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
        # Hears of each size that was refused.
        self.on_refusal: Callable[[int], None] = lambda _size: None

    def cap(self, most: int) -> None:
        """Take no more than this from now on: the server told its limit."""
        self._most = min(self._most, most)
        self.now = min(self.now, self._most)

    def aim(self, texts: int) -> None:
        """Take so many from now on, as a search says."""
        self._most = self.now = texts

    def take(self, waiting: int) -> int:
        """Return the size of the next batch, given how many inputs wait."""
        larger = min(2 * self.now, self._most)
        if self._good < self._patience or waiting < larger:
            return self.now
        self._good, self._trial = 0, larger
        return larger

    def answered(self, size: int) -> None:
        """Learn from a batch that was answered whole."""
        if self.now < size <= self._most:
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
        self.on_refusal(size)
        return sinks


class Batcher:
    """The queue between chunks and workers: jobs go in, batches of full size come out.

    What is left of the newest job waits for the next one; it goes out as a smaller batch only
    after `flush`. As many inputs as `most_overtaking` batches of the largest size have overtake an
    input at most, in favour of others whose lengths go together. `outstanding` batches were taken
    and are not finished.
    """

    def __init__(self, most_overtaking: int) -> None:
        self._most_overtaking = most_overtaking
        # The inputs that wait: the oldest in windows, then stretches (job, start, stop). Before
        # all of them go batches that a taker was given and, being cancelled, did not take.
        self._returned: list[Batch] = []
        self._windows: list[Window] = []
        self._stretches: deque[tuple[Job, int, int]] = deque()
        self._waiting_items = 0
        # Of all who have taken a batch.
        self._sizes: set[BatchSize] = set()
        # Those who wait for a batch, by what they take; each has its number in the line of all.
        self._takers: dict[BatchSize, deque[tuple[int, asyncio.Future[Batch | None]]]] = {}
        self._numbers = count()
        self._flush_items = 0
        self.outstanding = 0
        self._closed = False

    def put(self, job: Job) -> None:
        """Add the inputs of a job."""
        if job.items:
            self._stretches.append((job, 0, len(job.items)))
            self._waiting_items += len(job.items)
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
        return bool(self._waiting_items or self._returned)

    async def take(self, size: BatchSize) -> Batch | None:
        """Wait for the next batch; None once all is taken and the batcher is closed.

        Each server has a `size` of its own. Each batch that is taken is ended with `finished`.
        """
        if not any(self._takers.values()) and (batch := self.take_now(size)) is not None:
            return batch
        taker: asyncio.Future[Batch | None] = asyncio.get_running_loop().create_future()
        self._takers.setdefault(size, deque()).append((next(self._numbers), taker))
        self._hand_out()
        try:
            return await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled() and (batch := taker.result()):
                self._returned.append(batch)
                self.outstanding -= 1
                self._hand_out()
            raise

    def take_now(self, size: BatchSize) -> Batch | None:
        """Return a batch that is due; None if there is none."""
        if not self.is_due(size):
            return None
        self.outstanding += 1
        return self._returned.pop() if self._returned else self._cut(size)

    def give_back(self, batch: Batch) -> None:
        """Have a batch, or a part of one, taken by somebody else."""
        self._returned.append(batch)
        self._hand_out()

    def finished(self) -> None:
        """Say that a batch that was taken has all its outcomes."""
        self.outstanding -= 1
        if self._waiting_items:
            self._hand_out()  # smaller batches may be asked for by now

    def is_due(self, size: BatchSize) -> bool:
        """Return True if there is a batch to hand out."""
        return bool(
            self._waiting_items >= size.now
            or (self._waiting_items and (self._closed or self._flush_items))
            or self._returned
            or self._waiting_bytes > MAX_REQUEST_BYTES
        )

    @property
    def _waiting_bytes(self) -> int:
        windows_bytes = sum([window.size_bytes for window in self._windows])
        return windows_bytes + sum([int(job.sizes[a:b].sum()) for job, a, b in self._stretches])

    def _hand_out(self) -> None:
        """Hand batches to those who have waited longest, of those who take what is there.

        It takes no longer the more of them wait: there may be thousands.
        """
        while served := [
            (takers[0][0], size)
            for size, takers in self._takers.items()
            if takers and (self._closed or self.is_due(size))
        ]:
            _, size = min(served, key=itemgetter(0))
            _, taker = self._takers[size].popleft()
            if not taker.done():
                taker.set_result(self.take_now(size))

    def _cut(self, wanted: BatchSize) -> Batch:
        """Take a batch's number of inputs, fewer if their bytes would exceed a request."""
        size = wanted.take(self._waiting_items)
        self._sizes.add(wanted)
        batch = Batch(self._open_window().take(size, MAX_REQUEST_BYTES, None))
        while len(batch) < size and len(batch) < self._waiting_items and not self._windows[0]:
            window = self._open_window()
            job, places = batch.shares[-1]
            room, room_bytes = size - len(batch), MAX_REQUEST_BYTES - batch.size_bytes
            like = int(job.lengths[places[-1]])
            batch = Batch([*batch.shares, *window.take(room, room_bytes, like)])
        self._waiting_items -= len(batch)
        if self._flush_items:
            self._flush_items = max(0, self._flush_items - len(batch))
        return batch

    @property
    def _largest(self) -> int:
        """The size of the largest batches: several servers may each have another."""
        return max([each.now for each in self._sizes])

    def _open_window(self) -> Window:
        """Return the window that the next inputs are in."""
        if self._windows and not self._windows[0]:
            del self._windows[0]
        if not self._windows:
            self._windows.append(self._next_window())
        self._windows[:1] = self._windows[0].split(self._largest)
        return self._windows[0]

    def _next_window(self) -> Window:
        """Move the oldest inputs into a window of whole batches."""
        size = self._largest
        most = self._most_overtaking * size
        room = min(sum([b - a for _, a, b in self._stretches]), most)
        if room > size:
            room -= room % size  # what is left over waits with newer inputs, being the newest
        # Of a single batch nothing is left to choose from, and a single text is as long as itself.
        by_length = self._most_overtaking if room > size > 1 else 0
        stretches = []
        while room:
            job, start, stop = self._stretches.popleft()
            cut = min(stop, start + room)
            stretches.append((job, start, cut))
            room -= cut - start
            if cut < stop:
                self._stretches.appendleft((job, cut, stop))
        return Window(stretches, size, by_length)
