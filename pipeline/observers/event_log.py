"""The event log: what a run did and when, one JSON object a line, for people and for reports.

It holds what is worth reading later; requests are summed up once a second, so that the log of a
run of a million requests stays small.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.events import ChunkLookedUp, Requests, RunStarted

if TYPE_CHECKING:
    from pipeline.events import Event
    from pipeline.store.files import GrowingFile

TICK_S = 1.0


class EventLog:
    """Appends events to a file. The log is a help: if it cannot be written, the run goes on."""

    def __init__(self, file: GrowingFile) -> None:
        # A kill loses at most the second that is being summed up.
        self._file: GrowingFile | None = None
        with suppress(OSError):
            file.open()
            self._file = file
        self._tick_at = time.time()
        self._began = False
        self._causes: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._sent = self._retries = self._inputs = self._failed = 0
        self._limits: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        """Log one event, or add it to the sum of this second."""
        match event:
            case Requests():
                for (_, cause), count in event.ended.items():
                    self._causes[cause or "ok"] += count
                self._seconds.extend(event.seconds)
                self._sent += event.sent
                self._retries += event.retries
                self._limits = {
                    "in_flight": event.in_flight,
                    "limit": event.limit,
                    "rate": event.rate,
                }
                self._inputs += event.inputs
                self._failed += event.failed_inputs
                if time.time() - self._tick_at >= TICK_S:
                    self._tick()
            case ChunkLookedUp():
                pass
            case RunStarted():
                self._tick()
                # Else it could not be told from one after a kill.
                self._write("RunStarted", {**asdict(event), "again": self._began})
                self._began = True
            case _:
                self._tick()
                self._write(type(event).__name__, asdict(event))

    def close(self) -> None:
        """Write what is left and close the file."""
        self._tick()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _tick(self) -> None:
        if self._causes:
            ordered = sorted(self._seconds)
            self._write(
                "Requests",
                {
                    "sent": self._sent,
                    "retries": self._retries,
                    **self._limits,
                    "ended": dict(self._causes),
                    "inputs": self._inputs,
                    "failed_inputs": self._failed,
                    "median_s": round(ordered[len(ordered) // 2], 4),
                    "p95_s": round(ordered[len(ordered) * 95 // 100], 4),
                    "slowest_s": round(ordered[-1], 4),
                },
            )
            self._causes.clear()
            self._seconds.clear()
            self._sent = self._retries = self._inputs = self._failed = 0
        self._tick_at = time.time()

    def _write(self, kind: str, facts: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = {"at": round(time.time(), 3), "event": kind, **facts}
        try:
            self._file.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        except OSError:
            self._file.close()
            self._file = None
