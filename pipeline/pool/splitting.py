"""Splitting: every input of a batch gets its outcome, and the one at fault stands alone.

A request whose content is refused (400, 413, 422), or which alone keeps failing while others are
answered, is halved until the row at fault is alone with its error. If both halves are fine, the
request was too large, and the next ones are smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import EndpointRefused, RowsRejected
from pipeline.events import SmallerBatches
from pipeline.outcomes import RowError
from pipeline.pool.attempt import StoppedError
from pipeline.pool.batching import PLAIN, plain_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.client import Client, Reply
    from pipeline.events import Observer
    from pipeline.outcomes import Outcome
    from pipeline.pool.batching import Batch, BatchSize
    from pipeline.pool.patience import Patience

# So many inputs rejected and none answered: is it each row that is wrong, or the request?
HOPELESS = 100


@dataclass(eq=False)
class Splitting:
    """Asks for batches and settles their inputs, splitting off the ones that are at fault.

    `_settled` hears of inputs that got their outcome: how many, and how many of these are errors.
    """

    _client: Client
    _patience: Patience
    _size: BatchSize
    _emit: Observer
    _settled: Callable[[int, int], None]
    _rejected: int = 0
    _request_checked: bool = False

    async def answer(self, batch: Batch) -> int:
        """Get an outcome for every input of the batch; return how many of them are errors."""
        most = self._client.dialect.most_texts
        if most is not None and len(batch) > most:
            return sum([await self.answer(half) for half in batch.halves()])
        try:
            reply = await self._patience.answer(batch)
        except RowsRejected as rejection:
            return await self.split(batch, rejection)
        return self.settle(batch, reply)

    async def split(self, batch: Batch, rejection: RowsRejected) -> int:
        """Answer the halves of a batch that was refused; return how many inputs failed."""
        if len(batch) == 1:
            return await self.reject(batch, rejection)
        failed = sum([await self.answer(half) for half in batch.halves()])
        if not failed and self._size.refused(len(batch)):
            self._emit(SmallerBatches(self._size.now, len(batch), str(rejection)))
        return failed

    def settle(self, batch: Batch, reply: Reply) -> int:
        """Hand out the answers of a batch; return how many of them are errors."""
        self._size.answered(len(batch))
        if self._patience.known_good is None and type(reply.outcomes[0]) is not RowError:
            self._patience.known_good = batch.part(0)
        return self._hand_out(batch, reply.outcomes, reply.revision)

    async def reject(self, batch: Batch, rejection: RowsRejected) -> int:
        """Record the error of a batch of one input; return 1.

        Raises EndpointRefused if a text that no model refuses is refused too.
        """
        self._rejected += 1
        hopeless = self._patience.known_good is None and self._rejected >= HOPELESS
        if hopeless and not self._request_checked:
            self._request_checked = True
            await self._check_request(batch, rejection)
        return self._hand_out(batch, [RowError(str(rejection))], None)

    def _hand_out(self, batch: Batch, outcomes: list[Outcome], revision: str | None) -> int:
        if not batch.settle(outcomes, revision):
            raise StoppedError
        failed = list(map(type, outcomes)).count(RowError)
        self._settled(len(batch), failed)
        return failed

    async def _check_request(self, rejected: Batch, rejection: RowsRejected) -> None:
        """Ask for a text that no model refuses, to tell rows at fault from a request at fault."""
        plain = plain_batch(like=rejected)
        try:
            await self._patience.answer(plain)
        except RowsRejected as refusal:
            if refusal.status not in (400, 413, 422):
                return  # it kept failing for another reason, which tells nothing
            raise EndpointRefused(
                f"The endpoint rejected the first {HOPELESS} inputs, each on its own, and the text "
                f"{PLAIN!r} as well. Of the last input it said: {rejection.what}.",
                "Check the settings of the request (model, function_to_apply, truncate, dialect), "
                "then run again.",
                status=rejection.status,
                at_fault="model",
            ) from None
        self._patience.known_good = plain
