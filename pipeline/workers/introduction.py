"""The introduction: how a run meets its endpoint, with its first batch and one extra request.

Where the dialect is not given, the first text is sent alone (the canary) and then again within
its batch. A server that honours batches gives it the same answer both times. One that takes no
lists, reads a list as one text or as a pair, or answers in another shape is asked one text a
request from then on, with a line that says why. Nothing is believed before that is settled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipeline.errors import Retryable, RowsRejected
from pipeline.events import Notice
from pipeline.responses import RowError
from pipeline.workers.batching import Batch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.events import Observer
    from pipeline.responses import Outcome
    from pipeline.workers.client import Client, Reply

# How many first texts may be rejected alone before the check is given up.
MOST_CANARIES = 3
# Scores of the same text alone and in a batch differ by the padding's rounding, not by more.
SAME_SCORE = 0.02

_NOT_HONOURED = "one text a request from now on, since this endpoint does not honour batches: "


class Introduction:
    """`met` is set once the endpoint answered, `settled` once the dialect is beyond doubt.

    `ask` sends a batch until it is answered; Retryable goes through it only for answers that
    stay unreadable.
    """

    def __init__(
        self, client: Client, ask: Callable[[Batch], Awaitable[Reply]], emit: Observer
    ) -> None:
        self.met = asyncio.Event()
        self.settled = asyncio.Event()
        self._client = client
        self._ask = ask
        self._emit = emit

    async def check_batching(self, batch: Batch) -> Reply | None:
        """Check with a batch whether batches are honoured, and settle the dialect.

        Gives the answer to the batch where it can be believed, else None: then the batch is to
        be sent again in the dialect that is in force now.
        """
        try:
            canary = await self._find_canary(batch)
            self.met.set()
            if canary is None or self._client.dialect.most_texts == 1:
                return None
            return await self._compare(batch, *canary)
        finally:
            self.settled.set()

    async def _find_canary(self, batch: Batch) -> tuple[int, Outcome] | None:
        """Have one text answered alone; gives its position and outcome."""
        for position in range(min(len(batch), MOST_CANARIES)):
            alone = batch.part(position)
            lists = self._client.dialect
            try:
                outcome = (await self._ask(alone)).outcomes[0]
            except (RowsRejected, Retryable) as failure:
                # Is it this text, or does the server take no lists at all?
                self._client.use_single()
                try:
                    await self._ask(alone)
                except (RowsRejected, Retryable):
                    self._client.dialect = lists
                else:
                    self._emit(Notice(f"{_NOT_HONOURED}it takes no list of texts ({failure})."))
                    return None
            else:
                if type(outcome) is not RowError:
                    return position, outcome
        return None

    async def _compare(self, batch: Batch, position: int, alone: Outcome) -> Reply | None:
        try:
            reply = await self._ask(batch)
        except Retryable as failure:
            self._fall_back(str(failure))
            return None
        except RowsRejected as failure:
            # Some other row may be at fault: the canary twice can only be refused for its form.
            twins = Batch(batch.part(position).spans * 2)
            try:
                answers = (await self._ask(twins)).outcomes
            except (Retryable, RowsRejected):
                answers = []
            if len(answers) != 2 or not all(agree(alone, answer) for answer in answers):  # noqa: PLR2004
                self._fall_back(str(failure))
            return None
        if agree(alone, reply.outcomes[position]):
            return reply
        # A near tie may fall either way; a second text decides.
        other = batch.part(len(batch) - 1)
        try:
            second = (await self._ask(other)).outcomes[0]
        except (Retryable, RowsRejected):
            second = RowError("not answered alone")
        if agree(second, reply.outcomes[-1]):
            return reply
        self._fall_back("the same text gets different answers alone and within a batch")
        return None

    def _fall_back(self, why: str) -> None:
        self._client.use_single()
        self._emit(Notice(f"{_NOT_HONOURED}{why}."))


def agree(one: Outcome, other: Outcome) -> bool:
    """Whether two outcomes are the same answer but for rounding."""
    if isinstance(one, RowError) or isinstance(other, RowError):
        return one == other
    (label, score), (other_label, other_score) = one[0], other[0]
    near = abs(score - other_score) <= SAME_SCORE * max(1.0, abs(score))
    return label == other_label and near
