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
from typing import TYPE_CHECKING, Final

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


@dataclass(frozen=True, kw_only=True)
class FaultOptions:
    """Everything that is to go wrong; the default is nothing.

    cold_start_s: seconds for which a model is loading, counted from its first request or from the
        start of the server (`cold_start_from`).
    rate_limit: requests in any one second that are let through; None is no limit. `rate_hint` is
        what a refusal tells.
    share_*: the part of requests, 0 to 1, that gets this fault; together at most 1. `share_wrong`
        alternates between one list too few and a page that is not JSON.
    latency_ms: milliseconds added to every request that is let through.
    poison: any request with a text that contains this is refused with a 400.
    seed: of the decisions by share.

    Raises SettingsError for a value that is impossible.
    """

    cold_start_s: float = 0.0
    cold_start_from: ColdStart = ColdStart.FIRST_REQUEST
    rate_limit: int | None = None
    rate_hint: Hint = Hint.RETRY_AFTER
    share_500: float = 0.0
    share_502: float = 0.0
    share_reset: float = 0.0
    share_hang: float = 0.0
    share_truncated: float = 0.0
    share_wrong: float = 0.0
    latency_ms: float = 0.0
    poison: str | None = None
    seed: int = 0

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
