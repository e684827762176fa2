"""A crew: workers that send the requests of a pool which stays here.

Only bytes go to them, an exchange at a time, each to the one that has the fewest. One that is lost
takes no request with it: what it had in flight is asked again by the others.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, Self

from multidict import CIMultiDict

from pipeline.client.wire import Headers, Told
from pipeline.engines.frames import Frames, error_in, frame
from pipeline.engines.loads import Loads
from pipeline.engines.remote_wire import RemoteWire
from pipeline.engines.worker import BEAT_S
from pipeline.errors import Cause, Retryable, SettingsError, StoppedEarly
from pipeline.events import WorkerLost, Workers, WorkerState
from pipeline.foreign import secrets
from pipeline.version import __version__
from pipeline.wording import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from yarl import URL

    from pipeline.client.target import Target
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.system.threads import Stop

# A worker that was not heard of for so long gets no requests, until it is heard of again.
SILENT_S = 1.5
# After so long it is dismissed: well after the lease by which it sends has ended.
DISMISSED_S = 10.0
# How often it is told what the workers do.
TOLD_S = 1.0
# How long the place of a worker stays empty that ended without an answer: twofold each time.
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
# So many may end in a row before any of them has answered, for each place.
MOST_BARREN = 4


class Staff(Protocol):
    """What starts workers; each kind of engine has its own."""

    async def employ(self, worker: Worker) -> str:
        """Start a worker, connect it, and return once it has ended: why, in words."""

    async def close(self) -> None:
        """Release what workers needed, once the last one has ended."""


class Worker:
    """A worker as the run sees it; `number` is that of its place."""

    def __init__(self, number: int, crew: Crew) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.at_work = False
        self.heard_at = monotonic()
        self.ready_within_s = inf
        self.exchanges: dict[int, asyncio.Future[Told]] = {}
        self.answered = self.answered_before = 0
        self.why = ""
        self.unanswered = 0
        self.dismissed = False
        # Set once it is to end: it is dismissed, or there is nothing more to do.
        self.leaves = asyncio.Event()
        self._crew = crew
        self._frames = Frames()
        self._out: list[bytes] = []
        self._write: Callable[[list[bytes]], None] | None = None

    def connect(self, write: Callable[[list[bytes]], None], *, ready_within_s: float = inf) -> None:
        """Send by `write` from now on, which gets pieces of frames once a pass of the loop.

        It is dismissed if it is not ready by then.
        """
        self._write = write
        self.heard_at = monotonic()
        self.ready_within_s = ready_within_s

    @property
    def is_silent(self) -> bool:
        """True if it was not heard of lately."""
        return monotonic() - self.heard_at > SILENT_S

    def ask(self, number: int, head: dict[str, Any], body: bytes) -> asyncio.Future[Told]:
        """Have it exchange a request."""
        self.say(head, body)
        asked: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self.exchanges[number] = asked
        self._crew.changed(self)
        return asked

    def no_longer(self, number: int) -> asyncio.Future[Told] | None:
        """Wait for a request no longer; None if it is over already."""
        asked = self.exchanges.pop(number, None)
        self._crew.changed(self)
        return asked

    def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame, unless this one is dismissed."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out += frame(head, body)

    def say_alone(self, head: dict[str, Any]) -> None:
        """Send a frame with nothing else, at once: Ray keeps large messages in a shared store."""
        self._flush()
        self._out += frame(head)
        self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._write is not None and not self.leaves.is_set():
            self._write(out)

    def received(self, data: bytes) -> None:
        """Take bytes of the worker; those of one that is dismissed mean nothing any more."""
        if self.leaves.is_set():
            return
        for head, body in self._frames.of(data):
            self._take(head, body)

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        match head["kind"]:
            case "answer" | "error":
                asked = self.no_longer(head["number"])
                if asked is None or asked.done():
                    return
                self.answered += 1
                if head["kind"] == "answer":
                    headers = Headers(CIMultiDict(head["headers"]))
                    asked.set_result(Told(head["status"], headers, body))
                elif head["error"]:
                    asked.set_exception(error_in(head))
                else:
                    asked.set_exception(RuntimeError(f"in {self.name}:\n{head['traceback']}"))
            case "beat":
                # Nothing else counts: one that wakes refuses what waited for it before it beats.
                self.heard_at = monotonic()
                self.say({"kind": "echo", "at": head["at"]})
                self._crew.heard(self)
            case "ready":
                self.name = f"worker {self.number} (process {head['pid']} on {head['host']})"
                self._crew.came(self, head["version"])
            case "failed":
                self._crew.failed(self, error_in(head))

    def end(self, why: str) -> None:
        """Stop using it: it has ended, or is to end."""
        self.why = self.why or why
        self.at_work = False
        self._crew.changed(self)
        self.leaves.set()
        self.unanswered += len(self.exchanges)
        exchanges, self.exchanges = self.exchanges, {}
        for asked in exchanges.values():
            if not asked.done():
                asked.set_exception(Retryable(Cause.WORKER_LOST, f"{self.name}: {self.why}"))


class Crew:
    """The workers of a run; `async with` starts and ends them.

    What ends the crew itself is asked of `stop`.
    """

    def __init__(
        self, config: RunConfig, staff: Staff, emit: Observer, stop: Stop, requests_sent: int = 0
    ) -> None:
        self._config = config
        self._staff = staff
        self._emit = emit
        self._stop = stop
        self._sent_before = requests_sent > 0
        self.workers: list[Worker] = []
        # Those at work that requests can go to; a silent one is left out until it is heard of.
        self._loads: Loads[Worker] = Loads()
        self._lines: list[dict[str, Any]] = []
        self._places: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()
        self._hearing = ExitStack()
        self._numbers = 0
        self._barren = 0
        self._over = asyncio.Event()
        self._checked_at = self._told_at = monotonic()

    async def __aenter__(self) -> Self:
        """Wait for the first worker; the others come as they come."""
        self._hearing.enter_context(self._stop.heard_by(lambda _: self._heard.set()))
        for number in range(1, self._config.workers + 1):
            place = asyncio.create_task(self._fill(number), name=f"place-{number}")
            self._places.append(place)
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._check)
        most_s = self._config.max_outage_s
        try:
            async with asyncio.timeout(most_s):
                await self.until_ready()
            self._stop.check()
        except TimeoutError:
            await self.__aexit__()
            raise StoppedEarly(
                f"No worker has started within {most_s:g} s (max_outage_s).",
                "Check that there is room for one, then run the same command again.",
            ) from None
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._timer.cancel()
        self._hearing.close()
        for worker in self.workers:
            worker.end("the run is over")
        await asyncio.gather(*self._places, return_exceptions=True)
        await self._staff.close()

    async def _fill(self, number: int) -> None:
        """Have a worker in this place, another one whenever it is lost."""
        while not self._over.is_set():
            worker = Worker(number, self)
            self.workers.append(worker)
            try:
                worker.end(await self._staff.employ(worker))
            except Exception as error:  # noqa: BLE001  (the run ends with it)
                self.failed(worker, error)
            finally:
                self.workers.remove(worker)
            if self._over.is_set() or self._stop.reason is not None:
                return
            self._barren = 0 if worker.answered else self._barren + 1
            self._lost(worker)
            pause_s = FIRST_PAUSE_S * 2 ** min(self._barren, 10) if self._barren else 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, LONGEST_PAUSE_S)):
                    await self._over.wait()

    def _lost(self, worker: Worker) -> None:
        if self._barren >= MOST_BARREN * self._config.workers:
            self._stop.ask(
                StoppedEarly(
                    f"Workers end before they have answered anything; the last one: {worker.name}, "
                    f"{sentence(worker.why)}",
                    "Run the same command again once that is solved.",
                )
            )
        else:
            self._emit(WorkerLost(worker.name, worker.why, worker.unanswered))

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

    def _check(self) -> None:
        """Dismiss those who were not heard of for too long; tell what the workers do."""
        now = monotonic()
        if now - self._checked_at > SILENT_S:
            # This process did not run: what they said meanwhile is still to be read.
            for worker in self.workers:
                worker.heard_at = now
        self._checked_at = now
        for worker in self.workers:
            most_s = DISMISSED_S if worker.at_work else worker.ready_within_s
            if now - worker.heard_at > most_s:
                worker.dismissed = True
                worker.end(
                    f"not {'heard of for' if worker.at_work else 'ready after'} {most_s:g} s"
                )
        if now - self._told_at >= TOLD_S:
            self._tell(now)
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._check)

    def _tell(self, now: float) -> None:
        states = []
        for each in self.workers:
            if each.at_work:
                a_second = (each.answered - each.answered_before) / (now - self._told_at)
                each.answered_before = each.answered
                states.append(WorkerState(each.name, len(each.exchanges), round(a_second, 1)))
        self._told_at = now
        try:
            self._emit(Workers(self._config.workers, tuple(states)))
        except Exception as failure:  # noqa: BLE001  (the run ends with it)
            self._stop.ask(failure)

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
        for worker in self.workers:
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
