"""The tally: what the attempts came to, told once a tick instead of several times a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from pipeline.events import Requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.events import Event, Observer

TICK_S = 0.1


class Tally:
    """Counts attempts and emits a `Requests` event a tick, and before the pool's other events.

    `limits` gives the limits in force: requests in flight, and requests a second. `on_failure` gets
    the error of an observer that failed at a tick.
    """

    def __init__(
        self,
        emit: Observer,
        limits: Callable[[], tuple[int, float | None]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._emit = emit
        self._limits = limits
        self._on_failure = on_failure
        self.in_flight = 0
        self._timer: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._peak = self.in_flight
        self._sent = self._retries = self._inputs = self._failed_inputs = 0
        self._ended: Counter[tuple[int | None, str | None]] = Counter()
        self._seconds: list[float] = []

    def sent(self, *, retry: bool) -> None:
        """Count an attempt that begins."""
        self._sent += 1
        self._retries += retry
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def ended(self, status: int | None, cause: str | None, seconds: float) -> None:
        """Count an attempt that ended, as `Requests.ended` says."""
        self.in_flight -= 1
        self._ended[status, cause] += 1
        self._seconds.append(seconds)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def answered(self, inputs: int, failed: int) -> None:
        """Count distinct inputs that have their outcome; `failed` of them are errors."""
        self._inputs += inputs
        self._failed_inputs += failed

    def emit(self, event: Event) -> None:
        """Tell of something else, after what was counted before it."""
        self.flush()
        self._emit(event)

    def _tick(self) -> None:
        try:
            self.flush()
        except Exception as failure:  # noqa: BLE001  (the run ends with it)
            self._on_failure(failure)

    def flush(self) -> None:
        """Tell what was counted since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not (self._sent or self._ended or self._inputs):
            return
        limit, rate = self._limits()
        told = Requests(
            sent=self._sent,
            retries=self._retries,
            in_flight=self.in_flight,
            peak_in_flight=self._peak,
            ended=self._ended,
            seconds=self._seconds,
            inputs=self._inputs,
            failed_inputs=self._failed_inputs,
            limit=limit,
            rate=rate,
        )
        self._begin()
        self._emit(told)
