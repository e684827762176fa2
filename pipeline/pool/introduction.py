"""The introduction: how a run meets its endpoint, with its first batch and one extra request.

Where the dialect is not given, the first text is sent alone (the canary) and then again within
its batch. A server that honours batches gives it the same answer both times. One that takes no
lists, reads a list as one text or as a pair, or answers in another shape is asked one text a
request from then on, with a line that says why. Nothing else is asked before that is settled: an
answer that cannot be believed yet would be lost in a kill.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Retryable, RowsRejected
from pipeline.events import NoBatches, OneTextARequest
from pipeline.outcomes import RowError
from pipeline.pool.batching import MAX_REQUEST_BYTES, Batch, plain_batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.client.client import Client, Reply
    from pipeline.errors import RequestError
    from pipeline.events import Observer
    from pipeline.outcomes import Outcome

# How many first texts may be rejected alone before the check is given up.
MOST_CANARIES = 3
# Scores of the same text alone and in a batch differ by the padding's rounding, not by more.
SAME_SCORE = 0.02


@dataclass
class FirstBatch:
    """What came of the first batch.

    `rejected` are inputs that were refused alone. Of the `rest`, `reply` is the answer where it
    can be believed, `refusal` why they were refused together; with neither, they are to be asked
    in the dialect that is in force now.
    """

    rejected: list[tuple[Batch, RowsRejected]]
    rest: Batch
    reply: Reply | None = None
    refusal: RowsRejected | None = None


class Introduction:
    """`met` is set once the endpoint answered and the dialect is beyond doubt.

    `ask` sends a batch until it is answered; Retryable goes through it only for answers that
    stay unreadable.
    """

    def __init__(
        self, client: Client, ask: Callable[[Batch], Awaitable[Reply]], emit: Observer
    ) -> None:
        self.met = asyncio.Event()
        self._client = client
        self._ask = ask
        self._emit = emit

    async def check_batching(self, batch: Batch, *, more_to_come: bool) -> FirstBatch:
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
        """Have one text answered alone, in a list; gives its position and the reply.

        Texts that are rejected in both forms go to `rejected`.
        """
        for position in range(min(len(batch), MOST_CANARIES)):
            alone = batch.part(position)
            lists = self._client.dialect
            try:
                reply = await self._ask(alone)
            except (RowsRejected, Retryable) as failure:
                # Is it this text, or does the server take no lists at all?
                self._client.use_single()
                try:
                    await self._ask(alone)
                except (RowsRejected, Retryable):
                    self._client.dialect = lists
                    if isinstance(failure, RowsRejected):
                        rejected[position] = failure
                else:
                    self._fall_back(NoBatches.TAKES_NO_LIST, failure)
                    return None
            else:
                if type(reply.outcomes[0]) is not RowError:
                    return position, reply
        return None

    async def _compare(
        self, batch: Batch, position: int, alone: Outcome, verdict: FirstBatch
    ) -> None:
        """Send the rest of the batch, and compare the canary's answer in it."""
        place = position - len(verdict.rejected)
        batch = verdict.rest
        try:
            reply = await self._ask(batch)
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
        if not agree(alone, reply.outcomes[place]) and not await self._agrees_alone(
            batch.part(len(batch) - 1), reply.outcomes[-1]
        ):
            self._fall_back(NoBatches.ANSWERS_DIFFER)
            return
        verdict.reply = reply

    async def _takes_twins(self, one: Batch, alone: Outcome) -> bool:
        """Whether the same text twice gets its answer twice."""
        try:
            if 2 * one.size_bytes > MAX_REQUEST_BYTES:
                # Twice this text would be refused for its size, which tells nothing of lists.
                one = plain_batch(like=one)
                alone = (await self._ask(one)).outcomes[0]
            answers = (await self._ask(Batch(one.spans * 2))).outcomes
        except (Retryable, RowsRejected):
            return False
        return all(agree(alone, answer) for answer in answers)

    async def _agrees_alone(self, one: Batch, together: Outcome) -> bool:
        """Give a second opinion: a near tie of the first text may have fallen either way."""
        try:
            return agree((await self._ask(one)).outcomes[0], together)
        except (Retryable, RowsRejected):
            return False

    def _fall_back(self, why: NoBatches, failure: RequestError | None = None) -> None:
        self._client.use_single()
        self._emit(OneTextARequest(why, failure.what if failure else ""))


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same answer but for rounding."""
    if isinstance(one, RowError) or isinstance(other, RowError):
        return one == other
    (label, score), (other_label, other_score) = one[0], other[0]
    near = abs(score - other_score) <= SAME_SCORE * max(1.0, abs(score))
    return label == other_label and near
