"""What is asked and what comes of it: inputs, answers, and rows without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

# The text, or the text and its pair.
Item = str | tuple[str, str]

# The labels of one input with their scores, best first, as many as `top_k` asked for.
Answer = tuple[tuple[str, float], ...]


class RowError(NamedTuple):
    """Why an input has no label; the words for the error column."""

    message: str


Outcome = Answer | RowError


class Provisional(Protocol):
    """Answers that are paid for and not believed yet: it is still open how the server reads lists.

    They are kept, so that a run that ends meanwhile does not pay for them again.
    """

    async def earlier(self, places: Sequence[int]) -> Sequence[Outcome | None]:
        """Return those of an earlier attempt to the inputs at these places, None for the others."""

    def keep(
        self, places: Sequence[int], outcomes: Sequence[Outcome], revision: str | None
    ) -> None:
        """Keep the answers to the inputs at these places."""


# Hears of each request that is answered: the places of its inputs among those that were asked, in
# any order, their outcomes, and the model revision that the answer told. Returns False if the
# answer is one that ends the run, and is not part of it.
Arrived = Callable[[Sequence[int], Sequence[Outcome], str | None], bool]
