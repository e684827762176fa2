"""Progress: a bar in a terminal, lines with the time or JSON elsewhere; all of it on stderr.

Events are only counted. What is shown is drawn by a timer, so that it goes on while nothing
happens, and costs the same however much does.
"""

from __future__ import annotations

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, ClassVar

import orjson

from pipeline.events import Notice, Requests, RunEnded, RunStarted, WaitEnded, Waiting, Why
from pipeline.foreign import safe, safe_json
from pipeline.observers.metrics import Metrics
from pipeline.observers.words import Wait, clock, duration, notice
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bar

    from pipeline.events import Event

PLAIN_EVERY_S = 10.0
BAR_EVERY_S = 0.2
# The speed, and with it the time left, is that of so long a time before now.
SPEED_OVER_S = 60.0
# Values of TERM of a terminal that can only append.
_NO_CURSOR = ("dumb", "unknown")
# How wide the bar is, at most and at least.
_BAR, _LEAST = 20, 4
# A terminal writes ^C behind the bar, twice at most; in the next line it would keep the bar there.
_ECHO = len("^C^C")
_COUNTS = (
    ("retries", "retry", "retries"),
    ("errors", "error", "errors"),
    ("cache_hits", "known", "known"),
)


class Progress(ABC):
    """What all kinds know: the counts, the speed and what the run waits for.

    An observer of one run; `close` it afterwards. `clock` returns seconds and never goes back.
    """

    every_s: ClassVar[float]

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._metrics = Metrics()
        self._wait: Wait | None = None
        self._wait_told_at = float("-inf")
        self._done: deque[tuple[float, int]] = deque()
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, event: Event) -> None:
        """Count one event, and tell of it where it is worth a line."""
        self._metrics(event)
        with suppress(OSError):  # nobody reads any more: no reason to stop
            self._take(event)

    def _take(self, event: Event) -> None:
        now = self._clock()
        match event:
            case RunStarted():
                self._stop_timer()
                self._wait = None
                self._done = deque([(now, event.resumed_rows)])
                self._begin(event)
                self._timer = asyncio.get_running_loop().call_later(self.every_s, self._tick)
            case Requests():
                if any(cause is None for _, cause in event.ended):
                    self._wait = None
            case Waiting():
                before, self._wait = self._wait, Wait.of(event, now, self._wait)
                self._tell_wait(before, now)
            case WaitEnded():
                self._wait = None
                # Waiting says nothing of the speed from here on.
                self._done = deque([(now, self._metrics.estimated_rows)])
                self._say("going_on", f"going on after {duration(event.seconds)} ({event.reason})")
            case Notice():
                self._say("notice", notice(event))
            case RunEnded() if not self._over:
                self._stop_timer()
                self._over, self._wait = True, None
                self._end(event)
            case _:
                pass

    def _tell_wait(self, before: Wait | None, now: float) -> None:
        """Tell of a wait that is new; an endpoint that throttles does so again and again."""
        assert self._wait is not None
        known = before is not None and before.reason is self._wait.reason
        lately = self._wait.reason is Why.THROTTLED and now - self._wait_told_at < PLAIN_EVERY_S
        if not (known or lately):
            self._wait_told_at = now
            self._say("waiting", f"waiting: {self._wait.announcement(now)}")

    def _tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.every_s, self._tick)
        with suppress(OSError):
            self._draw()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @abstractmethod
    def _begin(self, event: RunStarted) -> None:
        """Show that the run has begun."""

    @abstractmethod
    def _say(self, kind: str, message: str) -> None:
        """Show something that happened."""

    @abstractmethod
    def _draw(self) -> None:
        """Show how far the run is."""

    def _end(self, event: RunEnded) -> None:  # noqa: B027
        """Show that the run has ended, once; of these kinds the command tells what came of it."""

    def close(self) -> None:
        """Stop showing anything."""
        self._stop_timer()

    def _speed(self) -> float:
        """Rows a second over the last minute. Notes how many are done by now."""
        now, done = self._clock(), self._metrics.estimated_rows
        self._done.append((now, done))
        while len(self._done) > 2 and self._done[1][0] <= now - SPEED_OVER_S:  # noqa: PLR2004
            self._done.popleft()
        began, before = self._done[0]
        return max(done - before, 0) / max(now - began, 1e-6)

    def _state(self) -> dict[str, Any]:
        """How far the run is, in numbers."""
        metrics, speed, now = self._metrics, self._speed(), self._clock()
        wait = None if self._wait is None or self._wait.is_over(now) else self._wait
        left = metrics.rows - metrics.estimated_rows
        return {
            "rows": metrics.rows,
            "rows_done": metrics.estimated_rows,
            "rows_per_second": round(speed, 1),
            "seconds_left": round(left / speed, 1) if speed > 0 else None,
            "in_flight": metrics.in_flight,
            "concurrency_limit": metrics.limit,
            "rate_limit": None if metrics.rate is None else round(metrics.rate, 2),
            "workers": metrics.workers if metrics.wanted_workers else None,
            "requests": metrics.requests,
            "retries": metrics.retries,
            "errors": max(metrics.errors, metrics.failed_inputs),
            "cache_hits": metrics.cache_hits,
            "waiting": wait and wait.words(now),
        }

    def _words(self, state: dict[str, Any]) -> str:
        return ", ".join(filter(None, (self._next(state), *self._details(state))))

    def _next(self, state: dict[str, Any]) -> str:
        """Word what the run waits for, or else the time left; empty if that is not known."""
        if state["waiting"]:
            return str(state["waiting"])
        if self._metrics.all_committed and not self._over:
            return "putting the output together"
        return f"{duration(state['seconds_left'])} left" if state["seconds_left"] else ""

    def _details(self, state: dict[str, Any]) -> list[str]:
        """Word the speed, unless the run waits, and the counts that are not 0."""
        metrics, facts = self._metrics, []
        if self._over:
            facts += [f"{state['rows_per_second']:,.0f} rows/s"] if state["rows_per_second"] else []
        elif not (state["waiting"] or metrics.all_committed):
            facts.append(f"{state['rows_per_second']:,.0f} rows/s")
            facts.append(f"{state['in_flight']} of {state['concurrency_limit']} in flight")
            if state["workers"] is not None:
                facts.append(f"{state['workers']} of {counted(metrics.wanted_workers, 'worker')}")
            if (rate := state["rate_limit"]) is not None:
                about = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"  # noqa: PLR2004
                facts.append(f"at most {about} requests/s")
        for key, one, more in _COUNTS:
            if state[key]:
                facts.append(counted(state[key], one, more))
        return facts


