"""Metrics: counts over one attempt of a run, for the summary and for progress."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pipeline.events import (
    ChunkLookedUp,
    Notice,
    PartCommitted,
    Requests,
    RunStarted,
    Stopping,
    WorkerLost,
    Workers,
)
from pipeline.observers.words import notice

if TYPE_CHECKING:
    from pipeline.events import Event


# A server that comes and goes may be told of very often.
MOST_NOTICES = 100


class Metrics:
    """Counts events; its attributes are named as in the summary."""

    def __init__(self) -> None:
        self.requests = self.retries = self.in_flight = self.peak_in_flight = self.limit = 0
        self.rate: float | None = None
        # Of an engine that has workers.
        self.workers = self.wanted_workers = self.workers_lost = 0
        self.responses: Counter[str] = Counter()
        self.notices: list[str] = []
        self._begin(0, 0)

    def _begin(self, rows: int, resumed_rows: int) -> None:
        self.rows, self.resumed_rows = rows, resumed_rows
        self.committed_rows = self.errors = 0
        self.distinct_inputs = self.cache_hits = self.failed_inputs = 0
        self._sums: Counter[str] = Counter()  # of what `estimated_rows` needs

    def __call__(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Notice) and not isinstance(event, Stopping):  # true of a moment only
            self._note(notice(event))
        match event:
            case Requests():
                self.requests += event.sent
                self.retries += event.retries
                self.in_flight, self.limit, self.rate = event.in_flight, event.limit, event.rate
                self.peak_in_flight = max(self.peak_in_flight, event.peak_in_flight)
                for (status, cause), count in event.ended.items():
                    # Without a status the cause says how the attempt ended.
                    self.responses[str(status or cause)] += count
                self._sums["answered"] += event.inputs
                self.failed_inputs += event.failed_inputs
            case ChunkLookedUp():
                self.distinct_inputs += event.distinct
                self.cache_hits += event.hits
                self._sums.update(looked_up_rows=event.rows, asked=event.asked)
            case PartCommitted():
                self.committed_rows += event.rows
                self.errors += event.errors
            case Workers():
                self.workers, self.wanted_workers = len(event.at_work), event.wanted
            case WorkerLost():
                self.workers_lost += 1
            case RunStarted():
                self._begin(event.rows, event.resumed_rows)
            case _:
                pass

    def _note(self, words: str) -> None:
        if words not in self.notices and len(self.notices) < MOST_NOTICES:
            self.notices.append(words)

    @property
    def all_committed(self) -> bool:
        """True if no row is left to do, and the output is all that is missing."""
        return self.resumed_rows + self.committed_rows >= self.rows > 0

    @property
    def estimated_rows(self) -> int:
        """About how many rows are done: those committed, and a share of those being answered."""
        sums = self._sums
        share = sums["answered"] / sums["asked"] if sums["asked"] else 0.0
        answered = int(sums["looked_up_rows"] * share)
        return min(self.resumed_rows + max(self.committed_rows, answered), self.rows)
