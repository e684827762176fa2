"""How progress is worded: durations, notices, and what the run waits for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline import events
from pipeline.events import Why
from pipeline.wording import counted, listed, sentence, setting, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.events import Notice, Waiting

# How a label is shown that has no letters.
EMPTY_LABEL = "(empty label)"
# Errors with the same words are counted together, so many of them, and all others as one.
MOST_CAUSES, OTHER_CAUSES = 500, "(other causes)"


def duration(seconds: float) -> str:
    """Word a duration, to the second; from an hour up to the minute."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole:02d} s" if minutes else f"{whole} s"


def size(size_bytes: int) -> str:
    """Word a number of bytes in the largest unit of which it has one."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if size_bytes >= 1000**power:
            count = size_bytes / 1000**power
            return f"{count:,.0f} {unit}" if count >= 100 else f"{count:.2g} {unit}"  # noqa: PLR2004
    return counted(size_bytes, "byte")


def span(seconds: Sequence[float]) -> str:
    """Word the least and the most that something may take."""
    least, most = map(duration, seconds)
    if 0 < seconds[1] < 1:
        return "less than 1 s"
    return most if least == most else f"{least} to {most}"


def against_plan(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the lines of a table of plan and run: a name, what was planned, what it took."""
    plan = summary["plan"]
    retries = f", {summary['retries']:,} of them retries" if summary["retries"] else ""
    rows = [
        ("distinct inputs", f"{plan['distinct_inputs']:,}", f"{summary['distinct_inputs']:,}"),
        ("known already", f"{plan['cache_hits']:,}", f"{summary['cache_hits']:,}"),
        ("requests", f"{plan['requests']:,}", f"{summary['requests']:,}{retries}"),
        ("duration", span(plan["seconds"]), duration(summary["seconds"])),
    ]
    return rows if plan["cost"] is None else [*rows, ("cost", f"{plan['cost']:,.2f}", "")]


def clock(at: float) -> str:
    """Word an instant (seconds since the epoch) in the time zone of this machine."""
    return f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S}"


def stored(answers: int) -> str:
    """Say that a run keeps its answers until it is complete."""
    are = counted(answers, "answer is", "answers are")
    return f"{are} stored and will not be asked for again."


def notice(told: Notice) -> str:
    """Word a notice: what happened and, if there is something to do about it, the fix."""
    return shown(" ".join(filter(None, (what_of(told), fix_of(told)))))


def what_of(told: Notice) -> str:  # noqa: C901, PLR0912  (a line or two for each kind)
    """Word what a notice tells, without the fix."""
    match told:
        case events.OneTextARequest():
            said = f" ({told.said})" if told.said else ""
            return (
                "One text a request from now on, since this endpoint does not honour batches: "
                f"{told.why}{said}."
            )
        case events.SmallerBatches():
            return (
                f"{counted(told.texts, 'text')} a request from now on, and more again if that goes "
                f"well: {told.refused} together were refused ({told.said}), their halves were not."
            )
        case events.AddressLost(address, why):
            return f"{address} is left out, and the other addresses go on: {sentence(why)}"
        case events.AddressWorks(address):
            return f"{address} works again."
        case events.WorkerLost(worker, why, unanswered):
            again = f"; {counted(unanswered, 'request is', 'requests are')} sent again"
            return f"{worker} is lost{again if unanswered else ''}: {sentence(why)}"
        case events.TextsTogether():
            return (
                "The server now works on the texts of a request as one batch, which is faster: "
                "parameters.batch_size tells it to. Padding changes the last digits of scores; "
                f"{setting('exact_scores', 'True')} keeps them exact."
            )
        case events.RevisionChanged():
            return (
                f"The model's revision is {told.revision}, and was {told.was}; going on, as "
                f"{setting('allow_drift')} says."
            )
        case events.BeginsAgain():
            return (
                f"The model's revision is {told.revision} now, and known answers are of "
                f"{told.stored}: they are asked for again."
            )
        case events.PartsDamaged(parts):
            are = counted(parts, "part is", "parts are")
            return f"A committed part is damaged: {are} built again from the stored answers."
        case events.LabelsNotGiven(labels, given):
            return (
                f"{setting('score_labels')}: no answer so far has {listed(labels)}. The answers "
                f"have {listed(given)}."
            )
        case events.LabelsShareNames(labels):
            return (
                f"The model itself gives the label {listed(labels)}, which {setting('label_map')} "
                f"or {setting('unsure_label')} means for other rows: the output does not tell them "
                f"apart. Choose other names with {setting('overwrite', 'True')}; nothing is sent "
                "again."
            )
        case events.LabelsNotRenamed(unused, others):
            return (
                f"{setting('label_map')}: no row has the label {listed(unused)}. Labels without "
                f"another name: {listed(others)}."
            )
        case events.Measured(words):
            return words
        case events.CellsOfJson(columns):
            return (
                f"The output is CSV: the lists and objects of {columns} are written as "
                "JSON. Name a .parquet or .jsonl file to keep them."
            )
        case events.NothingToRetry():
            return "No row carries an error: nothing to retry."
        case events.AnswersPassedOver(why):
            return f"Answers of an earlier attempt are asked for again. {why}"
        case events.Stopping(in_flight):
            return f"Stopping: waiting for {counted(in_flight, 'answer')}; again to stop at once."
        case events.TokenNotSent(host):
            return (
                f"The token is not sent: {host} is neither https nor this machine, and anyone in "
                "between could read it."
            )
        case events.NoToken():
            return "No token was found, and the serverless API refuses most requests without one."
        case events.OldHost():
            return (
                "api-inference.huggingface.co is no longer served: requests go to "
                "router.huggingface.co."
            )
        case events.TokenFileIsOpen(file):
            return f"Others can read the token in {file}."
        case events.MetricsFileFailed(file, why):
            return (
                f"{setting('metrics_file')}: cannot write {file}: {why}. The run goes on without "
                "it."
            )
        case _:
            raise AssertionError(told)


