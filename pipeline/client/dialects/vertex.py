"""`vertex`: Hugging Face's inference toolkit as Google's Vertex AI serves it.

{"instances": ["a", "b"], "parameters": {...}}    {"predictions": [[labels of a], [...]]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import orjson

from pipeline.client.answers import read_answers
from pipeline.client.dialects.base import Limit, read_field
from pipeline.client.dialects.hf import Hf

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

    from pipeline.outcomes import Item, Outcome

_HOSTS = ("aiplatform.googleapis.com", ".prediction.vertexai.goog")


class Vertex(Hf):
    """The dialect of the inference toolkit in its Vertex mode."""

    server = "Vertex AI"
    limits: ClassVar = {"text_pair": Limit((None,), "refuses pairs")}

    @classmethod
    def lives_at(cls, url: URL) -> bool:
        """Know Vertex AI by its hosts."""
        return (url.host or "").endswith(_HOSTS)

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the list of texts."""
        return orjson.dumps({"instances": items, "parameters": self.parameters(len(items))})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the labels of each text."""
        return read_answers(read_field(answer, "predictions"), count, self._top_k, answer)
