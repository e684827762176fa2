"""A fleet: several servers of one model, of which each takes work as fast as it answers.

One that is loading, down, or of another model takes nothing with it: what it holds goes back to the
queue, for the others. It is greeted with texts of ours until it answers as the others do, and works
again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.addresses import public
from pipeline.errors import EndpointRefused, RowsRejected, SettingsError, StoppedEarly
from pipeline.events import AddressLost, AddressWorks, WaitEnded, Waiting, Why
from pipeline.pool.attempt import StoppedError
from pipeline.pool.batching import PLAIN, plain_batch
from pipeline.pool.failures import Failures
from pipeline.pool.gate import PassedOnError
from pipeline.pool.server import Server
from pipeline.pool.trust import agree, shown
from pipeline.wording import setting

if TYPE_CHECKING:
    from pipeline.client import Client, Reply
    from pipeline.config import RunConfig
    from pipeline.errors import ClassifyError
    from pipeline.events import Event
    from pipeline.pool.batching import Batch
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop

# How long an address is left alone that refuses, or is of another model.
LEFT_ALONE_S = 60.0
# How soon it is greeted again that closed its gate while it was greeted.
GREET_AGAIN_S = 1.0


class Fleet:
    """What its members share: they must be of one model, and the run ends with the last of them."""

    def __init__(self, stop: Stop, *, allow_drift: bool) -> None:
        self.members: list[Member] = []
        self._stop = stop
        self._allow_drift = allow_drift
        # What the first one answered to our text, and where.
        self._first: tuple[str, Reply] | None = None

    def others_work(self, member: Member) -> bool:
        """Return True if another one takes batches."""
        return any(each.works.is_set() for each in self.members if each is not member)

    def best_texts(self, member: Member) -> int:
        """Return the batch size with which others than this one do most; 0 if nobody knows."""
        searches = [each.attempts.search for each in self.members if each is not member]
        return max([search.best.texts for search in searches if search is not None], default=0)

    def lost_one(self) -> None:
        """Hear that a member is lost; the run ends with the last."""
        reasons = [member.lost for member in self.members if member.lost is not None]
        if len(reasons) == len(self.members):
            # What passes by itself is the better reason: the same command may go on later.
            passing = [reason for reason in reasons if isinstance(reason, StoppedEarly)]
            self._stop.ask((passing or reasons)[0])

    def compare(self, address: str, reply: Reply) -> None:
        """Take a server's answer to our text. Raises StoppedEarly if it is of another model."""
        self._first = self._first or (address, reply)
        first, known = self._first
        if self._allow_drift:
            return
        (answer,), (before,) = reply.outcomes, known.outcomes
        what = ""
        if None not in (reply.revision, known.revision) and reply.revision != known.revision:
            what = f"revision {reply.revision} there, {known.revision} at {first}"
        elif not agree(before, answer):
            what = f"the text {PLAIN!r} is {shown(answer)} there, {shown(before)} at {first}"
        if what:
            raise StoppedEarly(
                f"{address} serves another model: {what}.",
                f"Serve the same model there, or accept the mixture with "
                f"{setting('allow_drift', 'True')}.",
            )


class Member(Server):
    """A server of a fleet; `works` is set while it takes batches, and `lost` says why it does not.

    `shared` is what every server of a pool gets.
    """

    def __init__(
        self,
        fleet: Fleet,
        config: RunConfig,
        client: Client,
        clock: Clock,
        stop: Stop,
        **shared: Any,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._stop = stop
        self.address = public(client.address)  # as it may be shown
        self.works = asyncio.Event()
        self.lost: ClassifyError | None = None
        self._told = False  # that it does not work
        self._failed = asyncio.Event()
        super().__init__(config, client, clock, stop=stop, **shared)
        self.splitting.pass_on = self._pass_on
        fleet.members.append(self)
        if (search := self.attempts.search) is not None:
            search.best_elsewhere = partial(fleet.best_texts, self)

    def over(self) -> None:
        """Keep nobody waiting: there is nothing more to ask."""
        super().over()
        self.works.set()

    async def keep(self) -> None:
        """Greet the server until it answers as the others do; again each time it fails."""
        while self._stop.reason is None:
            self._failed.clear()
            try:
                await self._greet()
            except StoppedError:
                return
            except PassedOnError:
                await self._clock.sleep(GREET_AGAIN_S)
                continue
            except (EndpointRefused, SettingsError, StoppedEarly) as reason:
                self.lost = reason
                self.works.clear()
                self._tell_lost(str(reason))
                self._fleet.lost_one()
                await self._clock.sleep(LEFT_ALONE_S)
                continue
            self.lost = None
            if self._told:
                self._told = False
                self._tally.emit(AddressWorks(self.address))
            self.works.set()
            await self._failed.wait()
            self.works.clear()

    async def _greet(self) -> None:
        await self.introduction.greet(pair=self.config.text_pair is not None)
        plain = plain_batch(pair=self.config.text_pair is not None)
        attempt = partial(self.patience.attempt, plain)
        try:
            failures = Failures(plain, greeting=True)
            reply = await self.patience.until_answered(attempt, failures, plain)
        except RowsRejected as refusal:
            raise self.patience.trust.distrust(refusal) from None
        self._fleet.compare(self.address, reply)

    def _pass_on(self, batch: Batch | None, reason: Exception) -> None:
        """Leave a batch, and what is suspected, to the others."""
        for each in ([batch] if batch else []) + self.splitting.drop_suspects():
            self._batcher.give_back(each)
        if not isinstance(reason, PassedOnError):
            self._tell_lost(str(reason))
        self.works.clear()
        self._failed.set()

    def _tell_lost(self, why: str) -> None:
        if not self._told:
            self._told = True
            self._tally.emit(AddressLost(self.address, why))

    def _emit(self, event: Event) -> None:
        """Tell of what this server does; that it waits is told as the pool's if all do."""
        if not isinstance(event, Waiting | WaitEnded) or not self._fleet.others_work(self):
            super()._emit(event)
        elif isinstance(event, Waiting) and event.reason is not Why.THROTTLED:
            self._tell_lost(f"{event.reason}: {event.detail}")
