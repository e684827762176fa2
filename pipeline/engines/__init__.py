"""Engines send inputs to the endpoint, and nothing else.

Everything that must exist once stays with the run: rows, dedup, stored answers, the log and parts,
max_errors, drift, the deadline, and the pool with its limits. What sends its requests is this
process (`local`), or workers: processes of this machine, or actors of a Ray cluster. The setting
`engine` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from pipeline.config import RunConfig
    from pipeline.engines.places import Staff
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
    from pipeline.engines.local import pool_engine

    staff: Staff | None = None
    match config.engine:
        case "processes":
            from pipeline.engines.processes import Processes

            staff = Processes()
        case "ray":
            from pipeline.engines.ray_actors import Actors

            staff = Actors(config.ray_address)
        case _:
            pass
    return pool_engine(config, emit, stop, requests_sent, staff)