class PlainProgress(Progress):
    """A line now and then, for logs of cron and pipes; each begins with the local time.

    `now` returns seconds since the epoch.
    """

    every_s = PLAIN_EVERY_S

    def __init__(
        self,
        stream: IO[str],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(clock)
        self._stream = stream
        self._now = now

    def _begin(self, event: RunStarted) -> None:
        resumed = f", {event.resumed_rows:,} of them done before" if event.resumed_rows else ""
        model = f", model {event.model}" if event.model else ""
        message = f"{counted(event.rows, 'row')}{resumed}, endpoint {event.endpoint}{model}"
        facts = {"rows": event.rows, "resumed_rows": event.resumed_rows, "output": event.output}
        facts |= {"endpoint": event.endpoint, "model": event.model}
        self._say("started", message, **facts)

    def _say(self, kind: str, message: str, **facts: Any) -> None:  # noqa: ARG002
        print(f"{clock(self._now())} {safe(message)}", file=self._stream, flush=True)

    def _draw(self) -> None:
        state = self._state()
        done, rows = state["rows_done"], state["rows"]
        line = (
            f"{done:,} of {counted(rows, 'row')} ({done / max(rows, 1):.0%}), {self._words(state)}"
        )
        self._say("progress", line, **state)


class JsonProgress(PlainProgress):
    """The same lines as JSON objects, for collectors of logs: one object a line.

    Each has `time` (UTC), `level` (info, warning, error), `event` and `message`; those of progress
    and of the end have the numbers too.
    """

    def _say(self, kind: str, message: str, **facts: Any) -> None:
        level = facts.pop("level", "warning" if kind in ("notice", "waiting") else "info")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, "event": kind, "message": message, **facts}
        print(safe_json(orjson.dumps(line)), file=self._stream, flush=True)

    def _end(self, event: RunEnded) -> None:
        """Tell how the run ended, and its numbers where it had begun."""
        state = self._state() if self._done else {}
        state = {key: state[key] for key in state if key not in _PASSING}
        facts = {"state": event.state, "exit_code": event.exit_code, **state}
        level = "error" if event.exit_code else "info"
        self._say("ended", event.message or event.state, level=level, **facts)


