"""Retry by cause: how often, after how long, and from which budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Cause, Retryable

if TYPE_CHECKING:
    from pipeline.system.clock import Clock

# How many failures of each cause one request may have before its rows are suspected. Throttling
# and loading are no fault of a request: they are bounded by time instead. A timeout is retried
# least, since a server that queues makes each retry wait behind the one before.
MOST_FAILURES = {
    Cause.OVERLOADED: 10,
    Cause.SERVER_ERROR: 6,
    Cause.CONNECTION: 6,
    Cause.UNREADABLE: 4,
    Cause.TIMEOUT: 3,
}
FIRST_BACKOFF_S = 0.25
LONGEST_BACKOFF_S = 20.0

# Retries may add a fifth to the requests that succeed, and this many at any time.
BUDGET_SHARE = 0.2
BUDGET_RESERVE = 20.0


class Failures:
    """The failures of one request so far."""

    def __init__(self) -> None:
        self._counts: dict[Cause, int] = {}
        self.first_at = float("inf")

    def add(self, failure: Retryable, now: float) -> bool:
        """Count a failure that came now; True when its cause is exhausted."""
        self.first_at = min(self.first_at, now)
        count = self._counts[failure.cause] = self._counts.get(failure.cause, 0) + 1
        return count >= MOST_FAILURES.get(failure.cause, 1 << 30)

    @property
    def total(self) -> int:
        """How many there were, of any cause."""
        return sum(self._counts.values())


def backoff_s(failed_before: int, clock: Clock) -> float:
    """How long to wait after a failure: exponential in those before it, half of it jitter."""
    longest_s: float = min(FIRST_BACKOFF_S * 2 ** min(failed_before, 10), LONGEST_BACKOFF_S)
    return longest_s * clock.jitter(0.5, 1.0)


class Budget:
    """The retry budget that all requests share, so that retries never multiply an outage."""

    def __init__(self) -> None:
        self._left = BUDGET_RESERVE

    def earn(self) -> None:
        """Count a success."""
        self._left = min(self._left + BUDGET_SHARE, 10 * BUDGET_RESERVE)

    def spend(self) -> bool:
        """Take one retry; False when the budget is used up."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def renew(self) -> None:
        """Grant the reserve again: a probe showed that the endpoint is back."""
        self._left = max(self._left, BUDGET_RESERVE)
