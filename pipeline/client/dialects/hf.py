"""`hf`: lists of texts, as the serverless API and the inference toolkit take them.

{"inputs": ["a", "b"], "parameters": {...}}    a list of labels per input

What `auto` takes a server for that says nothing of itself.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Self

import orjson

from pipeline.client.dialects.base import Dialect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.outcomes import Item


class Hf(Dialect):
    """The dialect of the Inference API."""

    server = "the Hugging Face Inference API"
    _together = False

    def settle(self, config: RunConfig) -> None:
        """Take over the parameters."""
        super().settle(config)
        # Explicit even if it is the default: absent, variants differ in the answer's shape.
        self._parameters: dict[str, Any] = {"top_k": self._top_k}
        if config.function_to_apply is not None:
            self._parameters["function_to_apply"] = config.function_to_apply
        if config.truncate:
            self._parameters["truncation"] = True

    def together(self) -> Self | None:
        """Return this dialect with `parameters.batch_size`, without which a list is worked through.

        So the toolkit does; other servers may refuse it.
        """
        told = copy(self)
        told._together = True  # noqa: SLF001  (a copy of itself)
        return told

    def parameters(self, texts: int) -> dict[str, Any]:
        """Return the parameters of a request of so many texts."""
        return {**self._parameters, "batch_size": texts} if self._together else self._parameters

    def body(self, items: Sequence[Item]) -> bytes:
        """Return a list of texts, or of pairs."""
        inputs = items if type(items[0]) is str else [entry(item) for item in items]
        return orjson.dumps({"inputs": inputs, "parameters": self.parameters(len(items))})


def entry(item: Item) -> Any:
    """Return the JSON value of one input: a text, or a pair."""
    return item if type(item) is str else {"text": item[0], "text_pair": item[1]}
