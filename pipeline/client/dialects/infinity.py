"""`infinity`: infinity_emb, with a list of texts.

    {"model": "m", "input": ["a", "b"]}    {"data": [[all labels of a], [all labels of b]], ...}

It always truncates, and its `raw_scores` changes nothing for classifiers (version 0.0.77).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import orjson

from pipeline.client.answers import read_answers
from pipeline.client.dialects.base import CLASSIFIER, Dialect, Limit, objects, only_id, read_field
from pipeline.client.statuses import Sign
from pipeline.errors import Cause, EndpointRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.client.discovery import Site
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome


class Infinity(Dialect):
    """The dialect of infinity_emb."""

    server = "infinity"
    route = "classify"
    limits: ClassVar = {
        "text_pair": Limit((None,), "takes one text a row"),
        "function_to_apply": Limit((None,), "picks it by the model"),
        "truncate": Limit((True,), "always truncates"),
    }
    signs = (
        Sign(400, "^ModelNotDeployedError", "model", CLASSIFIER),
        Sign(429, "is currently overloaded", Cause.OVERLOADED),
    )
    most_texts = 2048
    _served: str | None = None

    def settle(self, config: RunConfig) -> None:
        """Take over the model's name; where one is served, none is needed."""
        super().settle(config)
        name = config.model or self._served
        self._options = {} if name is None else {"model": name}

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:
        """Know the server by its models, each of which has capabilities.

        Raises EndpointRefused if none is a classifier, or several are and the settings name none.
        """
        if not (await site.hints_at("models") or await site.offers("/classify", "/models")):
            return None
        models = objects(await site.content("models"), "data")
        able = [each for each in models if type(each.get("capabilities")) is list]
        if not able:
            return None
        classifiers = [each for each in able if "classify" in each["capabilities"]]
        if not classifiers:
            raise EndpointRefused(
                f"No model at {site.address.host} is a classifier.", CLASSIFIER, at_fault="model"
            )
        found = cls(config)
        found._served = only_id(classifiers, site, config)
        return found.under(config)

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the list of texts, and the model's name if there is one."""
        return orjson.dumps({"input": items, **self._options})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the best of all labels of each text."""
        return read_answers(read_field(answer, "data"), count, self._top_k, answer)
