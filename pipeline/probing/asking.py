"""What a probe asks, and what it finds: a handful of requests by the pool that a run has."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.client import Client
from pipeline.errors import (
    Cause,
    ClassifyError,
    EndpointRefused,
    Retryable,
    RowsRejected,
    StoppedEarly,
)
from pipeline.events import Notice, WaitEnded, Waiting, Why
from pipeline.outcomes import RowError
from pipeline.pool import Pool
from pipeline.probing.measuring import Measuring
from pipeline.rows import DriftGuard, Revision
from pipeline.system.threads import Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from yarl import URL

    from pipeline.client import Target
    from pipeline.client.client import Reply
    from pipeline.client.dialects.base import Dialect
    from pipeline.client.token import Token
    from pipeline.client.wire import Told
    from pipeline.config import RunConfig
    from pipeline.events import Event, Observer
    from pipeline.outcomes import Answer, Item, Outcome
    from pipeline.probing.measuring import Wave
    from pipeline.system.clock import Clock

N = TypeVar("N", bound=Notice)

# The most that a probe sends if it does not measure what several requests at once do; a loading
# model is asked more often, until it answers.
MOST_REQUESTS = 8
# After so many failures in a row a run would wait for the endpoint, and a probe says that it is
# down.
MOST_FAILURES = 3
_DOWN = (Cause.CONNECTION, Cause.SERVER_ERROR, Cause.OVERLOADED)
# The longest pause of a probe if the endpoint throttles.
LONGEST_PAUSE_S = 60.0
# How often a batch is sent, to measure.
ROUNDS = 3
# Beyond what any model for text classification takes without truncating it.
LONG_TEXT = "long " * 10_000


@dataclass
class Asked:
    """One request of a probe: with how many texts, how long it took and what came of it.

    `good` is an answer of label and score. `status` is None if no answer came. `while_loading`
    is True for a request to a model that was loading, `alone` for one with no other beside it.
    """

    method: str
    texts: int
    while_loading: bool
    alone: bool = True
    seconds: float = 0.0
    status: int | None = None
    good: bool = False
    failure: ClassifyError | None = None

    @property
    def trouble(self) -> Retryable | None:
        """What a run would try again for; the page that tells of a server need not be there."""
        optional = self.method == "GET" and self.status is not None
        return self.failure if isinstance(self.failure, Retryable) and not optional else None


class EnoughError(StoppedEarly):
    """The probe sends nothing more: for `failure` or, without one, as its requests are used up."""

    def __init__(self, failure: Retryable | None = None) -> None:
        super().__init__(f"The {MOST_REQUESTS} requests of a probe are used up.")
        self.failure = failure


@dataclass
class Findings:
    """What a probe saw. `ended` is what stopped it before its end, None if nothing did.

    `outcomes` are those of the texts, in order of their answers. `permits` is how many texts the
    server works on at once, where it told. `waited_s` is how long the model was loading.
    `function_ignored` and `long_text` are what came of the trials of these settings; None where
    there was none. `before_single` counts the requests with texts that were sent until one text a
    request was settled on. Of the at most `most_requests`, those that MOST_REQUESTS leaves measure
    what several at once do: `waves`. `admitted` are the least and the most requests a second that
    a server lets through which answered 429 to these, if that can be told.
    """

    config: RunConfig
    target: Target
    token: Token
    from_input: bool
    dialect: Dialect
    most_requests: int = MOST_REQUESTS
    asked: list[Asked] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    permits: int | None = None
    waited_s: float | None = None
    function_ignored: bool | None = None
    long_text: Outcome | None = None
    ended: ClassifyError | None = None
    before_single: int = 0
    waves: list[Wave] = field(default_factory=list)
    admitted: tuple[float, float] | None = None

    @property
    def answered(self) -> list[Asked]:
        """The requests that were answered with label and score."""
        return [asked for asked in self.asked if asked.good]

    @property
    def answers(self) -> list[Answer]:
        """The outcomes that are labels and scores."""
        return [each for each in self.outcomes if not isinstance(each, RowError)]

    @property
    def rejected(self) -> list[RowError]:
        """The other outcomes."""
        return [each for each in self.outcomes if isinstance(each, RowError)]

    @property
    def refused(self) -> list[Asked]:
        """The requests whose texts were refused, together or alone."""
        kinds = RowsRejected | EndpointRefused
        return [asked for asked in self.asked if asked.texts and isinstance(asked.failure, kinds)]

    @property
    def counted(self) -> int:
        """How many requests were sent, but for those that found the model loading."""
        return sum(asked.good or not asked.while_loading for asked in self.asked)

    def told(self, kind: type[N]) -> N | None:
        """Return the first notice of a kind, None if there was none."""
        return next((told for told in self.notices if isinstance(told, kind)), None)


class _Client(Client):
    """The client of a run, which notes each request and stops once enough is known."""

    def __init__(self, config: RunConfig, findings: Findings, clock: Clock) -> None:
        super().__init__(config, findings.target)
        self._findings = findings
        self._clock = clock
        self._next_texts = 0
        self.loading = False
        self.most_requests = MOST_REQUESTS
        # False while several requests are under way.
        self.alone = True

    def use_single(self) -> None:
        """From now on, send one text a request."""
        super().use_single()
        posts = [each for each in self._findings.asked if each.method == "POST"]
        self._findings.before_single = len(posts)

    async def discover(self) -> int | None:
        """Ask the server what it is; see `Client.discover`."""
        with self._noting(texts=0):
            self._findings.permits = await super().discover()
        return self._findings.permits

    async def ask(
        self, items: Sequence[Item], *, wait_for_model: bool = False, together: bool = False
    ) -> Reply:
        """Send one request and read its answer; see `Client.ask`."""
        place = len(self._findings.asked)
        with self._noting(texts=len(items)):
            reply = await super().ask(items, wait_for_model=wait_for_model, together=together)
        self._findings.asked[place].good = True
        if reply.revision is not None and reply.revision not in self._findings.revisions:
            self._findings.revisions.append(reply.revision)
        return reply

    @contextmanager
    def _noting(self, texts: int) -> Iterator[None]:
        """Note with how many texts a request is sent, if it is, and why it failed, if it did."""
        self._next_texts = texts
        sent = len(self._findings.asked)
        try:
            yield
        except ClassifyError as failure:
            if len(self._findings.asked) > sent:
                # Of those of a page, the last; a request with texts is noted before another begins.
                self._findings.asked[sent if texts else -1].failure = failure
            raise

    async def _exchange(self, method: str, url: URL, body: bytes = b"", **options: Any) -> Told:
        self._stop_where_enough()
        asked = Asked(method, self._next_texts, self.loading, self.alone)
        self._findings.asked.append(asked)
        started = self._clock.now()
        try:
            answer = await super()._exchange(method, url, body, **options)
        except (Retryable, EndpointRefused) as failure:
            asked.failure = failure
            raise
        except asyncio.CancelledError:
            most_s = self._config.timeout_s
            # The pool's alarm, which counts from a little before.
            if self._clock.now() - started >= 0.99 * most_s:
                what = f"no answer within {most_s:g} s (timeout_s)"
                asked.failure = Retryable(Cause.TIMEOUT, what)
            raise
        finally:
            asked.seconds = self._clock.now() - started
        asked.status = answer[0]
        return answer

    def _stop_where_enough(self) -> None:
        """Raise EnoughError if the requests are used up, or if nobody answers."""
        asked = self._findings.asked
        causes = [each.trouble and each.trouble.cause for each in asked[-MOST_FAILURES:]]
        if causes and (last := asked[-1].trouble) is not None:
            # What a server is may be asked of one that has no such page, and never answers.
            silent = last.cause is Cause.TIMEOUT and asked[-1].method == "POST"
            if silent or [cause in _DOWN for cause in causes] == [True] * MOST_FAILURES:
                raise EnoughError(last)
        if self._findings.counted >= self.most_requests:
            raise EnoughError


async def examine(found: Findings, texts: Sequence[Item], clock: Clock, emit: Observer) -> None:
    """Ask the endpoint what a run would, and note in `found` what comes of it.

    The first texts are asked one request at a time; if more than MOST_REQUESTS are allowed, others
    then measure what several at once do. `emit` gets what the pool tells, such as waits.
    """
    config = found.config
    asked = config.model_copy(
        update={
            "concurrency": 1,
            "max_outage_s": min(config.max_outage_s, LONGEST_PAUSE_S),
            "max_errors": None,
        }
    )
    async with _Client(asked, found, clock) as client:

        def note(event: Event) -> None:
            match event:
                case Notice():
                    found.notices.append(event)
                case Waiting(reason=Why.LOADING):
                    client.loading, found.waited_s = True, event.so_far_s
                case WaitEnded(reason=Why.LOADING):
                    client.loading, found.waited_s = False, event.seconds
                case _:
                    pass
            emit(event)

        stop = Stop()
        drift = DriftGuard(Revision(), note, allow_drift=config.allow_drift)
        pool = Pool(asked, [client], clock, note, stop)
        try:
            async with pool:
                # So that batches go out though they are not full.
                pool.demand.block(blocked=True)
                first = texts[: ROUNDS * config.texts_per_request]
                await _Questions(found, client, pool, drift, stop, first).ask()
        except ClassifyError as reason:
            found.ended = reason
        found.dialect = client.dialect
        used_up = isinstance(found.ended, EnoughError) and found.ended.failure is None
        if found.most_requests > MOST_REQUESTS and found.answered and (used_up or not found.ended):
            client.most_requests, client.alone = found.most_requests, False
            try:
                await Measuring(found, client, drift, clock, texts).measure()
            except ClassifyError as reason:
                found.ended = reason


@dataclass
class _Questions:
    """What is asked, one after the other."""

    found: Findings
    client: _Client
    pool: Pool
    drift: DriftGuard
    stop: Stop
    texts: Sequence[Item]

    async def ask(self) -> None:
        """Meet the endpoint as a run does, try what is set, then measure."""
        size = self.found.config.texts_per_request
        if len(self.texts) <= size:
            size = max(2, -(-len(self.texts) // ROUNDS))
        first, rest = self.texts[:size], self.texts[size:]
        (best, *_) = await self._ask(first)
        if self.found.config.function_to_apply is not None:
            await self._try_function(first[0], best)
        if self.found.config.truncate:
            pair = isinstance(first[0], tuple)
            long = (LONG_TEXT, "short") if pair else LONG_TEXT
            (self.found.long_text,) = await self._ask([long], trial=True)
        size = min(size, self.client.dialect.most_texts or size)
        for _ in range(ROUNDS - 1):
            batch, rest = rest[:size], rest[size:]
            if batch:
                await self._ask(batch)

    async def _try_function(self, text: Item, as_set: Outcome) -> None:
        """Ask with another function: where the score stays what it was, none is applied."""
        asked = self.found.config.function_to_apply
        other = self.found.config.model_copy(
            update={"function_to_apply": "sigmoid" if asked == "none" else "none"}
        )
        before = self.client.dialect
        self.client.dialect = before.under(other)
        try:
            (otherwise,) = await self._ask([text], trial=True)
        finally:
            self.client.dialect = before
        self.found.function_ignored = as_set == otherwise

    async def _ask(self, texts: Sequence[Item], *, trial: bool = False) -> list[Outcome]:
        """Have texts answered; the answers to a trial are not counted among the outcomes."""
        outcomes: list[Outcome] = [()] * len(texts)

        def arrived(places: Sequence[int], some: Sequence[Outcome], revision: str | None) -> bool:
            for place, outcome in zip(places, some, strict=True):
                outcomes[place] = outcome
            if not trial:
                self.found.outcomes.extend(some)
            try:
                self.drift.observe(revision)
            except ClassifyError as reason:
                self.stop.ask(reason)
                return False
            return True

        self.pool.demand.expect()
        await self.pool.ask(texts, arrived)
        return outcomes
