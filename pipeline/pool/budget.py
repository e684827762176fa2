"""The retry budget that all requests share, so that retries never multiply an outage."""

from __future__ import annotations

# Retries may add a fifth to the requests that succeed, and this many at any time.
BUDGET_SHARE = 0.2
BUDGET_RESERVE = 20.0


class Budget:
    """Retries that may still be made: successes earn them, an endpoint that is back renews them."""

    def __init__(self) -> None:
        self._left = BUDGET_RESERVE

    def earn(self) -> None:
        """Count a success."""
        self._left = min(self._left + BUDGET_SHARE, 10 * BUDGET_RESERVE)

    def spend(self) -> bool:
        """Take one retry; False if the budget is used up."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def renew(self) -> None:
        """Grant the reserve again: a probe showed that the endpoint is back."""
        self._left = max(self._left, BUDGET_RESERVE)
