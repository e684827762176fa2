"""A server: one address, with its own gate, limits, batch size and share of the work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.pool.attempt import Attempts
from pipeline.pool.batching import BatchSize
from pipeline.pool.gate import Gate
from pipeline.pool.introduction import Introduction
from pipeline.pool.patience import Patience
from pipeline.pool.search import Search, Setting
from pipeline.pool.splitting import Splitting
from pipeline.pool.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.client import Client
    from pipeline.config import RunConfig
    from pipeline.events import Event
    from pipeline.pool.attempt import Quota
    from pipeline.pool.batching import Batcher
    from pipeline.pool.tally import Tally
    from pipeline.system.clock import Clock
    from pipeline.system.threads import Stop


class Server:
    """The client of one address, and what a pool has for each address.

    `settled` hears of inputs that got their outcome: how many, and how many of these are errors.
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
        self._tally = tally
        self._batcher = batcher
        self.size = BatchSize(config.texts_per_request)
        gate = Gate(config, clock, self._emit)
        self.attempts = Attempts(config, client, gate, clock, tally, stop, quota)
        self.patience = Patience(config, self.attempts, gate, clock, self._emit, stop)
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

    def _apply(self, setting: Setting, best: Setting) -> None:
        if self.config.batch_size == "auto":
            self.size.aim(setting.texts)
            self.attempts.limit.aim(setting.requests)
        self._together.aim(setting, best)
        search = self.attempts.search
        if search is not None and search.fixed and search.settled:
            # What was open is found out: hearing of every request would be work for nothing.
            self.attempts.search = None

    def _emit(self, event: Event) -> None:
        self._tally.emit(event)

    def over(self) -> None:
        """Keep nobody waiting: there is nothing more to ask."""
        self.introduction.over()
