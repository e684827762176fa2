"""Stopping what runs in a thread: it asks between blocks of work whether it is still wanted.

A thread cannot be cancelled. What may take long there (planning, reading, verifying, assembling)
calls `check` every few milliseconds' worth of work, which raises what stopped the run.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Flag:
    """Why to stop; None while work is wanted. It holds for all that was begun below it, too."""

    def __init__(self, above: Flag | None = None) -> None:
        self.reason: BaseException | None = None
        self._above = above

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self.reason is not None:
            raise self.reason
        if self._above is not None:
            self._above.check()


# Handed on by asyncio to tasks and threads, so that no signature has to carry it.
current: ContextVar[Flag | None] = ContextVar("stop flag", default=None)


def check() -> None:
    """Raise what stopped the work that this thread does, if anything did."""
    flag = current.get()
    if flag is not None:
        flag.check()


async def in_thread(call: Callable[[], T]) -> T:
    """Run a call in a thread.

    Where the caller is cancelled, the call is stopped at its next `check` and its end is waited
    for: it may write, and must not do so once the lock of the run is given back.
    """
    flag = Flag(current.get())

    def work() -> T:
        current.set(flag)
        return call()

    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        flag.reason = StoppedEarly("The call was cancelled.")
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # nobody else will look at it
        raise
