"""The alarm: one timer for all attempts in flight, which ends those that take too long.

All attempts may take equally long, so the oldest is the next one that is due. aiohttp would set a
timer for each request, which is a good part of what a request costs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from pipeline.client.wire import overdue
from pipeline.errors import ClassifyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.system.clock import Clock

# Only tasks make attempts, so there always is one.
_current_task = cast("Callable[[], asyncio.Task[None]]", asyncio.current_task)
# How soon an overdue attempt that goes on is cancelled again.
CANCEL_AGAIN_S = 1.0


class Alarm:
    """Cancels an attempt after `timeout_s` and turns that into a failure that may be retried.

    An attempt is what the current task does within `with alarm`. It raises Retryable (timeout, or
    what the wire blames) if the attempt was overdue; another cancellation goes through.
    """

    def __init__(self, timeout_s: float, clock: Clock) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        # When each attempt in flight began, oldest first.
        self._began: dict[asyncio.Task[None], float] = {}
        # How often each overdue one was cancelled.
        self._cancelled: dict[asyncio.Task[None], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watches(self, task: asyncio.Task[None]) -> bool:
        """Return True while a task has a request in flight."""
        return task in self._began

    def __enter__(self) -> None:
        self._began[_current_task()] = self._clock.now()
        if self._timer is None:
            self._set(self._timeout_s)

    def __exit__(self, _type: object, failure: BaseException | None, _tb: object) -> None:
        task = _current_task()
        del self._began[task]
        if not self._cancelled or not self._forgive(task) or failure is None:
            return
        if isinstance(failure, ClassifyError | asyncio.CancelledError):
            if task.cancelling():
                raise asyncio.CancelledError from None
            raise overdue(failure, f"no answer within {self._timeout_s:g} s (timeout_s)") from None

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._ring)

    def _ring(self) -> None:
        """Cancel what is overdue, and set the timer for the next one."""
        self._timer = None
        now, left_s = self._clock.now(), 0.0
        for task, began in self._began.items():
            left_s = began + self._timeout_s - now
            if left_s > 0:
                break
            self._cancelled[task] = self._cancelled.get(task, 0) + 1
            task.cancel()
        if self._began:
            # A cancellation may get lost on its way: what does not end is cancelled again.
            self._set(CANCEL_AGAIN_S if self._cancelled else left_s)

    def _forgive(self, task: asyncio.Task[None]) -> bool:
        """Take back what the alarm asked of a task; True if it had asked."""
        times = self._cancelled.pop(task, 0)
        for _ in range(times):
            task.uncancel()
        return times > 0
