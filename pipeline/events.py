"""What happened, as small frozen records; observers subscribe.

Events are emitted on the event loop's thread, a few a tick or a chunk and none per request or row.
An observer may do little work and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.errors import UsageError


class Why(StrEnum):
    """Why the whole pool waits."""

    LOADING = "model loading"
    OUTAGE = "endpoint down"
    THROTTLED = "throttled"


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan is settled; `resumed_rows` of `rows` were committed by an earlier attempt.

    `resumed_errors` of these carry an error. A run that is complete already has all of them.

    It comes once more where a run has to begin again; what was counted of rows is void then.
    """

    rows: int
    resumed_rows: int
    output: str
    endpoint: str
    model: str | None
    resumed_errors: int = 0


@dataclass(frozen=True, slots=True)
class Requests:
    """What the attempts of the last tick came to.

    `sent` of them began, `retries` of these not for the first time; `in_flight` are out now, and
    `peak_in_flight` were at most. `limit` may be in flight now, and `rate` sent a second (None for
    no limit): both follow the endpoint, below what the settings allow. `ended` counts the others by
    status (None where no answer came) and cause (None where it was good), `seconds` has how long
    each took. `inputs` distinct inputs got their outcome; `failed_inputs` of them are errors.
    """

    sent: int
    retries: int
    in_flight: int
    peak_in_flight: int
    ended: Mapping[tuple[int | None, str | None], int]
    seconds: Sequence[float]
    inputs: int
    failed_inputs: int
    limit: int
    rate: float | None


@dataclass(frozen=True, slots=True)
class ChunkLookedUp:
    """A chunk of `rows` was read and its inputs looked up.

    `distinct` of them are met for the first time in this attempt, and `hits` of these were known
    before it. `asked` go to the endpoint.
    """

    rows: int
    distinct: int
    hits: int
    asked: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The whole pool waits, since `so_far_s`; told again with each answer that says so.

    `seconds` from now on is when the endpoint is asked again, and for a loading model how long it
    says to take; None where nobody knows. `detail` has the endpoint's words.
    """

    reason: Why
    seconds: float | None
    detail: str
    so_far_s: float = 0.0


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """The pool goes on after `seconds`."""

    reason: Why
    seconds: float


@dataclass(frozen=True, slots=True)
class PartCommitted:
    """A part is durable: `rows` of it, `errors` without a label."""

    first_row: int
    rows: int
    errors: int
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know and that stops nothing; each kind has its own facts.

    `pipeline.observers.words.notice` words them.
    """


@dataclass(frozen=True, slots=True)
class Measured(Notice):
    """The labels of a table in memory were measured against true ones; `words` say how good."""

    words: str


@dataclass(frozen=True, slots=True)
class LabelsNotGiven(Notice):
    """No row so far has a score of these `labels`; the rows have those of `given`."""

    labels: Sequence[str]
    given: Sequence[str]


@dataclass(frozen=True, slots=True)
class LabelsShareNames(Notice):
    """The model gives these `labels`, by whose names the output calls other rows, too."""

    labels: Sequence[str]


@dataclass(frozen=True, slots=True)
class LabelsNotRenamed(Notice):
    """No row has the labels `unused`, which are to be renamed; `others` of the rows are not."""

    unused: Sequence[str]
    others: Sequence[str]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker does: requests in flight, and answers a second of late."""

    name: str
    in_flight: int
    answers_per_second: float


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers that are at work, of `wanted` ones; told about once a second."""

    wanted: int
    at_work: Sequence[WorkerState]


@dataclass(frozen=True, slots=True)
class WorkerLost(Notice):
    """A worker is lost, and another one takes its place; `unanswered` requests are sent again."""

    worker: str
    why: str
    unanswered: int


class NoBatches(StrEnum):
    """Why an endpoint is asked one text a request."""

    TAKES_NO_LIST = "it takes no list of texts"
    UNREADABLE = "a list of texts gets an unreadable answer"
    REFUSED = "a list of texts is refused"
    TWINS_DIFFER = "the same text twice is not answered as it is alone"
    ANSWERS_DIFFER = "the same text gets different answers alone and within a batch"


@dataclass(frozen=True, slots=True)
class OneTextARequest(Notice):
    """The endpoint does not honour batches; `said` is what it answered, empty if that was fine."""

    why: NoBatches
    said: str = ""


@dataclass(frozen=True, slots=True)
class SmallerBatches(Notice):
    """`texts` a request from now on: `refused` together were refused, and their halves were not.

    `said` is what the endpoint answered.
    """

    texts: int
    refused: int
    said: str


@dataclass(frozen=True, slots=True)
class AddressLost(Notice):
    """One of several addresses does not work, and the others go on."""

    address: str
    why: str


@dataclass(frozen=True, slots=True)
class AddressWorks(Notice):
    """An address that was lost works again."""

    address: str


@dataclass(frozen=True, slots=True)
class TextsTogether(Notice):
    """The server is told to work on the texts of a request as one batch, which does more."""


@dataclass(frozen=True, slots=True)
class RevisionChanged(Notice):
    """The model's revision changed, and the run goes on, as `allow_drift` says."""

    revision: str
    was: str


@dataclass(frozen=True, slots=True)
class BeginsAgain(Notice):
    """The model is of `revision`, and known answers of `stored`: they are asked for again."""

    revision: str
    stored: str


@dataclass(frozen=True, slots=True)
class PartsDamaged(Notice):
    """A committed part is damaged: it and those after it, `parts`, are built again."""

    parts: int


@dataclass(frozen=True, slots=True)
class CellsOfJson(Notice):
    """Columns of lists and objects, which an output that is CSV has as JSON in its cells."""

    columns: str


@dataclass(frozen=True, slots=True)
class NothingToRetry(Notice):
    """A retry found no row with an error."""


@dataclass(frozen=True, slots=True)
class AnswersPassedOver(Notice):
    """The answers of an earlier attempt cannot be read, and are asked for again."""

    why: str


@dataclass(frozen=True, slots=True)
class Stopping(Notice):
    """A signal stops the run, which waits for `in_flight` answers; another stops it at once."""

    in_flight: int


@dataclass(frozen=True, slots=True)
class TokenNotSent(Notice):
    """`host` is neither https nor this machine, so anyone in between could read a token."""

    host: str


@dataclass(frozen=True, slots=True)
class NoToken(Notice):
    """No token was found, and the serverless API answers hardly anybody without one."""


@dataclass(frozen=True, slots=True)
class OldHost(Notice):
    """The address is of an API that is no longer served: the router is asked for `model`."""

    model: str


@dataclass(frozen=True, slots=True)
class TokenFileIsOpen(Notice):
    """Other users of this machine can read the token file."""

    file: str


@dataclass(frozen=True, slots=True)
class MetricsFileFailed(Notice):
    """The metrics file cannot be written; the run goes on without it."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over, always the last event; `message` says why it is not complete.

    `state` is `complete`, `stopped`, or `refused` where nothing was begun.
    """

    state: str
    exit_code: int
    message: str | None

    @classmethod
    def unbegun(cls, reason: BaseException) -> RunEnded:
        """Return the end of a run that `reason` kept from beginning."""
        state = "refused" if isinstance(reason, UsageError) else "stopped"
        return cls(state, getattr(reason, "exit_code", 1), str(reason))


Event = (
    RunStarted
    | Requests
    | ChunkLookedUp
    | Waiting
    | WaitEnded
    | PartCommitted
    | Workers
    | Notice
    | RunEnded
)
Observer = Callable[[Event], None]


def fan_out(observers: list[Observer]) -> Observer:
    """Return one observer that passes every event on to all."""

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    return emit
