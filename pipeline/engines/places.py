"""The places of the workers: each is filled again whenever its worker is lost."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from pipeline.engines.member import SILENT_S, Worker
from pipeline.engines.worker import BEAT_S
from pipeline.errors import StoppedEarly
from pipeline.events import WorkerLost, Workers, WorkerState
from pipeline.wording import sentence

if TYPE_CHECKING:
    from pipeline.engines.crew import Crew
    from pipeline.events import Observer
    from pipeline.system.threads import Stop

# After so long without a beat a worker is dismissed: well after the lease by which it sends.
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


class Places:
    """So many places, and the workers in them, who are of a crew.

    One that beats no more is dismissed. If workers only end, that ends the run: it is asked of
    `stop`.
    """

    def __init__(self, count: int, staff: Staff, emit: Observer, stop: Stop) -> None:
        self.workers: list[Worker] = []
        self._count = count
        self._staff = staff
        self._emit = emit
        self._stop = stop
        self._filling: list[asyncio.Task[None]] = []
        self._barren = 0
        self._over = asyncio.Event()
        self._checked_at = self._told_at = monotonic()

    def open(self, crew: Crew) -> None:
        """Begin to fill all places."""
        for number in range(1, self._count + 1):
            filling = asyncio.create_task(self._fill(number, crew), name=f"place-{number}")
            self._filling.append(filling)
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._check)

    async def close(self) -> None:
        """End all workers, and return once they have ended."""
        self._over.set()
        self._timer.cancel()
        for worker in self.workers:
            worker.end("the run is over")
        await asyncio.gather(*self._filling, return_exceptions=True)
        await self._staff.close()

    async def _fill(self, number: int, crew: Crew) -> None:
        """Have a worker in this place, another one whenever it is lost."""
        while not self._over.is_set():
            worker = Worker(number, crew)
            self.workers.append(worker)
            try:
                worker.end(await self._staff.employ(worker))
            except Exception as error:  # noqa: BLE001  (the run ends with it)
                crew.failed(worker, error)
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
        if self._barren >= MOST_BARREN * self._count:
            self._stop.ask(
                StoppedEarly(
                    f"Workers end before they have answered anything; the last one: {worker.name}, "
                    f"{sentence(worker.why)}",
                    "Run the same command again once that is solved.",
                )
            )
        else:
            self._emit(WorkerLost(worker.name, worker.why, worker.unanswered))

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
            self._emit(Workers(self._count, tuple(states)))
        except Exception as failure:  # noqa: BLE001  (the run ends with it)
            self._stop.ask(failure)
