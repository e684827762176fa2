"""The introduction: how a run meets its endpoint, with its first batch and one extra request.

If the dialect is not given, the first text is sent alone (the canary) and then again within
its batch. A server that honours batches gives it the same answer both times. One that takes no
lists, reads a list as one text or as a pair, or answers in another shape is asked one text a
request from then on, with a line that says why. Nothing else is asked before that is settled: an
answer that cannot be believed yet would be lost in a kill.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.client import Reply
from pipeline.errors import Retryable, RowsRejected
from pipeline.events import NoBatches, OneTextARequest
from pipeline.outcomes import RowError
from pipeline.pool.batching import MAX_REQUEST_BYTES, PLAIN, Batch, plain_batch
from pipeline.pool.failures import Failures
from pipeline.pool.trust import agree, not_the_api

if TYPE_CHECKING:
    from pipeline.client import Client
    from pipeline.errors import RequestError
    from pipeline.events import Observer
    from pipeline.outcomes import Outcome
    from pipeline.pool.attempt import Attempts
    from pipeline.pool.batching import BatchSize
    from pipeline.pool.demand import Demand
    from pipeline.pool.patience import Patience
    from pipeline.pool.splitting import Splitting

# What one of several servers is greeted with, since it has to be known before it takes a batch.
GREETINGS = (PLAIN, "This is bad, and it was late.")
# How often a server is asked what it is, if that page fails.
MOST_INFO = 3
# How many first texts may be rejected alone before the check is given up.
MOST_CANARIES = 3


@dataclass
class FirstBatch:
    """What came of the first batch.

    `rejected` are inputs that were refused alone. Of the `rest`, `reply` is the answer if it can be
    believed, `refusal` why they were refused together; with neither, they are to be asked in the
    dialect that is in force now.
    """

    rejected: list[tuple[Batch, RowsRejected]]
    rest: Batch
    reply: Reply | None = None
    refusal: RowsRejected | None = None


@dataclass(eq=False)
class Introduction:
    """Made once the endpoint has answered and the dialect is beyond doubt."""

    _client: Client
    _patience: Patience
    _splitting: Splitting
    _attempts: Attempts
    _size: BatchSize
    _emit: Observer
    _greets: bool = False

    def __post_init__(self) -> None:
        self._settled = asyncio.Event()
        if self._client.knows_dialect:
            self._settled.set()
        self._first: Batch | None = None
        self._undiscovered = 0
        self._introduced = False

    async def made(self) -> None:
        """Wait until the endpoint may be asked by all."""
        await self._settled.wait()
        await self._patience.answered.wait()

    def over(self) -> None:
        """Keep nobody waiting: there is nothing more to ask."""
        self._settled.set()
        self._patience.answered.set()

    async def greet(self, *, pair: bool) -> None:
        """Settle the dialect with texts of ours, unless it is; for one of several servers."""
        if not self._introduced:
            await self._introduce(plain_batch(*GREETINGS, pair=pair), more_to_come=True)

    async def meet(self, batch: Batch, demand: Demand) -> None:
        """Settle the dialect with the first batch, and answer that."""
        splitting = self._splitting
        verdict = await self._introduce(batch, more_to_come=demand.more_to_come)
        for alone, rejection in verdict.rejected:
            await splitting.reject(alone, rejection)
        rest = verdict.rest
        if verdict.reply is not None:
            splitting.settle(rest, verdict.reply)
        elif verdict.refusal is not None and len(rest) > 1 and self._client.dialect.most_texts != 1:
            await splitting.split(rest, verdict.refusal)
        elif rest.shares:
            await splitting.answer(rest)
        self.over()

    async def _introduce(self, batch: Batch, *, more_to_come: bool) -> FirstBatch:
        client = self._client
        self._first = batch
        verdict, permits = FirstBatch([], batch), None
        if not client.knows_dialect:
            permits = await self._patience.until_answered(
                self._discover, Failures(greeting=self._greets)
            )
            # No canary is sent then, and a probe has no requests left to halve a batch to one text.
            self._patience.trust.wary = client.dialect.told_by is not None
            if client.dialect.name == "hf":
                verdict = await self._check_batching(batch, more_to_come=more_to_come)
        most = client.dialect.most_texts
        search = self._attempts.search
        if search is not None:
            search.cap(most, permits)
            if client.dialect.together() is None:
                search.never_together()
        if search is None or search.fixed:
            if most is not None:
                self._size.cap(most)
            if permits is not None:
                self._attempts.limit.cap(permits // self._size.now)
        self._settled.set()
        self._introduced = True
        return verdict

    async def _discover(self, probing: bool, retry: bool) -> int | None:  # noqa: ARG002
        await self._attempts.turnstile.pass_through(lambda: True)
        try:
            permits = await self._client.discover()
        except Retryable as failure:
            # A page that fails for good says nothing about the endpoint itself.
            self._undiscovered += 1
            if failure.status in (None, 429, 503) or self._undiscovered < MOST_INFO:
                raise
            permits = None
        if probing:
            self._patience.somebody_answers()
        return permits

    async def _ask(self, batch: Batch) -> Reply:
        """Ask until there is an answer; Retryable goes through if it stays unreadable."""
        return await self._patience.answer(
            batch, among=self._first, patient=False, greeting=self._greets
        )

    async def _check_batching(self, batch: Batch, *, more_to_come: bool) -> FirstBatch:
        """Check with a batch whether batches are honoured, and settle the dialect."""
        rejected: dict[int, RowsRejected] = {}
        canary = await self._find_canary(batch, rejected)
        verdict = FirstBatch(
            rejected=[(batch.part(i), why) for i, why in rejected.items()],
            rest=batch.without(rejected),
        )
        if canary is None:
            return verdict
        position, reply = canary
        if len(batch) > 1:
            await self._compare(batch, position, reply.outcomes[0], verdict)
        elif more_to_come and not await self._takes_twins(batch, reply.outcomes[0]):
            self._fall_back(NoBatches.TWINS_DIFFER)
        else:
            verdict.reply = reply
        return verdict

    async def _find_canary(
        self, batch: Batch, rejected: dict[int, RowsRejected]
    ) -> tuple[int, Reply] | None:
        """Have one text answered alone, in a list; return its position and the reply.

        Texts that are rejected in both forms go to `rejected`.
        """
        for position in range(min(len(batch), MOST_CANARIES)):
            answer = await self._in_either_form(batch.part(position))
            if isinstance(answer, RowsRejected):
                rejected[position] = answer
                if position == 0:
                    plain = await self._in_either_form(plain_batch(pair=batch.is_of_pairs))
                    if isinstance(plain, RowsRejected):
                        raise self._patience.trust.distrust(plain)
            elif answer is not None and type(answer.outcomes[0]) is not RowError:
                self._patience.trust.learn(batch.part(position), answer.outcomes)
                return position, answer
            if self._client.dialect.name == "single":
                return None
        return None

    async def _in_either_form(self, alone: Batch) -> Reply | RowsRejected | None:
        """Ask for one text in a list, else alone. Return the answer to the list, or its refusal.

        None where only the text alone is answered, which is the dialect from then on. Raises
        EndpointRefused if neither answer can be read.
        """
        lists = self._client.dialect
        try:
            return await self._ask(alone)
        except (RowsRejected, Retryable) as error:
            failure = error
        # Is it this text, or does the server take no lists at all?
        self._client.dialect = self._client.single
        try:
            await self._ask(alone)
        except RowsRejected as refusal:
            self._client.dialect = lists
            return failure if isinstance(failure, RowsRejected) else refusal
        except Retryable as wrong:
            raise not_the_api(wrong) from None
        if isinstance(failure, RowsRejected):
            # One refusal may have passed by, and one text a request costs many times as much.
            self._client.dialect = lists
            try:
                return await self._ask(alone)
            except (RowsRejected, Retryable) as error:
                failure = error
        self._fall_back(NoBatches.TAKES_NO_LIST, failure)
        return None

    async def _compare(
        self, batch: Batch, position: int, alone: Outcome, verdict: FirstBatch
    ) -> None:
        """Send the rest of the batch, and compare the canary's answer in it."""
        place = position - len(verdict.rejected)
        batch = verdict.rest
        kept = await batch.kept()
        try:
            reply = Reply(kept, None, None) if kept else await self._ask(batch)
        except Retryable as failure:
            self._fall_back(NoBatches.UNREADABLE, failure)
            return
        except RowsRejected as failure:
            # Some other row may be at fault: the canary twice can only be refused for its form.
            if await self._takes_twins(batch.part(place), alone):
                verdict.refusal = failure
            else:
                self._fall_back(NoBatches.REFUSED, failure)
            return
        if not agree(alone, reply.outcomes[place]):
            if not kept:
                batch.keep(reply.outcomes, reply.revision)
            last = batch.part(len(batch) - 1)
            if not await self._agrees_alone(last, reply.outcomes[-1]):
                self._fall_back(NoBatches.ANSWERS_DIFFER)
                return
        verdict.reply = reply

    async def _takes_twins(self, one: Batch, alone: Outcome) -> bool:
        """Return True if the same text twice gets its answer twice."""
        if 2 * one.size_bytes > MAX_REQUEST_BYTES:
            # Twice this text would be refused for its size, which tells nothing of lists.
            one, alone = plain_batch(pair=one.is_of_pairs), ()
        for _ in range(2):  # one refusal may have passed by
            try:
                alone = alone or (await self._ask(one)).outcomes[0]
                answers = (await self._ask(Batch([*one.shares, *one.shares]))).outcomes
            except RowsRejected:
                continue
            except Retryable:
                break
            return all(agree(alone, answer) for answer in answers)
        return False

    async def _agrees_alone(self, one: Batch, together: Outcome) -> bool:
        """Ask for a second opinion: a near tie of the first text may have fallen either way."""
        try:
            return agree((await self._ask(one)).outcomes[0], together)
        except (Retryable, RowsRejected):
            return False

    def _fall_back(self, why: NoBatches, failure: RequestError | None = None) -> None:
        self._client.use_single()
        self._patience.trust.known = None  # by an answer of another form
        self._emit(OneTextARequest(why, failure.what if failure else ""))
