"""What happened, as small frozen records; observers subscribe.

Events are emitted on the event loop's thread, a few per request and none per row, so an observer
may do little work and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The plan is settled; `resumed_rows` of `rows` were committed by an earlier attempt.

    It comes once more where a run has to begin again; what was counted of rows is void then.
    """

    rows: int
    resumed_rows: int
    output: str
    endpoint: str
    model: str | None


@dataclass(frozen=True, slots=True)
class RequestSent:
    """An attempt is on its way; `in_flight` counts it."""

    in_flight: int
    retry: bool


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """An attempt ended: `status` is None where no answer came, `cause` None where it was good."""

    items: int
    status: int | None
    cause: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Answered:
    """`items` distinct inputs have their outcome; `failed` of them are errors."""

    items: int
    failed: int


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
    """The whole pool waits: `reason` in words; about `seconds`, or None where nobody knows."""

    reason: str
    seconds: float | None


@dataclass(frozen=True, slots=True)
class WaitEnded:
    """The pool goes on after `seconds`."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PartCommitted:
    """A chunk is durable: `rows` of it, `errors` without a label."""

    first_row: int
    rows: int
    errors: int
    labels: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know and that stops nothing."""

    message: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over; `state` is `complete` or `stopped`, `message` says why it stopped."""

    state: str
    exit_code: int
    message: str | None


Event = (
    RunStarted
    | RequestSent
    | RequestEnded
    | Answered
    | ChunkLookedUp
    | Waiting
    | WaitEnded
    | PartCommitted
    | Notice
    | RunEnded
)
Observer = Callable[[Event], None]


def fan_out(observers: list[Observer]) -> Observer:
    """Give one observer that passes every event on to all."""

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    return emit
