"""A closed loop of a client and a server in virtual time, as events: a minute takes milliseconds.

It stands for no network and no HTTP: what is tested is what the search makes of times. The costs
are those of benchmarks/simulated.mjs, and so is the spread of lengths (benchmarks/texts.py).
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from math import exp
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import Cause
from pipeline.pool.lengths import Load
from pipeline.pool.search import Search, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Tokens of texts from the shortest to the longest, a batch being a stretch of them.
QUANTILES = 4096
TOKENS = [
    max(1, min(480, round(37 * exp(0.9 * NormalDist().inv_cdf((i + 0.5) / QUANTILES)))))
    for i in range(QUANTILES)
]
MEAN_TOKENS = sum(TOKENS) / QUANTILES
BYTES_A_TOKEN = 5.5
ROUND_TRIP_S = 0.002
# A window of the batcher at a concurrency of 32.
BATCHES = 64
MOST = Setting(512, 32)


class Request(NamedTuple):
    """The texts of a request, their tokens in all, the most of one, and when it was sent.

    `together` is True if the server is told to work on them as one batch.
    """

    texts: int
    tokens: float
    longest: int
    at: float
    together: bool


class Padded:
    """One request at a time, which takes as long as if all texts were as long as the longest.

    `capacity` is by how much it is faster at a time. It tells how many texts a request may have,
    and how many permits it has, one for each text that it holds; the other servers are made of it.
    """

    # What a text takes at best, beside its tokens, and for each of them.
    text_s, token_s = 0.008 / 512, 0.00001
    capacity: Callable[[float], float] = staticmethod(lambda _now: 1.0)
    most_texts: int | None = None
    permits: int | None = None

    def __init__(self) -> None:
        self.free = self.permits or 0

    def cost_s(self, batch: list[Request]) -> float:
        (one,) = batch
        return 0.008 + 0.00001 * one.texts * one.longest

    def take(self, waiting: deque[Request]) -> list[Request]:
        """Return what is worked on together."""
        return [waiting.popleft()]

    def refusal(self, request: Request, now: float) -> str | None:
        """Return why a request is refused at once: `size`, or `load`."""
        if self.permits is not None:
            if request.texts > self.free:
                return "load"
            self.free -= request.texts
        return None


class Sequential(Padded):
    """Works through a list text by text."""

    text_s = 0.004

    def cost_s(self, batch: list[Request]) -> float:
        (one,) = batch
        return 0.003 + 0.004 * one.texts + 0.00001 * one.tokens


class Toolkit(Sequential):
    """The same, unless it is told to pad the texts into one batch."""

    text_s = Padded.text_s

    def cost_s(self, batch: list[Request]) -> float:
        return Padded.cost_s(self, batch) if batch[0].together else super().cost_s(batch)


class Dynamic(Padded):
    """Gathers up to 16,384 tokens of any requests; a request takes a permit a text."""

    text_s, token_s = 0.0, 0.006 / 16_384 + 0.000008
    most_texts, permits = 32, 512

    def cost_s(self, batch: list[Request]) -> float:
        return 0.006 + 0.000008 * sum(each.tokens for each in batch)

    def take(self, waiting: deque[Request]) -> list[Request]:
        batch = [waiting.popleft()]
        room = 16_384 - batch[0].tokens
        while waiting and waiting[0].tokens <= room:
            batch.append(waiting.popleft())
            room -= batch[-1].tokens
        return batch


class Knee(Padded):
    """Does most at 128 texts, and has no memory for more than 256."""

    token_s = 0.0
    knee, beyond_s = 128, 0.0012

    def cost_s(self, batch: list[Request]) -> float:
        texts = batch[0].texts
        return 0.02 + 0.0004 * min(texts, self.knee) + self.beyond_s * max(0, texts - self.knee)

    def refusal(self, request: Request, now: float) -> str | None:
        return "size" if request.texts > 256 else None


class Serverless(Padded):
    """Any number at once, 10 requests a second; beyond that, a 429."""

    token_s = 0.0
    allowance, seen_at = 10.0, 0.0

    def refusal(self, request: Request, now: float) -> str | None:
        self.allowance = min(10.0, self.allowance + 10 * (now - self.seen_at))
        self.seen_at = now
        if self.allowance < 1:
            return "load"
        self.allowance -= 1
        return None


@dataclass
class Loop:
    """A client that keeps as many requests in flight as its setting says, and what it did.

    `fixed` is a setting instead of a search, and `fixed_search` one to which little can be added.
    `order` is that of the lengths of batches: `balanced`,
    `shuffled` as those of a window are, or `random`. `history` has each setting with its time,
    `done` what was answered when.
    """

    server: Padded
    fixed: Setting | None = None
    order: str = "shuffled"
    seed: int = 0
    most: Setting = MOST
    fixed_search: bool = False
    t: float = 0.0
    history: list[tuple[float, Setting]] = field(default_factory=list)
    done: list[tuple[float, float]] = field(default_factory=list)
    sent: list[Request] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    peak: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._places = self._order()
        self._sums = [0]
        for tokens in TOKENS:
            self._sums.append(self._sums[-1] + tokens)
        self._events: list[tuple[float, int, str, Request]] = []
        self._number = count()
        self._waiting: deque[Request] = deque()
        self._busy = False
        self._in_flight = 0
        self._paused_until = 0.0
        self.setting = self.fixed or Setting(0, 0)
        self.search: Search | None = None
        if self.fixed is None:
            self.search = Search(
                self.most,
                120.0,
                self,  # type: ignore[arg-type]
                self._apply,
                fixed=self.fixed_search,
            )
            if self.server.most_texts or self.server.permits:
                self.search.cap(self.server.most_texts, self.server.permits)

    def now(self) -> float:
        return self.t

    def _apply(self, setting: Setting, _best: Setting) -> None:
        self.setting = setting
        self.history.append((self.t, setting))

    def _order(self) -> Iterator[float]:
        """Yield where in the order of lengths each batch stands, from 0 to 1."""
        if self.order == "random":
            while True:
                yield self._random.random()
        if self.order == "balanced":
            yield from ((i * 0.6180339887 + self.seed / 7) % 1 for i in count())
        while True:
            places = [(i + 0.5) / BATCHES for i in range(BATCHES)]
            self._random.shuffle(places)
            yield from places

    def _request(self, texts: int) -> Request:
        span = QUANTILES // BATCHES
        start = int(next(self._places) * (QUANTILES - span))
        tokens = (self._sums[start + span] - self._sums[start]) / span
        longest = TOKENS[start + span - 1] if texts > 1 else round(tokens)
        return Request(texts, texts * tokens, longest, self.t, self.setting.together)

    def _at(self, seconds: float, what: str, request: Request) -> None:
        heapq.heappush(self._events, (self.t + seconds, next(self._number), what, request))

    def run(self, until: float) -> Loop:
        """Go on until this time."""
        while self.t < until:
            while self._in_flight < self.setting.requests and self.t >= self._paused_until:
                self._send()
            self.t, _, what, request = heapq.heappop(self._events)
            getattr(self, f"_{what}")(request)
        return self

    def _send(self) -> None:
        request = self._request(self.setting.texts)
        self.sent.append(request)
        self._in_flight += 1
        self.peak = max(self.peak, self._in_flight)
        if self.search:
            self.search.sent()
        if isinstance(self.server, Serverless):  # the turnstile of the pool has found the rate
            self._paused_until = max(self.t, self._paused_until) + 1 / 9.8
            self._at(self._paused_until - self.t, "woke", request)
        self._at(ROUND_TRIP_S, "arrived", request)

    def _woke(self, _request: Request) -> None:
        pass

    def _arrived(self, request: Request) -> None:
        refusal = self.server.refusal(request, self.t)
        if refusal is not None:
            self._at(ROUND_TRIP_S, f"refused_for_{refusal}", request)
        elif isinstance(self.server, Serverless):
            self._at(0.05 + 0.001 * request.texts, "answered", request)
        else:
            self._waiting.append(request)
            self._work()

    def _work(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            batch = self.server.take(self._waiting)
            seconds = self.server.cost_s(batch) / self.server.capacity(self.t)
            for request in batch:
                self._at(seconds, "answered", request)
            self._at(seconds, "finished", batch[0])

    def _finished(self, _request: Request) -> None:
        self._busy = False
        self._work()

    def _ended(self) -> None:
        self._in_flight -= 1
        if self.search:
            self.search.ended()

    def _answered(self, request: Request) -> None:
        self.server.free += request.texts
        server = self.server
        work_s = server.text_s * request.texts + server.token_s * request.tokens
        self.done.append((self.t, work_s / (server.text_s + server.token_s * MEAN_TOKENS)))
        self._ended()
        if self.search:
            size = round(request.tokens * BYTES_A_TOKEN)
            load = Load(request.texts, size, request.tokens, request.longest)
            self.search.answered(load, self.t - request.at)

    def _refused_for_size(self, request: Request) -> None:
        self.refused.append(self.t)
        self._ended()
        if self.search:
            self.search.refused(request.texts)

    def _refused_for_load(self, _request: Request) -> None:
        self.refused.append(self.t)
        self._ended()
        self._paused_until = self.t + 0.5
        self._at(0.5, "woke", _request)
        if self.search:
            throttles = isinstance(self.server, Serverless)
            cause = Cause.THROTTLED if throttles else Cause.OVERLOADED
            self.search.disturbed(cause, _request.at)

    def rate(self, since: float, until: float) -> float:
        """Return the texts answered a second, from one answer to another.

        They are counted as texts of the mean length: which ones come in a minute is chance.
        """
        done = [each for each in self.done if since <= each[0] < until]
        return sum(texts for at, texts in done if at > done[0][0]) / (done[-1][0] - done[0][0])
