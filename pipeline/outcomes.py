"""What is asked and what comes of it: inputs, answers, and rows without one."""

from __future__ import annotations

from typing import NamedTuple

# The text, or the text and its pair.
Item = str | tuple[str, str]

# The labels of one input with their scores, best first, as many as `top_k` asked for.
Answer = tuple[tuple[str, float], ...]


class RowError(NamedTuple):
    """Why an input has no label; the words for the error column."""

    message: str


Outcome = Answer | RowError
