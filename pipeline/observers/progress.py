"""Progress: a bar in a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from pipeline.events import Notice, Requests, RunStarted, WaitEnded, Waiting
from pipeline.observers.metrics import Metrics

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.events import Event

PLAIN_EVERY_S = 10.0
BAR_EVERY_S = 0.1


def _duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole:02d} s" if minutes else f"{whole} s"


class _Counting(ABC):
    """What both kinds know: the counts, the speed and what the run waits for."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._started = self._shown = time.monotonic()
        self._waiting = ""

    def __call__(self, event: Event) -> None:
        self._metrics(event)
        with suppress(OSError):  # nobody reads any more: no reason to stop
            self._show(event)

    def _show(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case Waiting():
                about = "" if event.seconds is None else f", about {_duration(event.seconds)}"
                self._waiting = f"waiting: {event.reason}{about}"
                self._changed(self._waiting)
            case WaitEnded():
                self._waiting = ""
                self._changed(f"going on after {_duration(event.seconds)} ({event.reason})")
            case Notice():
                self._changed(event.message)
            case Requests():
                if any(cause is None for _, cause in event.ended):
                    self._waiting = ""
                self._tick()
            case _:
                self._tick()

    @abstractmethod
    def _begin(self, event: RunStarted) -> None:
        """Show that the run has begun."""

    @abstractmethod
    def _changed(self, message: str) -> None:
        """Show something that changed."""

    @abstractmethod
    def _tick(self) -> None:
        """Show how far the run is, where it is time to."""

    def _speed(self) -> float:
        done = self._metrics.estimated_rows - self._metrics.resumed_rows
        return done / max(time.monotonic() - self._started, 1e-6)

    def _facts(self) -> str:
        metrics, speed = self._metrics, self._speed()
        facts = [f"{speed:,.0f} rows/s", f"{metrics.in_flight} in flight"]
        if metrics.retries:
            facts.append(f"{metrics.retries:,} retries")
        if metrics.failed_inputs:
            facts.append(f"{metrics.failed_inputs:,} errors")
        if metrics.cache_hits:
            facts.append(f"{metrics.cache_hits:,} known")
        left = metrics.rows - metrics.estimated_rows
        if speed > 0 and left:
            facts.append(f"{_duration(left / speed)} left")
        return ", ".join(facts)


class PlainProgress(_Counting):
    """A line now and then, for logs of cron and pipes."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream

    def _begin(self, event: RunStarted) -> None:
        self._started = time.monotonic()
        resumed = f", {event.resumed_rows:,} of them done before" if event.resumed_rows else ""
        model = f", model {event.model}" if event.model else ""
        self._changed(f"{event.rows:,} rows{resumed}, endpoint {event.endpoint}{model}")

    def _changed(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._shown >= PLAIN_EVERY_S:
            self._shown = now
            done, rows = self._metrics.estimated_rows, self._metrics.rows
            self._changed(f"{done:,} of {rows:,} rows ({done / max(rows, 1):.0%}), {self._facts()}")

    def close(self) -> None:
        """Nothing to tidy up."""


class TerminalProgress(_Counting):
    """A bar that is redrawn in place."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream
        self._bar: Progress | None = None

    def _begin(self, event: RunStarted) -> None:
        # Loaded here: only a terminal needs it.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
        )

        self._started = time.monotonic()
        self._bar = Progress(
            BarColumn(),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=self._stream),
            auto_refresh=False,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=event.rows, completed=event.resumed_rows)
        self._bar.refresh()

    def _changed(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._bar is not None and now - self._shown >= BAR_EVERY_S:
            self._shown = now
            self._draw()

    def _draw(self) -> None:
        assert self._bar is not None
        self._bar.update(
            self._task,
            completed=self._metrics.estimated_rows,
            description=self._waiting or self._facts(),
        )
        self._bar.refresh()

    def close(self) -> None:
        """Draw the last state and leave the terminal as it was."""
        if self._bar is not None:
            self._draw()
            self._bar.stop()
            self._bar = None


def progress_for(stream: IO[str]) -> PlainProgress | TerminalProgress:
    """A bar where somebody looks on, plain lines elsewhere."""
    return TerminalProgress(stream) if stream.isatty() else PlainProgress(stream)
