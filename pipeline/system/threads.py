"""Blocking work in threads. A thread cannot be cancelled, so it is asked to end, and waited for.

Work that is left to itself would go on after its run: hold the lock, write files, keep the
process from ending.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

T = TypeVar("T")


class Stop:
    """Asks the calls that were given it to end, at their next `stop_point`.

    It is also asked where its `parent` is.
    """

    def __init__(self, parent: Stop | None = None) -> None:
        self._parent = parent
        self._reason: BaseException | None = None

    def ask(self, reason: BaseException) -> None:
        """Have every `stop_point` raise `reason` from now on; the first one asked for holds."""
        self._reason = self._reason or reason

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if self._reason is not None:
            raise self._reason
        if self._parent is not None:
            self._parent.check()


_stop: ContextVar[Stop | None] = ContextVar("_stop", default=None)


def stop_point() -> None:
    """A place where long work may end early, at most some tenths of a second from the next one.

    Raises what the `Stop` of this call was asked with. Does nothing outside of `in_thread`.
    """
    stop = _stop.get()
    if stop is not None:
        stop.check()


async def in_thread(
    call: Callable[[], T], stop: Stop | None = None, executor: Executor | None = None
) -> T:
    """Do blocking work in a thread (of `executor`); gives what it gives.

    With `stop` the work ends early where that is asked, or this task cancelled; without, as for a
    commit, it is done to its end. A cancellation goes through once the thread has ended, and what
    the work gave is lost then: what has to be closed must be known to somebody else.
    """
    own = None if stop is None else Stop(stop)
    context = copy_context()
    context.run(_stop.set, own)
    work = asyncio.get_running_loop().run_in_executor(executor, context.run, call)
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
            if own is not None:
                own.ask(StoppedEarly("The call was cancelled."))
    if cancelled is not None:
        work.exception()  # or asyncio complains that nobody asked for it
        raise cancelled
    return work.result()
