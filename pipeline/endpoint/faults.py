"""What goes wrong in a rehearsal: cold starts, rate limits, failures, wrong answers.

`FaultOptions` says what to do, `Faults` decides it for each request as it arrives. Every decision
falls before the model runs, and the same seed and order of requests give the same decisions.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# What a model answers when one text is longer than it can take: the message of the toolkit.
POISON_ERROR: Final = (
    "The size of tensor a (502) must match the size of tensor b (64) at non-singleton dimension 1"
)

# The rate limit is a sliding window of this many seconds.
_WINDOW_S: Final = 1.0


class Fault(StrEnum):
    """One way in which a request fails although it is fine."""

    ERROR_500 = "500"
    BAD_GATEWAY = "502"
    RESET = "reset"
    HANG = "hang"
    TRUNCATED = "truncated"
    TOO_FEW = "too few"
    NOT_JSON = "not json"


class Hint(StrEnum):
    """How a 429 says when to come back."""

    RETRY_AFTER = "retry-after"
    RATELIMIT = "ratelimit"
    NONE = "none"


class ColdStart(StrEnum):
    """When the loading of a model begins."""

    FIRST_REQUEST = "first-request"
    START = "start"


Share: TypeAlias = Annotated[float, "SHARE"]


@dataclass(frozen=True, kw_only=True)
class FaultOptions:
    """Everything that is to go wrong; the default is nothing.

    Each field is a flag of `classify serve`, with the metavar and the help beside its type. The
    shares are parts of the requests and sum to at most 1. Raises SettingsError for a value that is
    impossible.
    """

    cold_start_s: Annotated[
        float,
        "SECONDS",
        "Answer 503 with an estimated_time for so long, or hold requests with "
        "x-wait-for-model: true.",
    ] = 0.0
    cold_start_from: Annotated[
        ColdStart,
        None,
        "When loading begins: with a model's first request, or with the server.",
    ] = ColdStart.FIRST_REQUEST
    rate_limit: Annotated[
        int | None, "N", "Let N requests a second through, and answer 429 to the others."
    ] = None
    rate_hint: Annotated[
        Hint, None, "What a 429 carries: Retry-After, RateLimit and RateLimit-Policy, or nothing."
    ] = Hint.RETRY_AFTER
    share_500: Annotated[Share, "Share of requests, 0 to 1, answered with 500."] = 0.0
    share_502: Annotated[Share, "Share answered with 502 and an HTML page."] = 0.0
    share_reset: Annotated[Share, "Share of connections reset unanswered."] = 0.0
    share_hang: Annotated[Share, "Share of requests never answered."] = 0.0
    share_truncated: Annotated[Share, "Share of answers that break off halfway."] = 0.0
    share_wrong: Annotated[
        Share,
        "Share of wrong answers with status 200: one list too few, or no JSON.",
    ] = 0.0
    latency_ms: Annotated[float, "MS", "Milliseconds added to every request."] = 0.0
    poison: Annotated[
        str | None,
        "WORD",
        "Answer 400 if a text contains WORD, as models do to a text that is too long.",
    ] = None
    seed: Annotated[int, None, "The same seed and order of requests give the same faults."] = 0

    def __post_init__(self) -> None:
        for name in ("cold_start_s", "latency_ms"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise SettingsError(f"{name} is {value:g}.", "Give a number from 0 up.")
        for name, share in self.shares().items():
            if not 0 <= share <= 1:
                raise SettingsError(f"{name} is {share:g}.", "A share is a number from 0 to 1.")
        # Rounded, because 0.7 + 0.2 + 0.1 is a little over 1 in binary.
        if (total := round(math.fsum(self.shares().values()), 9)) > 1:
            raise SettingsError(
                f"The shares sum to {total:g}, and a request has one fault at most.",
                "Make them sum to at most 1.",
            )
        if self.rate_limit is not None and self.rate_limit < 1:
            raise SettingsError(
                f"rate_limit is {self.rate_limit}.",
                "Give at least 1 request a second, or leave it out for no limit.",
            )
        if self.poison == "":
            raise SettingsError(
                "poison is empty, which every text contains.", "Give a word, or leave it out."
            )

    def shares(self) -> dict[str, float]:
        """Return the shares by the name of their setting, in the order in which they are drawn."""
        names = ("500", "502", "reset", "hang", "truncated", "wrong")
        return {f"share_{name}": getattr(self, f"share_{name}") for name in names}


@dataclass(frozen=True)
class Admission:
    """What the rate limit says of one request.

    `remaining` is how many more are let through now, `wait_s` when that number grows again.
    """

    allowed: bool
    remaining: int
    wait_s: float


class Faults:
    """The decisions, with the clocks and counters behind them; for use on one event loop.

    `clock` gives seconds and never goes back.
    """

    def __init__(
        self, options: FaultOptions, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options = options
        self._clock = clock
        self._started = clock()
        self._first_request: dict[str, float] = {}
        self._admitted: deque[float] = deque()
        self._random = random.Random(options.seed)  # noqa: S311 - a rehearsal, not a secret
        self._wrong_answers = 0

    def loading_s(self, model: str) -> float:
        """Return for how many seconds this model is still loading; 0 if it is ready."""
        begun = self._started
        if self.options.cold_start_from is ColdStart.FIRST_REQUEST:
            begun = self._first_request.setdefault(model, self._clock())
        return max(begun + self.options.cold_start_s - self._clock(), 0.0)

    def admit(self) -> Admission | None:
        """Count one request against the rate limit; None without a limit.

        A refused request does not use up the limit.
        """
        limit = self.options.rate_limit
        if limit is None:
            return None
        now = self._clock()
        while self._admitted and self._admitted[0] <= now - _WINDOW_S:
            self._admitted.popleft()
        allowed = len(self._admitted) < limit
        if allowed:
            self._admitted.append(now)
        wait_s = self._admitted[0] + _WINDOW_S - now
        return Admission(allowed, limit - len(self._admitted), wait_s)

    def draw(self) -> Fault | None:
        """Draw the fault of one request, if it has one."""
        point = self._random.random()
        for name, share in self.options.shares().items():
            if point < share:
                if name != "share_wrong":
                    return Fault(name.removeprefix("share_"))
                self._wrong_answers += 1
                return Fault.TOO_FEW if self._wrong_answers % 2 else Fault.NOT_JSON
            point -= share
        return None

    def poisoned(self, texts: Iterable[str]) -> bool:
        """Return True if the model cannot take one of the texts."""
        poison = self.options.poison
        return poison is not None and any(poison in text for text in texts)
