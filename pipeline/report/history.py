"""What the event log tells of a run: its attempts, its waits, and its work over time.

The log is read twice, line by line: once for how long the run worked, once to sum up its seconds
into a bounded number of spans. Time between attempts is left out: it is counted as `worked_s`, in
seconds that an attempt was on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.observers.event_log import logged
from pipeline.store.objects import reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.observers.event_log import LoggedEvent as Event
    from pipeline.store.objects import GrowingFile

MOST_SPANS = 120
MOST_WAITS = 1_000
# Pauses that follow each other this closely are one.
CLOSE_S = 1.0
_LINE_S = 1.2
# Causes that the log names by their error.
_CAUSES = {"RowsRejected": "row refused", "EndpointRefused": "account or model refused"}
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 14_400, 43_200)


@dataclass
class RunAttempt:
    """One attempt at the run, in seconds since the epoch; `how` it ended is None after a kill."""

    began: float
    last: float
    worked_before_s: float
    resumed_rows: int
    committed_rows: int = 0
    requests: int = 0
    retries: int = 0
    state: str | None = None
    exit_code: int | None = None
    message: str | None = None
    open_waits: dict[str, PastWait] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it was on."""
        return max(self.last - self.began, 0.0)

    def worked_s(self, at: float) -> float:
        """Where an instant of this attempt lies in the time that the run worked."""
        return self.worked_before_s + min(max(at - self.began, 0.0), self.seconds)


@dataclass
class Sender:
    """A worker that sent requests, or an address that took them.

    `a_second` has the answers a second that were told of a worker. `lost` counts how often it was
    left out, and `why` is the last reason.
    """

    name: str
    a_second: list[float] = field(default_factory=list)
    lost: int = 0
    why: str = ""

    @property
    def answers_per_second(self) -> float | None:
        """Answers a second, on average over what was told."""
        return sum(self.a_second) / len(self.a_second) if self.a_second else None


@dataclass
class PastWait:
    """The whole pool waited: since when (seconds since the epoch), and from and to in worked_s."""

    reason: str
    detail: str
    at: float
    from_s: float
    to_s: float


@dataclass
class Span:
    """What was done in some seconds: requests that ended by cause, inputs that got an outcome.

    `median_s`, `p95_s` and `slowest_s` are latencies of requests, None where none ended; the
    first two are means over the seconds, weighted by their requests. Of a second that lies in two
    spans, each has its part of the inputs.
    """

    from_s: float
    to_s: float
    at: float
    ended: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    inputs: float = 0.0
    median_s: float | None = None
    p95_s: float | None = None
    slowest_s: float | None = None

    @property
    def inputs_per_second(self) -> float:
        """Texts that were answered a second."""
        return self.inputs / (self.to_s - self.from_s)


