"""The status of a run: how far it is, read from its directory by another process.

Nothing is written, and a running job is unaffected. Its store may be read at any instant: entries
of the log are whole or not there, and the event log only grows by lines, of which the last may not
be whole yet.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipeline.errors import EXIT_ROWS_FAILED, ClassifyError, EndpointRefused, UsageError
from pipeline.meanings import PerSecond, Seconds
from pipeline.observers.event_log import logged
from pipeline.observers.words import clock
from pipeline.responses import count_answers
from pipeline.store import located
from pipeline.store.files import DiskFile
from pipeline.store.forms import CSV, JSONL, form_of
from pipeline.store.objects import reading
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.observers.event_log import LoggedEvent
    from pipeline.store import RunState, RunStore
    from pipeline.store.objects import GrowingFile, Output

# The end of the event log that is read: some thousand events, an hour of a usual run.
TAIL_BYTES = 1 << 20
# Over which time the speed is taken. Rows come part by part, so it may be longer for them.
SPEED_S = 60.0
SPEED_PARTS = 5

_SAME_COMMAND = "Run the same command again to continue."


@dataclass(frozen=True)
class Waits:
    """What the whole run waits for, since when (seconds since the epoch), and about how long."""

    reason: str
    since: float
    seconds: float | None


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    output: Annotated[str, "the output as given"]
    run_directory: Annotated[str, "where the state is kept"]
    state: Annotated[str, "`running`, `stopped` or `complete`"]
    doing: Annotated[str, "what a running one does, in words"]
    next: Annotated[str, "what to do, in words"]
    retry: Annotated[bool, "true for `--retry-failed`, which passes all rows again"]
    rows: Annotated[int | None, "rows of the input"]
    committed_rows: Annotated[int, "rows that no kill undoes"]
    labelled: Annotated[int, "committed rows with a label"]
    errors: Annotated[int, "committed rows with an error"]
    labels: Annotated[dict[str, int], "committed rows by their label"]
    answers: Annotated[
        int | None,
        "stored answers, with its `cache`; 0 once complete, but with `label_map` or `threshold`",
    ]
    endpoint: Annotated[str | None, "`local`, `hf` or the address without its keys"]
    model: Annotated[str | None, "model asked for"]
    model_revision: Annotated[str | None, "revision (`x-sha`)"]
    pid: Annotated[int | None, "process at work"] = None
    host: Annotated[str | None, "its machine"] = None
    since: Annotated[Seconds | None, "when it began, Unix time"] = None
    waits: Annotated[
        Waits | None,
        "what it waits for: `reason`, `since` (Unix time), `seconds` or null",
    ] = None
    requests_per_second: Annotated[PerSecond | None, "requests in the last minute"] = None
    inputs_per_second: Annotated[
        PerSecond | None, "distinct inputs answered in the last minute"
    ] = None
    rows_per_second: Annotated[PerSecond | None, "rows in the last minute or parts"] = None
    workers: Annotated[
        list[dict[str, Any]] | None,
        "workers, updated every 10 s: `name`, `in_flight`, `answers_per_second`; null with `local`",
    ] = None
    workers_lost: Annotated[int, "workers lost, of recent events"] = 0
    seconds_left: Annotated[Seconds | None, "time left at that speed"] = None
    message: Annotated[str | None, "why the last attempt stopped"] = None
    exit_code: Annotated[int | None, "of the last attempt, unless killed"] = None
    last_attempt: Annotated[
        dict[str, Any], "part of its summary; empty if it runs or was killed"
    ] = field(default_factory=dict)


def status_of(
    output: Path | str, run_dir: Path | str | None = None, *, now: float | None = None
) -> Status | None:
    """Return how far the run of an output is; None if there is none.

    Both may be addresses. A run directory may be given itself, such as the `checkpoint` of a
    notebook. `now` is seconds since the epoch. Raises OutputError for a path without a name,
    ResumeRefused for a log that is damaged or of another version, StoppedEarly if the disk cannot
    be read.
    """
    return status_in(located(output, run_dir), str(output), now=now)


def status_in(store: RunStore, output: str, *, now: float | None = None) -> Status | None:
    """Do what `status_of` does for a store; `output` is its name in the status."""
    while True:
        holder = store.lease.holder()
        state = store.load()
        events = _last_events(store.events)
        # Else a run began or ended meanwhile, and these would not fit together.
        if store.lease.holder() == holder:
            break
    if state is None and holder is None:
        return None
    place = {"output": output, "run_directory": store.place}
    facts = {**place, "doing": "nothing", "answers": _answers(store, state), **_committed(state)}
    ends = [i for i, event in enumerate(events) if event["event"] == "RunEnded"]
    # Of the attempt that works or was killed; none if the last one could say how it ended.
    current = events[ends[-1] + 1 :] if ends else events
    if holder is not None:
        if holder.since is not None:  # what was logged before is of an attempt that was killed
            current = [event for event in current if event["at"] >= holder.since]
        working = _working(facts, current, now or time.time())
        return Status(**facts | working, **vars(holder))
    last_attempt = _summary(store)
    if state is not None and state.complete is not None:
        done = _complete(state.complete, store.output)
        return Status(**facts, **done, last_attempt=last_attempt)
    if current or not events:
        return Status(**facts, **_killed(current))
    return Status(**facts, **_stopped(events[-1]), last_attempt=last_attempt)


def _committed(state: RunState | None) -> dict[str, Any]:
    """What is durable, and of which run."""
    if state is None:
        empty = dict.fromkeys(("rows", "endpoint", "model", "model_revision"))
        zero = {"committed_rows": 0, "labelled": 0, "errors": 0, "labels": {}}
        return {**empty, **zero, "retry": False}
    return {
        "retry": state.retry_of is not None,
        "rows": state.run.input["rows"],
        "committed_rows": state.rows,
        "labelled": state.rows - state.errors,
        "errors": state.errors,
        "labels": state.labels,
        "endpoint": state.run.settings.get("endpoint"),
        "model": state.run.settings.get("model"),
        "model_revision": state.latest_revision,
    }


def _answers(store: RunStore, state: RunState | None) -> int | None:
    """Count the answers that the run has stored."""
    caches = () if state is None or state.complete is not None else state.caches
    count = 0
    for file in (store.journal, *map(DiskFile.journal, map(Path, caches))):
        try:
            count += count_answers(file)
        except FileNotFoundError:
            pass
        except OSError:  # only its owner may read it
            return None
    return count


def _working(facts: dict[str, Any], events: Sequence[LoggedEvent], now: float) -> dict[str, Any]:
    """What a run does, and how fast."""
    waits, speeds = _waits(events), _speeds(events, now)
    left = (facts["rows"] or 0) - facts["committed_rows"]
    speed = speeds["rows_per_second"]
    if not events:
        doing = "reading the input and what was done before"
    elif waits is not None:
        doing = "waiting"
    else:
        doing = "labelling" if left else "putting the output together"
    return {
        "state": "running",
        "doing": doing,
        "next": "Still running.",
        "waits": waits,
        **_workers(events),
        **speeds,
        "seconds_left": round(left / speed, 1) if speed and left > 0 and waits is None else None,
    }


def _workers(events: Sequence[LoggedEvent]) -> dict[str, Any]:
    """Who sends the requests, as it was told last."""
    told = [event["at_work"] for event in events if event["event"] == "Workers"]
    lost = sum(event["event"] == "WorkerLost" for event in events)
    return {"workers": told[-1] if told else None, "workers_lost": lost}


def _complete(recorded: dict[str, Any], output: Output) -> dict[str, Any]:
    failed = counted(recorded["errors"], "row")
    if not output.exists():
        advice = "The output is not there any more. Run the same command to make it again."
    elif recorded["errors"] and form_of(output.place) in (CSV, JSONL):  # which cannot be retried
        advice = f"The output is there. Its column of errors says why {failed} got no label."
    elif recorded["errors"]:
        advice = (
            "The output is there. The same command with --retry-failed asks again for its "
            f"{failed} with an error."
        )
    else:
        advice = "Nothing to do: the output is complete."
    return {"state": "complete", "next": advice, "exit_code": recorded["exit_code"]}


def _killed(events: Sequence[LoggedEvent]) -> dict[str, Any]:
    seen = f" Last seen at {clock(events[-1]['at'])}." if events else ""
    return {
        "state": "stopped",
        "next": _SAME_COMMAND,
        "message": f"Killed, or its machine went down.{seen}",
    }


def _stopped(ended: LoggedEvent) -> dict[str, Any]:
    code = ended["exit_code"]
    advice = _SAME_COMMAND
    if code == EndpointRefused.exit_code:
        advice = "Fix what the endpoint refuses, then run the same command again to continue."
    elif code == UsageError.exit_code:
        advice = "Fix that, then run the same command again to continue."
    elif code == ClassifyError.exit_code:
        advice = "A bug: report it, with its traceback. The same command continues the run."
    elif code == EXIT_ROWS_FAILED:
        advice = "Fix the cause or raise max_errors, then run the same command again to continue."
    return {"state": "stopped", "next": advice, "message": ended["message"], "exit_code": code}


def _summary(store: RunStore) -> dict[str, Any]:
    """What the last attempt came to, if it could still write that down."""
    found = store.summary()
    names = ("requests", "retries", "responses", "seconds", "rows_per_second")
    return {name: found.get(name) for name in names} if found else {}


def _waits(events: Sequence[LoggedEvent]) -> Waits | None:
    """Return what is waited for, until that is told to end or something is answered."""
    waits = None
    for event in events:
        match event["event"]:
            case "Waiting":
                since = event["at"] if waits is None else waits.since
                reason = ": ".join(filter(None, (event["reason"], event.get("detail"))))
                waits = Waits(reason, since, event["seconds"])
            case "WaitEnded":
                waits = None
            case "Requests" if "ok" in event["ended"]:
                waits = None
    return waits


def _speeds(events: Sequence[LoggedEvent], now: float) -> dict[str, float | None]:
    """Return the recent requests, inputs and rows a second; None if nothing is known."""
    if not events:
        return dict.fromkeys(("requests_per_second", "inputs_per_second", "rows_per_second"))
    began = max(events[0]["at"], now - SPEED_S)
    span_s = max(now - began, 1.0)
    told = [event for event in events if event["event"] == "Requests" and event["at"] >= began]
    inputs = sum(event["inputs"] for event in told) / span_s
    return {
        "requests_per_second": round(sum(sum(e["ended"].values()) for e in told) / span_s, 2),
        "inputs_per_second": round(inputs, 2),
        # Until the first part is committed, each input stands for one row at least.
        "rows_per_second": round(_row_speed(events, now) or inputs, 2),
    }


def _row_speed(events: Sequence[LoggedEvent], now: float) -> float | None:
    """Return rows a second over the last parts, or the last minute if it has more of them."""
    marks = [event for event in events if event["event"] in ("RunStarted", "PartCommitted")]
    late = [i for i, event in enumerate(marks) if event["at"] >= now - SPEED_S]
    first = max(0, min([len(marks) - SPEED_PARTS, *late[:1]]) - 1)
    parts = [event for event in marks[first + 1 :] if event["event"] == "PartCommitted"]
    if not parts:
        return None
    rows: int = sum(part["rows"] for part in parts)
    began: float = marks[first]["at"]
    return rows / max(now - began, 1.0)


def _last_events(log: GrowingFile) -> list[LoggedEvent]:
    """Read the end of an event log; lines that are not whole are passed over."""
    if not log.exists():
        return []
    with reading(log.place), log.reader(TAIL_BYTES) as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - TAIL_BYTES))
        lines = file.read().split(b"\n")[size_bytes > TAIL_BYTES : -1]
    return [event for event in map(logged, lines) if event is not None]
