"""What happened, as small frozen records; observers subscribe.

Events are emitted on the event loop's thread, a few a tick or a chunk and none per request or row.
An observer may do little work and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
class Requests:
    """What the attempts of the last tick came to.

    `sent` of them began, `retries` of these not for the first time; `in_flight` are out now, and
    `peak_in_flight` were at most. `ended` counts the others by status (None where no answer came)
    and cause (None where it was good), `seconds` has how long each took. `inputs` distinct inputs
    got their outcome; `failed_inputs` of them are errors.
    """

    sent: int
    retries: int
    in_flight: int
    peak_in_flight: int
    ended: Mapping[tuple[int | None, str | None], int]
    seconds: Sequence[float]
    inputs: int
    failed_inputs: int


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
    RunStarted | Requests | ChunkLookedUp | Waiting | WaitEnded | PartCommitted | Notice | RunEnded
)
Observer = Callable[[Event], None]


def fan_out(observers: list[Observer]) -> Observer:
    """Give one observer that passes every event on to all."""

    def emit(event: Event) -> None:
        for observer in observers:
            observer(event)

    return emit