@dataclass
class History:
    """The attempts at a run, in order, and what they did over the seconds that they worked."""

    attempts: list[RunAttempt] = field(default_factory=list)
    waits: list[PastWait] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    workers: dict[str, Sender] = field(default_factory=dict)
    addresses: dict[str, Sender] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long all attempts were on."""
        return sum(attempt.seconds for attempt in self.attempts)


def read_history(log: GrowingFile) -> History:
    """Read an event log; empty if there is none. Raises StoppedEarly for an unreadable one."""
    history = History()
    if not log.exists():
        return history
    with reading(log.place):
        first_line = _find_attempts(log, history)
        if history.attempts:
            _fill_spans(log, first_line, history)
    return history


def _events(log: GrowingFile) -> Iterator[tuple[int, Event]]:
    """Yield the events, with the numbers of their lines."""
    with log.reader() as file:
        for number, line in enumerate(file):
            if (event := logged(line)) is not None:
                yield number, event


def _find_attempts(log: GrowingFile, history: History) -> int:
    """Find the attempts at the last run in the log; return the line where it begins.

    A log outlasts the runs that are thrown away or repeated: another run begins after one that was
    complete, and where rows that were committed are done again.
    """
    first_line = 0
    attempts = history.attempts
    for number, event in _events(log):
        current = attempts[-1] if attempts else None
        match event["event"]:
            case "RunStarted" if not event.get("again"):
                if current is not None and _is_another_run(current, event):
                    attempts.clear()
                    history.waits.clear()
                    history.workers.clear()
                    history.addresses.clear()
                if attempts:
                    _cut_off_waits(attempts[-1])
                else:
                    first_line = number
                at = event["at"]
                attempts.append(RunAttempt(at, at, history.seconds, event["resumed_rows"]))
                _note_senders(event, history)
                continue
            case _ if current is None:
                continue
            case "RunStarted":
                current.committed_rows = 0
            case "Requests":
                current.requests += event.get("sent", sum(event["ended"].values()))
                current.retries += event.get("retries", 0)
            case "PartCommitted":
                current.committed_rows += event["rows"]
            case "RunEnded":
                current.state, current.exit_code = event["state"], event["exit_code"]
                current.message = event["message"]
        current.last = max(current.last, event["at"])
        _note_wait(event, current, history.waits)
        _note_senders(event, history)
    if attempts:
        _cut_off_waits(attempts[-1])
    return first_line


def _cut_off_waits(attempt: RunAttempt) -> None:
    """A pause that was to last longer ended with its attempt."""
    for wait in attempt.open_waits.values():
        wait.to_s = min(wait.to_s, attempt.worked_s(attempt.last))


def _is_another_run(before: RunAttempt, started: Event) -> bool:
    done = before.resumed_rows + before.committed_rows
    return before.state == "complete" or int(started["resumed_rows"]) < done


def _note_wait(event: Event, attempt: RunAttempt, found: list[PastWait]) -> None:
    """Begin, lengthen or end a wait; one that nobody ends lasts as long as its attempt."""
    at, waits = attempt.worked_s(event["at"]), attempt.open_waits
    for wait in waits.values():
        if wait.reason != "throttled":
            wait.to_s = at
    match event["event"]:
        case "Waiting":
            reason, throttled = event["reason"], event["reason"] == "throttled"
            known = waits.get(reason)
            if known is None or (throttled and at > known.to_s + CLOSE_S):
                since_s = event.get("so_far_s") or 0.0
                from_s = max(at - since_s, attempt.worked_before_s)
                known = waits[reason] = PastWait(
                    reason, event.get("detail", ""), event["at"] - since_s, from_s, at
                )
                if len(found) < MOST_WAITS:
                    found.append(known)
            if throttled:
                # As far as the pause was served: what follows in the log may end it earlier.
                known.to_s = max(known.to_s, at + (event["seconds"] or 0.0))
        case "WaitEnded":
            waits.pop(event["reason"], None)


def _note_senders(event: Event, history: History) -> None:
    match event["event"]:
        case "RunStarted":
            for address in event.get("endpoint", "").split(", "):
                history.addresses.setdefault(address, Sender(address))
        case "Workers":
            for told in event["at_work"]:
                worker = history.workers.setdefault(told["name"], Sender(told["name"]))
                worker.a_second.append(told["answers_per_second"])
        case "WorkerLost" | "AddressLost":
            kind, name = ("workers", "worker") if "worker" in event else ("addresses", "address")
            lost = getattr(history, kind).setdefault(event[name], Sender(event[name]))
            lost.lost, lost.why = lost.lost + 1, event["why"]


def _fill_spans(log: GrowingFile, first_line: int, history: History) -> None:
    """Sum the seconds up into spans of one width."""
    total_s = max(history.seconds, 1.0)
    width_s = next((w for w in _WIDTHS_S if total_s / w <= MOST_SPANS), total_s / MOST_SPANS)
    # A rest of less than half a span goes into the one before it.
    last = max(int(total_s / width_s + 0.5) - 1, 0)
    found: dict[int, Span] = {}

    def span_at(second: float) -> Span:
        place = min(int(second / width_s), last)
        to_s = total_s if place == last else (place + 1) * width_s
        at = current.began + place * width_s - current.worked_before_s
        return found.setdefault(place, Span(place * width_s, to_s, max(at, current.began)))

    attempts = iter(history.attempts)
    current = next(attempts)
    told_s = 0.0
    for number, event in _events(log):
        if number < first_line:
            continue
        if event["event"] == "RunStarted" and not event.get("again") and number > first_line:
            current = next(attempts, current)
        now_s = current.worked_s(event["at"])
        if event["event"] == "Requests":
            # A line tells of the time since the one before it, or of the last second.
            from_s = max(told_s, now_s - _LINE_S, current.worked_before_s)
            _add(span_at((from_s + now_s) / 2), event)
            _spread(event["inputs"], from_s, now_s, span_at)
        told_s = now_s
    history.spans = [found[place] for place in sorted(found)]


def _spread(inputs: int, from_s: float, to_s: float, span_at: Callable[[float], Span]) -> None:
    """Put inputs into the spans that their time lies in, in proportion."""
    whole_s = to_s - from_s
    if whole_s <= 0:
        span_at(from_s).inputs += inputs
        return
    while from_s < to_s:
        span = span_at(from_s)
        end_s = min(to_s, span.to_s) if span.to_s > from_s else to_s
        span.inputs += inputs * (end_s - from_s) / whole_s
        from_s = end_s


def _add(span: Span, told: Event) -> None:
    before, count = span.ended.total(), sum(told["ended"].values())
    for cause, ended in told["ended"].items():
        span.ended[_CAUSES.get(cause, cause)] += ended
    span.retries += told.get("retries", 0)
    if count:
        share = count / (before + count)
        span.median_s = _mean(span.median_s, told["median_s"], share)
        if "p95_s" in told:
            span.p95_s = _mean(span.p95_s, told["p95_s"], share)
        span.slowest_s = max(span.slowest_s or 0.0, told["slowest_s"])


def _mean(before: float | None, now: float, share: float) -> float:
    return now if before is None else before + (now - before) * share
