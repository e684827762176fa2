"""The failures of one request, and what they make likely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Cause, Retryable, StoppedEarly, Unreachable

if TYPE_CHECKING:
    from pipeline.pool.batching import Batch

# How many failures of each cause one request may have before its rows are suspected. Throttling
# and loading are no fault of a request: they are bounded by time instead. A timeout is retried
# least, since a server that queues makes each retry wait behind the one before.
MOST_FAILURES = {
    Cause.OVERLOADED: 10,
    Cause.SERVER_ERROR: 6,
    Cause.CONNECTION: 6,
    Cause.UNREADABLE: 4,
    Cause.TIMEOUT: 3,
    Cause.WORKER_LOST: 1,  # it was asked many times by then
}
# Statuses of a server whose model failed: of an endpoint in trouble, or for one text only.
CONTENT_STATUSES = (424, 500)
# For how long a host is looked up, if it was never found.
UNKNOWN_HOST_S = 30.0


class Failures:
    """The failures of one request so far.

    A batch that is `doubted` is one of two halves of a batch that kept failing. A `greeting` is
    sent to find out whether one of several servers works; what else there is goes to the others.
    """

    first_at = float("inf")
    successes_seen = 0
    # True while the gate's probe is another input than the request's own.
    probed_with_one = False
    # True once it was refused as if the account were, while others were answered.
    acquitted = False
    exhausted = False
    # True if the last one may be due to what the request holds, and not to its way there.
    of_content = False

    def __init__(
        self, batch: Batch | None = None, *, doubted: bool = False, greeting: bool = False
    ) -> None:
        self._counts: dict[Cause, int] = {}
        self.greeting = greeting
        self.passed_on = 0 if batch is None else batch.passed_on
        self.inputs = 0 if batch is None else len(batch)
        self._doubted = doubted

    def add(self, failure: Retryable, now: float) -> None:
        """Count a failure that came now."""
        self.first_at = min(self.first_at, now)
        count = self._counts[failure.cause] = self._counts.get(failure.cause, 0) + 1
        self.exhausted = count >= MOST_FAILURES.get(failure.cause, 1 << 30)
        self.of_content = failure.status in CONTENT_STATUSES

    @property
    def total(self) -> int:
        """How many there were, of any cause."""
        return sum(self._counts.values())

    @property
    def suspicious(self) -> bool:
        """True if what the request holds may be the cause."""
        return self.exhausted or (self.of_content and self.total >= 2 - self._doubted)

    @property
    def hopeless(self) -> bool:
        """True if no further attempt is worth it while others are answered.

        A batch is split soon, since no row is condemned by that; an input alone is not.
        """
        return self.exhausted or (self.suspicious and self.inputs > 1)


def while_unmet(failure: Retryable, tried_s: float) -> Retryable:
    """Return a failure as what it is as long as nothing was ever answered.

    Raises StoppedEarly for a host whose name nobody knew for `UNKNOWN_HOST_S`.
    """
    if failure.unreachable is Unreachable.REFUSED:
        # Hugging Face's toolkit listens only once its model is loaded.
        return Retryable(Cause.LOADING, f"{failure.what} yet", unreachable=failure.unreachable)
    if failure.unreachable is Unreachable.UNKNOWN_HOST and tried_s >= UNKNOWN_HOST_S:
        raise StoppedEarly(
            f"{failure.what[:1].upper()}{failure.what[1:]}, for {UNKNOWN_HOST_S:.0f} s.",
            "Check how the host is spelled, and the network; then run the same command again.",
        )
    return failure
