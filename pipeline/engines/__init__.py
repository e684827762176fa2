"""Engines send inputs to the endpoint, and nothing else.

Everything that must exist once stays with the run: rows, dedup, stored answers, the log and parts,
max_errors, drift, the deadline. So an engine may be a pool in this process (`local`) or pools
elsewhere; the setting `engine` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Arrived, Item
    from pipeline.system.threads import Stop


class Engine(Protocol):
    """What a run needs of an engine; used inside `async with`, which drains it at the end.

    It is given settings, which can cross a process border, and a `Stop`: once that is asked,
    nothing more is sent, what is in flight is awaited, and open calls of `ask` raise the reason.
    What ends the engine itself (a refusal, an outage) it asks of that `Stop`, too.
    """

    async def __aenter__(self) -> Self:
        """Raise SettingsError or ClassifyError if the endpoint cannot be asked at all."""
        ...

    async def __aexit__(self, *error: object) -> None:
        """Wait for what is in flight, after a stop no longer than `grace_s`."""
        ...

    async def ask(self, items: Sequence[Item], arrived: Arrived) -> None:
        """Have inputs answered; `arrived` hears of each request's outcomes as they come.

        Returns once each input has its outcome. Each call was announced by `expect`.
        """
        ...

    def expect(self) -> None:
        """Hear that one more `ask` will come, so that it is worth waiting for to fill a batch."""
        ...

    async def hungry(self) -> None:
        """Wait until more input is worth reading, since there may soon be too little to ask."""
        ...

    def input_blocked(self, blocked: bool) -> None:
        """Hear whether new input must wait for the oldest to be answered."""
        ...

    def no_more_input(self) -> None:
        """Hear that nothing more will be expected."""
        ...


def engine_for(config: RunConfig, emit: Observer, stop: Stop, *, requests_sent: int = 0) -> Engine:
    """Return the engine that the settings name.

    `requests_sent` were sent by earlier passes of this run; they count towards `max_requests`.
    """
    match config.engine:
        case "local":
            from pipeline.engines.local import LocalEngine

            return LocalEngine(config, emit, stop, requests_sent=requests_sent)
