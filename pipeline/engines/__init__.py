"""Engines send inputs to the endpoint, and nothing else.

Everything that must exist once stays with the run: rows, dedup, stored answers, the log and parts,
max_errors, drift, the deadline. So an engine may be a pool in this process (`local`) or pools
elsewhere; the setting `engine` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Arrived, Item, Provisional
    from pipeline.pool.demand import Demand
    from pipeline.system.threads import Stop


class Engine(Protocol):
    """What a run needs of an engine."""

    @property
    def demand(self) -> Demand:
        """How much input is wanted, told by what the run says of its input."""

    async def ask(
        self, items: Sequence[Item], arrived: Arrived, provisional: Provisional | None = None
    ) -> None:
        """Have inputs answered, which `demand.expect` announced; return once all are.

        `arrived` gets the outcomes as they come, request by request; `provisional` keeps those
        that cannot be believed yet. Raises what stopped it.
        """


def open_engine(
    config: RunConfig, emit: Observer, stop: Stop, *, requests_sent: int = 0
) -> AbstractAsyncContextManager[Engine]:
    """Return the engine that the settings name; leaving it waits for what is in flight.

    It takes settings, which can cross a process border, and a `Stop`: once that is asked, nothing
    more is sent, what is in flight is awaited for at most `grace_s`, and open calls of `ask` raise
    the reason. What ends the engine itself (a refusal, an outage) it asks of that `Stop`, too.
    `requests_sent` were sent by earlier passes of this run; they count towards `max_requests`.
    """
    match config.engine:
        case "local":
            from pipeline.engines.local import local_engine

            return local_engine(config, emit, stop, requests_sent)
