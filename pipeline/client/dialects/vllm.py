"""`vllm`: vLLM, whose answers name the best label only.

    {"input": ["a", "b"], "truncate_prompt_tokens": -1}    {"data": [{"index", "label", "probs"}]}

It takes texts at `/classify`, though all else is below `/v1`: the address may end with either.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Self

import orjson

from pipeline.addresses import beside
from pipeline.client.answers import NON_FINITE, excerpt, unreadable
from pipeline.client.dialects.base import CLASSIFIER, Dialect, Limit, objects, read_field
from pipeline.client.statuses import Sign
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.client.discovery import Site
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

_NO_CLASSIFIER = "^The model does not support Classification"


class Vllm(Dialect):
    """The dialect of vLLM; `owners` is how its list of models names who serves them."""

    server = "vLLM"
    route = "classify"
    owners: ClassVar[tuple[str, ...]] = ("vllm",)
    limits: ClassVar = {
        "text_pair": Limit((None,), "takes one text a row"),
        "top_k": Limit((1,), "names the best label only"),
        "function_to_apply": Limit((None, "none"), "picks it by the model"),
    }
    signs = (
        Sign(400, _NO_CLASSIFIER, "model", CLASSIFIER),
        Sign(501, _NO_CLASSIFIER, "model", CLASSIFIER),
    )

    _served: str | None = None

    def settle(self, config: RunConfig) -> None:
        """Take over the model's name and the options."""
        super().settle(config)
        self._options: dict[str, Any] = {}
        if (name := config.model or self._served) is not None:
            self._options["model"] = name
        if config.truncate:
            self._options["truncate_prompt_tokens"] = -1
        if config.function_to_apply == "none":
            self._options["use_activation"] = False

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:
        """Know the server by its list of models."""
        return cls(config) if await cls._models(site) else None

    @classmethod
    async def _models(cls, site: Site) -> list[dict[str, Any]]:
        if await site.hints_at("models"):
            found = await site.content("models")
        elif await site.offers("/v1/models", f"/{cls.route}"):
            found = await site.content("v1/models")
        else:
            return []
        return [each for each in objects(found, "data") if each.get("owned_by") in cls.owners]

    def url(self, address: str) -> str:
        """Return the route below the address without `/v1`."""
        return beside(address, self.route, ["classify", "v1"])

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the list of texts, and what else is asked."""
        return orjson.dumps({"input": items, **self._options})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the best label of each text; each entry tells which text it is of."""
        data = read_field(answer, "data")
        if len(data) != count:
            raise unreadable(f"{counted(len(data), 'answer')} for {counted(count, 'input')}")
        try:
            # With their types: true and 1.0 would be taken for 1.
            entries = {(type(entry["index"]), entry["index"]): entry for entry in data}
            return [self._best(entries[int, place]) for place in range(count)]
        except (TypeError, ValueError, LookupError):
            what = f"not index, label and probs for each input: {excerpt(answer)}"
            raise unreadable(what) from None

    def _best(self, entry: dict[str, Any]) -> Outcome:
        """Return the best label with its score.

        A label without a name is called as transformers would. Raises TypeError, ValueError or
        LookupError for what is none.
        """
        probs, label = entry["probs"], entry["label"]
        if type(probs) is not list or not {float, int, type(None)}.issuperset(map(type, probs)):
            raise TypeError
        if None in probs or not isfinite(sum(probs)):
            return NON_FINITE
        score = max(probs)
        if label is None:
            label = f"LABEL_{probs.index(score)}"
        if type(label) is not str:
            raise TypeError
        return ((label, float(score)),)
