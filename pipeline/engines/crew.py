"""A crew: workers that send the requests of a pool which stays here.

Only bytes go to them, an exchange at a time, each to the one that has the fewest. One that is lost
takes no request with it: what it had in flight is asked again by the others.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from pipeline.engines.loads import Loads
from pipeline.engines.places import Places
from pipeline.engines.remote_wire import RemoteWire
from pipeline.errors import Cause, Retryable, SettingsError, StoppedEarly
from pipeline.foreign import secrets
from pipeline.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from pipeline.client.target import Target
    from pipeline.client.wire import Told
    from pipeline.config import RunConfig
    from pipeline.engines.member import Worker
    from pipeline.engines.places import Staff
    from pipeline.events import Observer
    from pipeline.system.threads import Stop


class Crew:
    """The workers of a run; `async with` starts and ends them.

    What ends the crew itself is asked of `stop`.
    """

    def __init__(
        self, config: RunConfig, staff: Staff, emit: Observer, stop: Stop, requests_sent: int = 0
    ) -> None:
        self._places = Places(config.workers, staff, emit, stop)
        self._most_s = config.max_outage_s
        self._stop = stop
        self._sent_before = requests_sent > 0
        # Those at work that requests can go to; a silent one is left out until it is heard of.
        self._loads: Loads[Worker] = Loads()
        self._lines: list[dict[str, Any]] = []
        self._heard = asyncio.Event()
        self._hearing = ExitStack()
        self._numbers = 0

    async def __aenter__(self) -> Self:
        """Wait for the first worker; the others come as they come."""
        self._hearing.enter_context(self._stop.heard_by(lambda _: self._heard.set()))
        self._places.open(self)
        try:
            async with asyncio.timeout(self._most_s):
                await self.until_ready()
            self._stop.check()
        except TimeoutError:
            await self.__aexit__()
            raise StoppedEarly(
                f"No worker has started within {self._most_s:g} s (max_outage_s).",
                "Check that there is room for one, then run the same command again.",
            ) from None
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._hearing.close()
        await self._places.close()

    def came(self, worker: Worker, version: str) -> None:
        """Take a worker that says it is ready."""
        if version != __version__:
            self.failed(
                worker,
                SettingsError(
                    f"{worker.name} has version {version} of this package, and the run "
                    f"{__version__}.",
                    "Install the same version everywhere.",
                ),
            )
            return
        worker.heard_at = monotonic()
        for line in self._lines:
            worker.say_alone(line)
        worker.at_work = True

    def failed(self, worker: Worker, error: Exception) -> None:
        """End the run with what a worker can never do."""
        worker.end(str(error))
        if isinstance(error, SettingsError) and (self._sent_before or self._numbers):
            # Its exit code would say that nothing was sent.
            error = StoppedEarly(error.what, error.fix)
        self._stop.ask(error)

    def heard(self, worker: Worker) -> None:
        """Use a worker, and let those go on that wait for one."""
        if worker.at_work and worker not in self._loads:
            self._loads.put(worker, len(worker.exchanges))
        self._heard.set()

    def changed(self, worker: Worker) -> None:
        """Take note that a worker has other requests, or is no longer at work."""
        if not worker.at_work:
            self._loads.remove(worker)
        elif worker in self._loads:
            self._loads.put(worker, len(worker.exchanges))

    def _freest(self) -> Worker | None:
        """Return the worker with the fewest requests of those that were heard of lately."""
        while (worker := self._loads.first()) is not None and worker.is_silent:
            self._loads.remove(worker)
        return worker

    @property
    def ready(self) -> bool:
        """True if there is a worker that was heard of lately."""
        return self._freest() is not None

    async def until_ready(self) -> None:
        """Wait for a worker, or for the stop."""
        while not self.ready and self._stop.reason is None:
            self._heard.clear()
            await self._heard.wait()

    def wire(self, target: Target, headers: Mapping[str, str]) -> RemoteWire:
        """Return what stands for a wire in a client here."""
        return RemoteWire(self, target, headers)

    def set_line(self, number: int | None, target: Target, headers: Mapping[str, str]) -> int:
        """Tell all workers, those that come later too, of an address and its headers."""
        if number is None:
            number = len(self._lines)
            self._lines.append({})
        self._lines[number] = line = {
            "kind": "line",
            "line": number,
            "url": target.url,
            "headers": dict(headers),
            "private": bool(target.token or target.headers),
            "secrets": secrets(),
        }
        for worker in self._places.workers:
            if worker.at_work:
                worker.say_alone(line)
        return number

    async def exchange(
        self, line: int, method: str, url: URL, body: bytes, headers: tuple[tuple[str, str], ...]
    ) -> Told:
        """Have a worker exchange a request for its answer; see `Wire.exchange`."""
        if not self.ready:
            await self.until_ready()
        if (worker := self._freest()) is None:
            raise Retryable(Cause.WORKER_LOST, "there is no worker")
        self._numbers = number = self._numbers + 1
        head = {
            "kind": "exchange",
            "number": number,
            "line": line,
            "method": method,
            "url": str(url),
            "headers": headers,
        }
        asked = worker.ask(number, head, body)
        try:
            return await asked
        except asyncio.CancelledError:
            if worker.no_longer(number) is None:
                raise
            worker.say({"kind": "cancel", "number": number})
            if not worker.is_silent:
                raise
            # If the time is up, the endpoint is not to blame.
            lost = Retryable(Cause.WORKER_LOST, f"{worker.name}: not heard of lately")
            raise asyncio.CancelledError(lost) from None
