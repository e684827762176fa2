"""Splitting: every input of a batch gets its outcome, and the one at fault stands alone.

A request whose content is refused (400, 413, 422), or which alone keeps failing while others are
answered, is halved until the row at fault is alone with its error. If both halves are fine, the
request was too large, and the next ones are smaller.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import EndpointRefused, RowsRejected, StoppedEarly
from pipeline.events import SmallerBatches
from pipeline.outcomes import RowError
from pipeline.pool.attempt import StoppedError
from pipeline.pool.gate import PassedOnError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.client import Client, Reply
    from pipeline.events import Observer
    from pipeline.outcomes import Outcome
    from pipeline.pool.batching import Batch, BatchSize
    from pipeline.pool.patience import Patience
    from pipeline.pool.together import Together


# What says that the server is at fault: of several, the others answer then.
NOT_WELL = (PassedOnError, EndpointRefused, StoppedEarly)


class Suspect(NamedTuple):
    """An input that was refused alone; `number` is that of the refusal."""

    batch: Batch
    rejection: RowsRejected
    number: int


@dataclass(eq=False)
class Splitting:
    """Asks for batches and settles their inputs, splitting off the ones that are at fault.

    An input that was refused alone is a suspect until the refusal is vouched for: see `trust`.
    `_settled` hears of inputs that got their outcome: how many, and how many of these are errors.
    """

    _client: Client
    _patience: Patience
    _size: BatchSize
    _together: Together
    _emit: Observer
    _settled: Callable[[int, int], None]

    def __post_init__(self) -> None:
        # Of several servers, what leaves a batch to the others, if this one does not work.
        self.pass_on: Callable[[Batch | None, Exception], None] | None = None
        self._suspects: deque[Suspect] = deque()

    async def answer(self, batch: Batch, *, doubted: bool = False) -> int:
        """Get an outcome for every input of the batch; return how many of them are errors.

        A batch is `doubted` if it is of one that kept failing.
        """
        most = self._client.dialect.most_texts
        if most is not None and len(batch) > most:
            return sum([await self.answer(half) for half in batch.halves()])
        try:
            reply = await self._patience.answer(batch, doubted=doubted)
        except RowsRejected as rejection:
            return await self.split(batch, rejection)
        except NOT_WELL as reason:
            self._leave(batch, reason)
            return len(batch)
        failed = self.settle(batch, reply)
        try:
            await self._together.check(batch, reply)
        except NOT_WELL as reason:
            self._leave(None, reason)
        return failed

    def _leave(self, batch: Batch | None, reason: Exception) -> None:
        """Leave a batch, and all suspects, to other servers. Raises the reason if none is."""
        if self.pass_on is None:
            raise reason
        self.pass_on(batch, reason)

    def drop_suspects(self) -> list[Batch]:
        """Return the inputs whose refusal nobody vouched for, and forget them."""
        dropped = [suspect.batch for suspect in self._suspects]
        self._suspects.clear()
        return dropped

    async def split(self, batch: Batch, rejection: RowsRejected) -> int:
        """Answer the halves of a batch that was refused; return how many inputs failed."""
        if len(batch) == 1:
            return await self.reject(batch, rejection)
        try:
            await self._patience.confirm(batch, self._size.now)
        except NOT_WELL as reason:
            self._leave(batch, reason)
            return len(batch)
        doubted = rejection.given_up
        failed = sum([await self.answer(half, doubted=doubted) for half in batch.halves()])
        if not failed and self._size.refused(len(batch)):
            self._emit(SmallerBatches(self._size.now, len(batch), str(rejection)))
        return failed

    def settle(self, batch: Batch, reply: Reply) -> int:
        """Hand out the answers of a batch; return how many of them are errors."""
        self._size.answered(len(batch))
        trust = self._patience.trust
        if trust.known is None or trust.acquittals:
            trust.learn(batch, reply.outcomes)
        failed = self._hand_out(batch, reply.outcomes, reply.revision)
        if self._suspects:
            self._believe(trust.vouched)
        return failed

    async def reject(self, batch: Batch, rejection: RowsRejected) -> int:
        """Suspect the input of a batch of one; return 1.

        Raises EndpointRefused or StoppedEarly if the endpoint refuses everything.
        """
        self._suspects.append(Suspect(batch, rejection, self._patience.trust.refusals))
        try:
            await self._patience.confirm(batch, self._size.now)
        except NOT_WELL as reason:
            self._leave(None, reason)
        self._believe(self._patience.trust.vouched)
        return 1

    async def conclude(self) -> None:
        """Settle the suspects, as no other request is on its way to vouch for them.

        A single one is believed; of more the text that decides tells. Raises what `reject` does.
        """
        if len(self._suspects) > 1:
            try:
                await self._patience.decide(self._suspects[-1].batch, self._suspects[-1].number)
            except NOT_WELL as reason:
                self._leave(None, reason)
        self._believe(self._patience.trust.refusals)

    def _believe(self, number: int) -> None:
        """Record the errors of suspects whose refusals were not after this one."""
        while self._suspects and self._suspects[0].number <= number:
            batch, rejection, _ = self._suspects.popleft()
            self._hand_out(batch, [RowError(str(rejection))], None)

    def _hand_out(self, batch: Batch, outcomes: list[Outcome], revision: str | None) -> int:
        if not batch.settle(outcomes, revision):
            raise StoppedError
        failed = list(map(type, outcomes)).count(RowError)
        self._settled(len(batch), failed)
        return failed
