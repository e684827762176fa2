"""Which worker has the fewest requests, without a look at all of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Loads(Generic[T]):
    """Workers by their numbers of requests. What each call takes does not grow with the workers."""

    def __init__(self) -> None:
        self._load: dict[T, int] = {}
        # For each number of requests, the workers that have so many; who came last is last.
        self._having: list[OrderedDict[T, None]] = []
        # None has fewer.
        self._fewest = 0

    def __contains__(self, worker: T) -> bool:
        return worker in self._load

    def put(self, worker: T, load: int) -> None:
        """Add a worker, or change how many requests it has."""
        self.remove(worker)
        while len(self._having) <= load:
            self._having.append(OrderedDict())
        self._having[load][worker] = None
        self._load[worker] = load
        self._fewest = min(self._fewest, load)

    def remove(self, worker: T) -> None:
        """Leave out a worker, if it is in."""
        if (load := self._load.pop(worker, None)) is not None:
            del self._having[load][worker]

    def first(self) -> T | None:
        """Return one that has the fewest: of several, who has had so many for longest."""
        if not self._load:
            return None
        while not self._having[self._fewest]:
            self._fewest += 1
        return next(iter(self._having[self._fewest]))
