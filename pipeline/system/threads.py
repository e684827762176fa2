"""Blocking work in threads. A thread cannot be cancelled, so it is asked to end, and waited for.

Work that is left to itself would go on after its run: hold the lock, write files, keep the
process from ending.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from pipeline.errors import StoppedEarly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

T = TypeVar("T")


class Stop:
    """The one way to end early, whatever the reason; the first reason asked for holds.

    Threads notice it at their next `stop_point`; who waits for something else hears of it through
    `heard_by`. A stop is asked for too when its `parent` is: that of a run ends each pass over its
    rows, while a pass may end alone.
    """

    def __init__(self, parent: Stop | None = None) -> None:
        # Why to end; None as long as nobody asked. Read several times a request: no property.
        self.reason: BaseException | None = None if parent is None else parent.reason
        self._listeners: list[Callable[[BaseException], None]] = []
        self.children: WeakSet[Stop] = WeakSet()
        if parent is not None:
            parent.children.add(self)

    def ask(self, reason: BaseException) -> None:
        """End early for `reason`, unless there is one already."""
        if self.reason is None:
            self.reason = reason
            for listener in tuple(self._listeners):
                listener(reason)
            for child in tuple(self.children):
                child.ask(reason)

    def check(self) -> None:
        """Raise the reason, if there is one."""
        if (reason := self.reason) is not None:
            raise reason

    @contextmanager
    def heard_by(self, listener: Callable[[BaseException], None]) -> Iterator[None]:
        """Call `listener` with the reason, once, as soon as there is one."""
        self._listeners.append(listener)
        try:
            if self.reason is not None:
                listener(self.reason)
            yield
        finally:
            self._listeners.remove(listener)


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
    """Do blocking work in a thread (of `executor`); return its result.

    With `stop` the work ends early if that is asked or this task is cancelled; without, as for a
    commit, it is done to its end. A cancellation goes through once the thread has ended, and the
    result is lost then: what has to be closed must be known to somebody else.
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
