"""Virtual time for simulate.py: an event loop that waits for nothing, and what takes time in it.

The package's own code runs in it unchanged. A timer takes no time: the clock jumps to it.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import ModuleType


# What waits until a time may find itself short of it by a rounding error, and wait again.
TURN_S = 1e-8


class _Timeline(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("The simulation waits for something that never happens.")
        self.now += max(timeout, 0.0) + TURN_S
        return []


class Takes(Protocol):
    """Stands for an executor: says when work ends that is begun now."""

    def ends_at(self, now: float) -> float: ...


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time; work "in threads" is done at once, and ends when it says."""

    def __init__(self) -> None:
        self.timeline = _Timeline()
        super().__init__(self.timeline)

    def time(self) -> float:
        return self.timeline.now

    def run_in_executor(self, executor: Takes, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = self.create_future()
        result = func(*args)
        self.call_at(executor.ends_at(self.time()), _settle, future, result)
        return future


def _settle(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


class LoopClock(Clock):
    """The clock that the package is given: the loop's time, and chance with a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def jitter(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)


class Core:
    """One core, which does one thing after the other: the driver's interpreter."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0
        self.busy_s = 0.0

    def take(self, seconds: float) -> float:
        """Begin work as soon as the core is free; return when it ends."""
        self._free_at = max(self._free_at, self._loop.time()) + seconds
        self.busy_s += seconds
        return self._free_at

    async def work(self, seconds: float) -> None:
        """Do work, and wait for it."""
        future = self._loop.create_future()
        self._loop.call_at(self.take(seconds), _settle, future, None)
        await future


class Stage:
    """A kind of work on that core, of which each piece takes equally long."""

    def __init__(self, core: Core, seconds: float) -> None:
        self._core, self._seconds = core, seconds

    def ends_at(self, _now: float) -> float:
        return self._core.take(self._seconds)


@contextmanager
def constants(*changed: tuple[ModuleType, str, Any]) -> Iterator[None]:
    """Give constants of the package other values for a while."""
    before = [(module, name, getattr(module, name)) for module, name, _ in changed]
    try:
        for module, name, value in changed:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in virtual time, from 0 on."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())  # type: ignore[arg-type]
