"""`single`: one text a request, for servers that take or honour no lists.

{"inputs": "a", "parameters": {...}}    one list of labels, or one inside another

What `auto` falls back to where an answer to a list cannot be believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from pipeline.client.answers import read_answers, read_list
from pipeline.client.dialects.hf import Hf, entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.outcomes import Item, Outcome


class Single(Hf):
    """What every server of the Inference API takes."""

    most_texts = 1

    def together(self) -> None:
        """Return None: there is one text."""

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the one text itself, in no list."""
        (item,) = items
        return orjson.dumps({"inputs": entry(item), "parameters": self._parameters})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the labels of the one text: servers answer `[L1, L2]` or `[[L1, L2]]`."""
        found = read_list(answer)
        if found and type(found[0]) is dict:
            found = [found]
        return read_answers(found, count, self._top_k, answer)
