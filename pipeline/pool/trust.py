"""Trust: is a refusal the rows' fault, or the endpoint's? Statuses lie.

A text whose answer is known decides, asked again: if the endpoint answers it as before, what it
refused is at fault. A server that is paused, or whose GPU has failed, refuses everything with the
statuses of a bad row (400), and a firewall refuses a single text with those of a bad account (403).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import Cause, EndpointRefused, StoppedEarly
from pipeline.outcomes import RowError
from pipeline.pool.batching import PLAIN, Batch, plain_batch
from pipeline.wording import sentence, setting

if TYPE_CHECKING:
    from pipeline.client import Reply
    from pipeline.errors import Retryable, RowsRejected
    from pipeline.outcomes import Outcome
    from pipeline.pool.failures import Failures

# So many refusals in a row are a few bad rows, at any concurrency.
FEW = 5
# So many on the way of one bad row out of a larger batch; a probe has requests for no more.
MOST_HALVINGS = 6
# Scores of the same text alone and in a batch differ by the padding's rounding, not by more.
SAME_SCORE = 0.02


class Known(NamedTuple):
    """One input that the endpoint has answered, and its answer; None for one to be asked first."""

    batch: Batch
    answer: Outcome | None


class Trust:
    """What the endpoint refused and answered of late.

    Refusals are numbered. One is `vouched` for once a request that was sent after it was answered.
    `known` is an input to ask again, None until one was answered in a form that is beyond doubt. If
    it is `wary`, the first refusal is doubted already, unless something was answered before.
    """

    def __init__(self, *, allow_drift: bool) -> None:
        self._allow_drift = allow_drift
        self.refusals = self.vouched = 0
        self.known: Known | None = None
        self.wary = False
        self._unreadable: Retryable | None = None
        # How often in a row the text that decides was answered, so that the rows were at fault.
        self.acquittals = 0

    def refused(self) -> None:
        """Count a refusal."""
        self.refusals += 1

    def answered(self, refusals: int) -> None:
        """Hear that a request was answered which was sent after so many refusals."""
        self.vouched = max(self.vouched, refusals)

    def doubtful(self, in_flight: int, batch_size: int) -> bool:
        """Return True if more was refused in a row than bad rows explain.

        One bad row in each request in flight, one of which is on its way from a whole batch to a
        batch of its own; twice as many each time that the endpoint proves to be well.
        """
        if self.wary and self.known is None:
            return True
        halvings = min(batch_size.bit_length(), MOST_HALVINGS)
        explained = max(FEW, in_flight - 1 + halvings) << self.acquittals
        return self.refusals - self.vouched > explained

    def learn(self, batch: Batch, outcomes: list[Outcome]) -> None:
        """Take an input of a batch for the one to ask again, unless there is one.

        The one with the highest score: a near tie might fall the other way if it is asked alone.
        """
        self.acquittals = 0
        if self.known is None:
            scores = [-1.0 if isinstance(each, RowError) else each[0][1] for each in outcomes]
            best = max(range(len(scores)), key=scores.__getitem__)
            if not isinstance(outcomes[best], RowError):
                self.known = Known(batch.part(best), outcomes[best])

    def text_to_ask(self, like: Batch) -> Known:
        """Return what to ask: what was answered before, else a text that no model refuses."""
        return self.known or Known(plain_batch(pair=like.is_of_pairs), None)

    def light_probe(self, batch: Batch | None, failures: int) -> Known | None:
        """Return one input to probe an outage with, to tell it from a batch that always fails.

        After each failure it is another one of the batch; None if there is no choice.
        """
        if self.known is not None or batch is None or len(batch) == 1:
            return self.known
        return Known(batch.part(failures % len(batch)), None)

    def check_dialect(self, failure: Retryable, failures: Failures) -> None:
        """Raise EndpointRefused if nothing was answered yet, as this is another kind of server."""
        if failure.cause is Cause.UNREADABLE:
            self._unreadable = failure
        soon = failures.of_content and failures.total > 1
        if self.known is None and self._unreadable and (failures.exhausted or soon):
            raise not_the_api(self._unreadable) from failure

    def compare(self, asked: Known, reply: Reply) -> None:
        """Take the answer to an input that was asked again.

        Raises StoppedEarly if it is another one than before: another model answers.
        """
        (answer,) = reply.outcomes
        if isinstance(answer, RowError):
            return
        before = asked.answer
        if before is not None and not agree(before, answer) and not self._allow_drift:
            raise StoppedEarly(
                "The endpoint answers a text differently than before "
                f"({shown(answer)}, and {shown(before)} before): another model seems to be "
                "served there now, and the labels of two models would be mixed.",
                f"Start over with {setting('restart', 'True')} (with "
                f"{setting('overwrite', 'True')} too if there is an output), or accept the "
                f"mixture with {setting('allow_drift', 'True')}.",
            )
        self.acquittals += 1
        self.known = Known(asked.batch, answer)

    def distrust(self, refusal: RowsRejected) -> EndpointRefused | StoppedEarly:
        """Return why the run ends if the text that decides was refused, too."""
        if self.known is None:
            return EndpointRefused(
                f"The endpoint refused every input so far, and the text {PLAIN!r} as well: "
                f"{sentence(refusal.what)}",
                "Check the settings of the request (model, function_to_apply, truncate, dialect), "
                "then run again.",
                status=refusal.status,
                at_fault="texts",
            )
        return StoppedEarly(
            f"The endpoint refuses everything now, also a text that it answered before: "
            f"{sentence(refusal.what)} No row is taken to be at fault.",
            "Look at the server, and restart it if need be; then run the same command again to "
            "continue.",
        )


def not_the_api(wrong: Retryable) -> EndpointRefused:
    """Return the error of a server of another kind, by an answer that could not be read."""
    return EndpointRefused(
        f"This does not speak the dialect that it was asked in: {sentence(wrong.what)}",
        f"Check the address and the {setting('dialect')}.",
        status=wrong.status,
        at_fault="dialect",
    )


def agree(one: Outcome, other: Outcome) -> bool:
    """Return True if two outcomes are the same answer but for rounding."""
    if isinstance(one, RowError) or isinstance(other, RowError):
        return one == other
    (label, score), (other_label, other_score) = one[0], other[0]
    near = abs(score - other_score) <= SAME_SCORE * max(1.0, abs(score))
    return label == other_label and near


def shown(outcome: Outcome) -> str:
    """Return the words for an outcome: its best label, and the score."""
    if isinstance(outcome, RowError):
        return outcome.message
    label, score = outcome[0]
    return f"{label} {score:.4f}"
