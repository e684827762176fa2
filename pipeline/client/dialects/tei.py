"""`tei`: Text Embeddings Inference, each text in a list of its own, parameters at the root.

    {"inputs": [["a"], ["b"]], "truncate": ...}    a list of all labels per input

It has no `top_k` (every label comes back, and the best are kept here) and picks softmax or sigmoid
itself; only raw scores can be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import orjson

from pipeline.client.dialects.base import CLASSIFIER, Dialect, Limit, count_of
from pipeline.errors import EndpointRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.client.discovery import Site
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item


class Tei(Dialect):
    """The dialect of Text Embeddings Inference."""

    server = "Text Embeddings Inference"
    route = "predict"
    limits: ClassVar = {"function_to_apply": Limit((None, "none"), "picks it by the model")}

    def settle(self, config: RunConfig) -> None:
        """Take over the options at the root."""
        super().settle(config)
        self._options = {
            "truncate": config.truncate,
            "raw_scores": config.function_to_apply == "none",
        }

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:
        """Know the server by `/info`, which has its limits.

        Raises EndpointRefused for a model that is no classifier.
        """
        info = await site.content("info")
        if "max_client_batch_size" not in info:
            return None
        kind = info.get("model_type")
        if isinstance(kind, dict) and "embedding" in kind:
            name = info.get("model_id")
            raise EndpointRefused(
                f"{name if type(name) is str else 'The model'} at {site.address.host} is a model "
                "for embeddings, not a classifier.",
                CLASSIFIER,
                at_fault="model",
            )
        found = cls(config)
        found.most_texts = count_of(info["max_client_batch_size"])
        found.permits = count_of(info.get("max_concurrent_requests"))
        return found

    def body(self, items: Sequence[Item]) -> bytes:
        """Return a list of lists: one text, or a pair, in each."""
        inputs = [[item] if type(item) is str else list(item) for item in items]
        return orjson.dumps({"inputs": inputs, **self._options})
