"""Together: a server that works through a list text by text is told to work on it as one batch.

Hugging Face's toolkit does so if `parameters.batch_size` is sent, and pads the texts then, which
changes the last digits of scores. What another server makes of it is not known. So a batch that was
answered is sent once more, told: a refusal costs that request, and the two answers must agree.
Whether it helps is measured by the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import Retryable, RowsRejected
from pipeline.events import TextsTogether
from pipeline.outcomes import RowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.client import Reply
    from pipeline.events import Observer
    from pipeline.outcomes import Outcome
    from pipeline.pool.attempt import Attempts
    from pipeline.pool.batching import Batch
    from pipeline.pool.patience import Patience
    from pipeline.pool.search import Setting

# How much padding may change a score; 32-bit floats differ by a tenth of it.
SAME_SCORE = 1e-5


@dataclass(eq=False)
class Together:
    """Has requests tell the server if the search wants it, once answers to such ones agree.

    `_more` says whether texts wait to be asked. `on_refusal` hears that it cannot be.
    """

    _patience: Patience
    _attempts: Attempts
    _more: Callable[[], bool]
    _emit: Observer

    def __post_init__(self) -> None:
        self._wanted = self._kept = False
        # True once answers agree, False once they do not, or while that is being found out.
        self._agrees: bool | None = None
        self.on_refusal: Callable[[], None] = lambda: None

    def aim(self, setting: Setting, best: Setting) -> None:
        """Do as a search says from now on."""
        self._wanted = setting.together
        self._attempts.together = self._wanted and bool(self._agrees)
        if best.together and not self._kept:
            self._emit(TextsTogether())
        self._kept = best.together

    async def check(self, batch: Batch, reply: Reply) -> None:
        """Send a batch that was answered once more, if it is not known yet what comes of it."""
        if not self._wanted or self._agrees is not None or len(batch) == 1 or not self._more():
            return
        self._agrees = False
        try:
            told = await self._patience.answer(batch, patient=False, together=True)
        except (RowsRejected, Retryable):
            self.on_refusal()
            return
        except BaseException:
            self._agrees = None  # it is still to be found out
            raise
        self._agrees = agree(reply.outcomes, told.outcomes)
        self._attempts.together = self._wanted and self._agrees
        if not self._agrees:
            self.on_refusal()


def agree(alone: Sequence[Outcome], together: Sequence[Outcome]) -> bool:
    """Return True if all labels are the same, and all scores within 1e-5."""
    return all(
        one == other if isinstance(one, RowError) or isinstance(other, RowError)
        else [label for label, _ in one] == [label for label, _ in other]
        and all(
            abs(score - another) <= SAME_SCORE * max(1.0, abs(score))
            for (_, score), (_, another) in zip(one, other, strict=True)
        )
        for one, other in zip(alone, together, strict=True)
    )  # fmt: skip
