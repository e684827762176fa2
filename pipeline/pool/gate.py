"""The readiness gate: while the endpoint is not ready, one probe goes on and all others wait.

`patience` closes it. The next worker to come through becomes the probe; the first answer that shows
a living model opens the gate for all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pipeline.errors import Cause, Retryable, StoppedEarly
from pipeline.events import WaitEnded, Waiting, Why
from pipeline.wording import sentence

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.system.clock import Clock

# How long the probe waits between attempts, in seconds: threefold each time, so that a minute of
# loading costs a handful of 503s even if the server does not hold the request.
PROBE_FIRST_S = 1.0
PROBE_GROWTH = 3.0
PROBE_LONGEST_S = 30.0
# One of several servers that is down is looked for more often: it may be back at any moment, and
# nobody waits for it.
LOOK_LONGEST_S = 5.0
# So often a short estimate of the loading time is believed; some servers repeat it for minutes.
BELIEVED_ESTIMATES = 2


class PassedOnError(Exception):
    """The server does not work: another one is to answer."""


class Gate:
    """Lets workers through while the endpoint is ready; see the module."""

    def __init__(self, config: RunConfig, clock: Clock, emit: Observer) -> None:
        self._limits_s = {Why.LOADING: config.max_loading_s, Why.OUTAGE: config.max_outage_s}
        self._passes_on = config.is_list
        self._clock = clock
        self._emit = emit
        self._turn = asyncio.Event()
        self._probing = False
        self.is_open = True
        self.why = Why.OUTAGE
        self._told_loading = False
        self._begin()

    def _begin(self) -> None:
        self._closed_at = self._seen_at = self._clock.now()
        self._spent_s = dict.fromkeys(self._limits_s, 0.0)
        self.failures = 0

    @property
    def wait_for_model(self) -> bool:
        """True if the server is asked to hold the request: only after a 503 that said loading."""
        return self._told_loading and not self.is_open

    async def enter(self, *, greeting: bool = False) -> bool:
        """Wait; return True if this worker is the probe, False once the gate is open.

        The probe calls `leave` after its attempt, whatever came of it. Of several servers only a
        `greeting` waits: raises PassedOnError for what another server can answer.
        """
        while not self.is_open:
            if self._passes_on and not greeting:
                raise PassedOnError
            if not self._probing:
                self._probing = True
                self._turn.clear()
                return True
            await self._turn.wait()
        return False

    def leave(self) -> None:
        """End the role of the probe."""
        self._probing = False
        self._turn.set()

    def open(self) -> None:
        """Let everybody through: an answer showed a living model."""
        if not self.is_open:
            self.is_open = True
            self._turn.set()
            self._emit(WaitEnded(self.why, self._clock.now() - self._closed_at))

    def close(self, why: Why, failure: Retryable, since: float) -> None:
        """Let nobody but a probe through. Does nothing if the gate is closed.

        `since` is when the trouble began, from where its time is counted.
        """
        if self.is_open:
            self.is_open = False
            # The probe that opened it may not have left: whoever comes now waits for that.
            self._turn.clear()
            self.why = why
            self._begin()
            self._told_loading = why is Why.LOADING and failure.status is not None
            self._closed_at = self._seen_at = since
            estimate_s = failure.wait_s if why is Why.LOADING else None
            self._emit(Waiting(why, estimate_s, str(failure), self._clock.now() - since))

    async def probe_failed(self, failure: Retryable) -> None:
        """Wait before the next probe, by cause.

        Raises StoppedEarly when loading has used up `max_loading_s`, or an outage
        `max_outage_s`: the time is counted by what each probe found.
        """
        loading = failure.cause is Cause.LOADING or (
            # A server that holds the request for the model may hold it for longer than an attempt.
            failure.cause is Cause.TIMEOUT and self.wait_for_model
        )
        self.why = Why.LOADING if loading else Why.OUTAGE
        if failure.status is not None:
            self._told_loading = loading
        now = self._clock.now()
        self._spent_s[self.why] += now - self._seen_at
        self._seen_at = now
        left_s = self._limits_s[self.why] - self._spent_s[self.why]
        # An estimate of loading is often wrong, a hint when to come back is meant.
        hopeless = not loading and failure.wait_s is not None and failure.wait_s > left_s
        if left_s <= 0 or hopeless:
            asked = f" (it asks for a pause of {failure.wait_s:.0f} s)" if hopeless else ""
            setting = "max_loading_s" if loading else "max_outage_s"
            raise StoppedEarly(
                f"{self.why} for {self._spent_s[self.why]:.0f} s, which is all that {setting} "
                f"allows{asked}. The last answer: {sentence(failure.what)}",
                "Run the same command again to continue.",
            )
        longest_s = LOOK_LONGEST_S if self._passes_on and not loading else PROBE_LONGEST_S
        wait_s = min(PROBE_FIRST_S * PROBE_GROWTH ** min(self.failures, 5), longest_s)
        if failure.wait_s is not None:
            if not loading:
                wait_s = max(wait_s, failure.wait_s)
            elif self.failures < BELIEVED_ESTIMATES:
                wait_s = min(wait_s, failure.wait_s)
        self.failures += 1
        wait_s = min(wait_s * self._clock.jitter(1.0, 1.1), left_s)
        told_s = failure.wait_s if loading else wait_s
        self._emit(Waiting(self.why, told_s, str(failure), self._spent_s[self.why]))
        await self._clock.sleep(wait_s)
