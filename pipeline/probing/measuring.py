"""What several requests at once do: a few settings, each measured by a wave of requests.

A wave is `at_once` requests that are sent together, and its measure is the texts that it has
answered over the time until the last answer. That is the throughput of a server that works on one
request at a time as well as of one that works on all of them.

The requests are a run's: its client and its batches. Texts differ in length, and a wave is short,
so of all batches that the texts make such are sent as are typical of them together. The
settings are those that a run comes to: larger batches where `batch_size` is `auto`, then more
requests at once, each for as long as it helps. What is left of the requests goes to the best one.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np

from pipeline.errors import Cause, ClassifyError, Retryable, RowsRejected
from pipeline.events import SmallerBatches
from pipeline.meanings import PerSecond, Seconds
from pipeline.pool.batching import Batcher, BatchSize, Job, overtaking
from pipeline.pool.search import FIRST_REQUESTS, FIRST_TEXTS, TIMEOUT_SHARE
from pipeline.pool.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.client import Client
    from pipeline.outcomes import Item
    from pipeline.pool.batching import Batch
    from pipeline.probing.asking import Findings
    from pipeline.rows import DriftGuard
    from pipeline.system.clock import Clock

# Steps are large, since requests are few: so much larger is a batch, so many times more at once.
LARGER, MORE = 4, 2
# A step must do so many times as much to be kept.
GAIN = 1.05
# A wave takes one of so many parts of the texts at most: a small table is not worth measuring.
PART = 4
# Of so many groups of batches a typical one is taken; how much it counts that they are alike.
GROUPS, ALIKE = 4_096, 0.02
# How long a server is waited for that lets nothing through.
LONGEST_WAIT_S = 30.0
# How often the best setting is measured, if the requests suffice.
WAVES = 3


@dataclass(frozen=True)
class Wave:
    """Requests that were sent together: what was answered, and how long that took."""

    texts: Annotated[int, "texts in a request"]
    at_once: Annotated[int, "requests that were sent together"]
    answered: Annotated[int, "requests that were answered"]
    seconds: Annotated[Seconds, "until the last answer"]
    first_s: Annotated[Seconds, "until the first one"]

    @property
    def per_second(self) -> PerSecond:
        """Texts a second."""
        return self.texts * self.answered / self.seconds


class Measuring:
    """Measures in waves, and notes them in `found`; the requests come to `found.most_requests`."""

    def __init__(
        self,
        found: Findings,
        client: Client,
        drift: DriftGuard,
        clock: Clock,
        texts: Sequence[Item],
    ) -> None:
        self._found = found
        self._config = found.config
        self._client = client
        self._drift = drift
        self._clock = clock
        self._texts = texts
        self._turnstile = Turnstile(found.config.rate, clock)
        self._batches: dict[int, _Batches] = {}
        # When the first 429 came, and whether one told how long to wait.
        self._throttled_at: float | None = None
        self._told_when = self._failed = False

    async def measure(self) -> None:
        """Send the waves.

        Raises StoppedEarly for another revision of the model; what else fails ends the measuring.
        """
        if self._config.rate is not None:
            await self._clock.sleep(1 / self._config.rate)  # since the last request before
        began, sent = self._clock.now(), len(self._found.asked)
        texts = most_texts(self._found)
        if self._config.batch_size == "auto":
            texts = min(texts, FIRST_TEXTS)
        best = await self._wave(texts, min(FIRST_REQUESTS, most_in_flight(self._found, texts)))
        if best is not None:
            best = await self._with_more(await self._with_larger(best))
            for _ in range(WAVES - 1):
                await self._wave(best.texts, best.at_once)
        if self._throttled_at is not None and not self._told_when:
            let_through = sum(asked.good for asked in self._found.asked[sent:])
            await self._admitted(texts, max(let_through, 1) / (self._throttled_at - began))

    async def _with_larger(self, best: Wave) -> Wave:
        while best.texts < (most := most_texts(self._found)):
            texts = min(LARGER * best.texts, most)
            at_once = min(best.at_once, most_in_flight(self._found, texts))
            if LARGER * best.seconds > TIMEOUT_SHARE * self._config.timeout_s:
                break
            wave = await self._wave(texts, at_once)
            if wave is None or wave.per_second < GAIN * best.per_second:
                break
            best = wave
        return best

    async def _with_more(self, best: Wave) -> Wave:
        while best.at_once < (most := most_in_flight(self._found, best.texts)):
            at_once = min(MORE * best.at_once, most, self._left)
            slow = MORE * best.seconds > TIMEOUT_SHARE * self._config.timeout_s
            if slow or (at_once < most and 2 * at_once < 3 * best.at_once):
                break
            wave = await self._wave(best.texts, at_once)
            if wave is None or wave.per_second < GAIN * best.per_second:
                break
            best = wave
        return best

    @property
    def _left(self) -> int:
        """How many requests may still be sent."""
        most, stated = self._found.most_requests, self._config.max_requests
        return (most if stated is None else min(most, stated)) - self._found.counted

    async def _wave(self, texts: int, at_once: int) -> Wave | None:
        """Send requests together; None if they are too few, or most of them fail."""
        if self._throttled_at is not None or self._left < at_once:
            return None
        if PART * at_once * texts > len(self._texts):
            return None
        batches = self._batches_of(texts).take(at_once)
        self._failed = len(batches) < at_once
        started = self._clock.now()
        answered_s = [each for each in await self._send(batches) if each is not None]
        if self._failed or 2 * len(answered_s) < at_once:
            return None
        took = (self._clock.now() - started, min(answered_s) - started)
        wave = Wave(texts, at_once, len(answered_s), *took)
        self._found.waves.append(wave)
        return wave

    async def _admitted(self, texts: int, most: float) -> None:
        """Find the requests a second that a server lets through which said 429, and not until when.

        It has let through `most` at most. All that was saved up is used at the first 429, so what
        it lets through afterwards has come in since: one is tried ever later, then all at once that
        are left, once so many may have come.
        """
        assert self._throttled_at is not None
        emptied_at, good, wait_s = self._throttled_at, 0, 1 / most
        batches = self._batches_of(texts)
        while self._left and wait_s < LONGEST_WAIT_S:
            sending = batches.take(self._left if good else 1)
            if not sending:
                break
            await self._clock.sleep(max(0.0, emptied_at + wait_s - self._clock.now()))
            passed_s = self._clock.now() - emptied_at
            ended = await self._send(sending)
            good += len(ended) - ended.count(None)
            if None in ended:
                most = min(most, (good + 1) / passed_s)
            if good:
                self._found.admitted = (min(good / passed_s, most), most)
            wait_s = passed_s + self._left / most if good else 2 * passed_s

    async def _send(self, batches: Sequence[list[Item]]) -> list[float | None]:
        asking = [asyncio.create_task(self._request(batch)) for batch in batches]
        await asyncio.wait(asking)
        return [task.result() for task in asking]

    async def _request(self, batch: list[Item]) -> float | None:
        """Send one request; return when it was answered, None if it failed."""
        await self._turnstile.pass_through(lambda: True)
        try:
            async with asyncio.timeout(self._config.timeout_s):
                reply = await self._client.ask(batch)
        except (TimeoutError, ClassifyError) as failure:
            self._failed |= not isinstance(failure, RowsRejected)
            if isinstance(failure, Retryable) and failure.cause is Cause.THROTTLED:
                self._throttled_at = self._throttled_at or self._clock.now()
                self._told_when |= failure.wait_s is not None
            return None
        answered = self._clock.now()
        if reply.pause_s:
            self._turnstile.pause(min(reply.pause_s, LONGEST_WAIT_S))
        self._drift.observe(reply.revision)
        return answered

    def _batches_of(self, texts: int) -> _Batches:
        if texts not in self._batches:
            batcher, size = Batcher(overtaking(self._config.concurrency)), BatchSize(texts)
            batcher.put(Job(self._texts))
            batcher.close()
            cut = [
                batch for batch in iter(lambda: batcher.take_now(size), None) if len(batch) == texts
            ]
            self._batches[texts] = _Batches(cut)
        return self._batches[texts]


class _Batches:
    """The batches that texts make, of which a few are taken that stand for all, none twice.

    They do if the mean of their texts' lengths is that of all, and the mean of their longest texts,
    which is what a server that pads works on. Of many groups that chance gives, the one is taken
    that comes closest, and whose batches differ least.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._left = list(batches)
        self._chance = np.random.default_rng(0)
        loads = [each.load for each in batches]
        lengths = [(each.length, each.longest) for each in loads]
        self._lengths = np.array(lengths, float).reshape(-1, 2)
        self._mean = np.maximum(self._lengths.mean(axis=0), 1) if lengths else 1.0

    def take(self, count: int) -> list[list[Item]]:
        """Return the items of so many batches, fewer if no more are left."""
        if count >= len(self._left):
            chosen = list(range(len(self._left)))
        else:
            groups = self._chance.integers(len(self._left), size=(GROUPS, count))
            lengths = self._lengths[groups] / self._mean
            away = np.abs(lengths.mean(axis=1) - 1).sum(axis=1)
            away += ALIKE * np.ptp(lengths, axis=1).sum(axis=1)
            ordered = np.sort(groups, axis=1)
            away[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)] = np.inf  # a batch twice
            best = int(away.argmin())
            chosen = ordered[best].tolist() if np.isfinite(away[best]) else list(range(count))
        taken = [self._left[place].items for place in chosen]
        self._lengths = np.delete(self._lengths, chosen, axis=0)
        for place in reversed(chosen):
            del self._left[place]
        return taken


def most_texts(found: Findings) -> int:
    """Return how many texts a request of a run may come to have."""
    most = min(found.config.most_texts, found.dialect.most_texts or found.config.most_texts)
    if found.told(SmallerBatches):
        most = min(most, max((asked.texts for asked in found.answered), default=most))
    return most


def most_in_flight(found: Findings, texts: int) -> int:
    """Return how many requests of so many texts a run has in flight at most."""
    most, permits = found.config.concurrency, found.permits
    return max(1, most if permits is None else min(most, permits // texts))