def fix_of(told: Notice) -> str:
    """Word what to do about a notice; empty if nothing."""
    match told:
        case events.TokenNotSent():
            return "Use an https address."
        case events.NoToken():
            return (
                "Set HF_TOKEN to a token of huggingface.co, or log in with `hf auth login`; cron "
                f"needs {setting('token_file')}."
            )
        case events.OldHost(model):
            return f"Set {setting('endpoint', 'hf')} and {setting('model', model)} instead."
        case events.TokenFileIsOpen(file):
            return f"Run: chmod 600 {file}"
        case _:
            return ""


@dataclass(frozen=True)
class Wait:
    """What the run waits for: since when, and until when as far as anybody knows."""

    reason: Why
    detail: str
    began: float
    until: float | None

    @classmethod
    def of(cls, told: Waiting, now: float, before: Wait | None) -> Wait:
        """Begin a wait, or go on with the one `before`, where it is for the same reason."""
        began = now - told.so_far_s
        until = None if told.seconds is None else now + told.seconds
        if before is not None and before.reason is told.reason:
            began = min(began, before.began)
            if told.reason is Why.LOADING:
                # Many servers repeat the whole estimate however long they have been loading.
                until = until if before.until is None else before.until
            elif told.reason is Why.THROTTLED and until is not None:
                until = max(until, before.until or 0.0)
        return cls(told.reason, told.detail, began, until)

    def is_over(self, now: float) -> bool:
        """True if a pause has passed; all other waits end by an event."""
        return self.reason is Why.THROTTLED and (self.until is None or self.until <= now)

    def words(self, now: float) -> str:
        """Say what is waited for, and for how long yet."""
        so_far = duration(now - self.began)
        left_s = None if self.until is None else self.until - now
        match self.reason:
            case Why.THROTTLED:
                return f"{self.reason}, going on in {duration(math.ceil(max(left_s or 0.0, 0.0)))}"
            case Why.LOADING:
                if self.until is None or left_s is None:
                    return f"{self.reason} for {so_far}"
                expected = duration(self.until - self.began)
                if left_s >= 0:
                    return f"{self.reason}, {so_far} of about {expected}"
                return f"{self.reason} for {so_far}, longer than the {expected} it was to take"
            case Why.OUTAGE:
                soon = f", next try in {duration(left_s)}" if left_s and left_s >= 1 else ""
                return f"{self.reason} for {so_far} ({self._answer()}){soon}"

    def announcement(self, now: float) -> str:
        """Say the same with the endpoint's own words."""
        said = "" if self.reason is Why.OUTAGE else f" ({self._answer()})"
        return self.words(now) + said

    def _answer(self) -> str:
        status = "HTTP " if re.match(r"\d{3} ", self.detail) else ""
        return status + self.detail