# What is true of a moment, and of none after the end.
_PASSING = {"rows_per_second", "seconds_left", "waiting"}


class TerminalProgress(PlainProgress):
    """A bar that is redrawn in place; until the run begins, plain lines."""

    every_s = BAR_EVERY_S
    _bar: Bar | None = None

    def _begin(self, event: RunStarted) -> None:
        # Loaded here: only a terminal needs it.
        from rich import console, progress

        out = console.Console(file=self._stream)
        if self._bar is not None:
            self._bar.stop()
        # Of its own, rich draws in a red that looks like an error.
        self._column = progress.BarColumn(complete_style="cyan", finished_style="green")
        self._bar = progress.Progress(
            self._column,
            progress.TextColumn("{task.description}", markup=False),
            console=out,
            auto_refresh=False,
        )
        self._began = self._clock()
        self._resumed_rows = event.resumed_rows
        self._task = self._bar.add_task("", total=event.rows)
        self._bar.start()
        self._draw()

    def _say(self, kind: str, message: str, **facts: Any) -> None:  # noqa: ARG002
        if self._bar is None:
            print(safe(message), file=self._stream, flush=True)
        else:
            self._bar.console.print(safe(message), markup=False, highlight=False)

    def _draw(self) -> None:
        if self._bar is not None:
            state = self._state()
            words = self._fitted(state, self._bar.console.width - _ECHO)
            self._bar.update(self._task, completed=state["rows_done"], description=words)
            self._bar.refresh()

    def _fitted(self, state: dict[str, Any], width: int) -> str:
        """Word how far the run is, and give the bar what room there is.

        Percentage, count and what comes next have theirs first, then the bar (up to a sixth of the
        line), then those of the details for which there is still room.
        """
        from rich.text import Text

        assert self._bar is not None
        done, rows = state["rows_done"], state["rows"]
        # Only what is whole is told as 100%.
        percent = 100 * done // rows if rows else 100
        count = Text(f"{percent:3d}% {done:,}/{rows:,}")
        room = width - count.cell_len - len("  ")
        facts = [safe(self._next(state)), *self._details(state)]
        # At the end nothing changes any more: the bar may make room for all of them.
        first = Text(safe(self._words(state)) if self._over else facts[0])
        most = min(_BAR, width // 6)
        self._column.bar_width = max(min(room - first.cell_len, most), _LEAST)
        room -= self._column.bar_width
        words = Text(", ".join(filter(None, facts)))
        while len(facts) > 1 and words.cell_len > room:
            facts.pop()
            words = Text(", ".join(filter(None, facts)))
        words.truncate(max(room, 0), overflow="ellipsis")
        return f"{count.plain} {words.plain}".rstrip()

    def _next(self, state: dict[str, Any]) -> str:
        """Word what comes next, or how long it took once that is over."""
        return f"in {duration(self._clock() - self._began)}" if self._over else super()._next(state)

    def _state(self) -> dict[str, Any]:
        """How far the run is; at its end the speed is that of the whole attempt."""
        state = super()._state()
        if self._over:
            took_s = max(self._clock() - self._began, 1e-6)
            state["rows_per_second"] = (state["rows_done"] - self._resumed_rows) / took_s
        return state

    def _end(self, event: RunEnded) -> None:
        """Take the bar away if the run has stopped: what it shows is not true any more."""
        if self._bar is not None and event.state != "complete":
            self._bar.live.transient = True

    def close(self) -> None:
        """Draw the last state and leave the terminal as it was."""
        super().close()
        if self._bar is not None:
            with suppress(OSError):
                self._draw()
                self._bar.stop()
            self._bar = None


def progress_for(stream: IO[str], log_format: str = "text") -> Progress:
    """JSON if that is asked for, else a bar in a terminal that can redraw it, and plain lines."""
    if log_format == "json":
        return JsonProgress(stream)
    redraws = stream.isatty() and os.environ.get("TERM") not in _NO_CURSOR
    return TerminalProgress(stream) if redraws else PlainProgress(stream)
