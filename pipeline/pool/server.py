"""A server: one address, with its own gate, limits, batch size and share of the work.

A run has one, or several of the same model. Of several each takes work as fast as it answers, and
one that is loading, down, or of another model takes nothing with it: what it holds goes back to the
queue, for the others. It is greeted with a text of ours until it answers as the others did, and
works again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from pipeline.addresses import public
from pipeline.errors import EndpointRefused, RowsRejected, SettingsError, StoppedEarly
from pipeline.events import AddressLost, AddressWorks, WaitEnded, Waiting, Why
from pipeline.pool.attempt import Attempts, StoppedError
from pipeline.pool.batching import PLAIN, BatchSize, plain_batch
from pipeline.pool.failures import Failures
from pipeline.pool.gate import Gate, PassedOnError
from pipeline.pool.introduction import Introduction
from pipeline.pool.patience import Patience
from pipeline.pool.search import Search, Setting
from pipeline.pool.splitting import Splitting
from pipeline.pool.together import Together
from pipeline.pool.trust import agree, shown
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.client import Client, Reply
    from pipeline.config import RunConfig
    from pipeline.errors import ClassifyError
    from pipeline.events import Event
    from pipeline.pool.attempt import Quota
    from pipeline.pool.batching import Batch, Batcher
    from pipeline.pool.tally import Tally
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop

# How long an address is left alone that refuses, or is of another model.
LEFT_ALONE_S = 60.0
# How soon it is greeted again that closed its gate while it was greeted.
GREET_AGAIN_S = 1.0


class Server:
    """What is known of one address, and all that is its own.

    `settled` hears of inputs that got their outcome: how many, and how many of these are errors.
    `works` is set while it takes batches.
    """

    def __init__(
        self,
        config: RunConfig,
        client: Client,
        clock: Clock,
        tally: Tally,
        batcher: Batcher,
        quota: Quota,
        stop: Stop,
        settled: Callable[[int, int], None],
    ) -> None:
        self.config = config
        self.client = client
        self._clock = clock
        self._tally = tally
        self._batcher = batcher
        self._stop = stop
        self.works = asyncio.Event()
        self.lost: ClassifyError | None = None
        self._told = False  # that it does not work
        self._failed = asyncio.Event()
        self._fleet: Fleet | None = None
        self.size = BatchSize(config.texts_per_request)
        self._gate = Gate(config, clock, self._emit)
        self.attempts = Attempts(config, client, self._gate, clock, tally, stop, quota)
        self.patience = Patience(config, self.attempts, self._gate, clock, self._emit, stop)
        self._together = Together(self.patience, self.attempts, self._more, self._emit)
        tells = config.most_texts > 1 and config.endpoint != "local" and not config.exact_scores
        if tells or config.batch_size == "auto":
            most = Setting(config.most_texts, config.concurrency, tells)
            fixed = config.batch_size != "auto"
            search = Search(most, config.timeout_s, clock, self._apply, fixed=fixed)
            self.attempts.search, self.size.on_refusal = search, search.refused
            self._together.on_refusal = search.never_together
        self.splitting = Splitting(
            client, self.patience, self.size, self._together, self._emit, settled
        )
        self.introduction = Introduction(
            client,
            self.patience,
            self.splitting,
            self.attempts,
            self.size,
            self._emit,
            config.is_list,
        )

    def _more(self) -> bool:
        return self._batcher.waiting

    def _apply(self, setting: Setting, steady: Setting) -> None:
        if self.config.batch_size == "auto":
            self.size.aim(setting.texts, steady.texts)
            self.attempts.limit.aim(setting.requests)
        self._together.aim(setting, steady)

    @property
    def address(self) -> str:
        """The address, as it may be shown."""
        return public(self.client.address)

    def join(self, fleet: Fleet) -> None:
        """Be one of several servers."""
        self._fleet = fleet
        self.splitting.pass_on = self._pass_on

    def over(self) -> None:
        """Keep nobody waiting: there is nothing more to ask."""
        self.introduction.over()
        self.works.set()

    async def keep(self) -> None:
        """Greet the server until it answers as the others do; again each time it fails."""
        assert self._fleet is not None
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
                self._fleet.lost()
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
        assert self._fleet is not None
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
        waits = isinstance(event, Waiting | WaitEnded)
        if waits and self._fleet is not None and self._fleet.others_work(self):
            if isinstance(event, Waiting) and event.reason is not Why.THROTTLED:
                self._tell_lost(f"{event.reason}: {event.detail}")
        else:
            self._tally.emit(event)


class Fleet:
    """Several servers, which must be of one model."""

    def __init__(self, servers: Sequence[Server], stop: Stop, *, allow_drift: bool) -> None:
        self._servers = servers
        self._stop = stop
        self._allow_drift = allow_drift
        # What the first one answered to our text, and where.
        self._first: tuple[str, Reply] | None = None

    def others_work(self, server: Server) -> bool:
        """Return True if another one takes batches."""
        return any(each.works.is_set() for each in self._servers if each is not server)

    def lost(self) -> None:
        """Hear that a server is lost; the run ends with the last."""
        reasons = [server.lost for server in self._servers if server.lost is not None]
        if len(reasons) == len(self._servers):
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
