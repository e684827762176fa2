"""The event log: what a run did and when, one JSON object a line, for people and for reports.

It holds what is worth reading later; requests are summed up once a second, so that the log of a
run of a million requests stays small.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from pipeline.events import ChunkLookedUp, Requests, RunStarted, Workers
from pipeline.foreign import redacted_bytes

if TYPE_CHECKING:
    from pipeline.events import Event
    from pipeline.store.objects import GrowingFile

LoggedEvent: TypeAlias = dict[str, Any]

TICK_S = 1.0
# How often it is told what each of the workers does, if they stay the same.
WORKERS_S = 10.0


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
        self._untold: list[Requests] = []
        self._at_work: set[str] = set()
        self._workers_at = 0.0

    def __call__(self, event: Event) -> None:
        """Log one event, or add it to the sum of this second."""
        match event:
            case Requests():
                self._untold.append(event)
                if time.time() - self._tick_at >= TICK_S:
                    self._tick()
            case ChunkLookedUp():
                pass
            case Workers():
                # What each of them does changes all the time, and there may be many.
                names = {each.name for each in event.at_work}
                if names != self._at_work or time.time() - self._workers_at >= WORKERS_S:
                    self._at_work, self._workers_at = names, time.time()
                    self._write("Workers", asdict(event))
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
        ended: Counter[str] = Counter()
        for told in self._untold:
            for (_, cause), count in told.ended.items():
                ended[cause or "ok"] += count
        if ended:
            last = self._untold[-1]
            seconds = sorted(chain.from_iterable(told.seconds for told in self._untold))
            self._write(
                "Requests",
                {
                    "sent": sum(told.sent for told in self._untold),
                    "retries": sum(told.retries for told in self._untold),
                    "in_flight": last.in_flight,
                    "limit": last.limit,
                    "rate": last.rate,
                    "ended": dict(ended),
                    "inputs": sum(told.inputs for told in self._untold),
                    "failed_inputs": sum(told.failed_inputs for told in self._untold),
                    "median_s": round(seconds[len(seconds) // 2], 4),
                    "p95_s": round(seconds[len(seconds) * 95 // 100], 4),
                    "slowest_s": round(seconds[-1], 4),
                },
            )
            self._untold.clear()
        self._tick_at = time.time()

    def _write(self, kind: str, facts: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = {"at": round(time.time(), 3), "event": kind, **facts}
        try:
            dumped = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
            self._file.append(redacted_bytes(dumped))
        except OSError:
            self._file.close()
            self._file = None


def logged(line: bytes) -> LoggedEvent | None:
    """Return the event of a line of the log; None for a line that a kill has torn."""
    with suppress(orjson.JSONDecodeError):
        event = orjson.loads(line)
        if isinstance(event, dict) and "event" in event and type(event.get("at")) is float:
            return event
    return None
