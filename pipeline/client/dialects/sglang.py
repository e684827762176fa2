"""`sglang`: SGLang and Dynamo, which answer as vLLM does and ignore more of what is asked.

{"model": "m", "input": ["a", "b"]}    {"data": [{"index", "label", "probs"}, ...]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from pipeline.client.dialects.base import Limit, only_id
from pipeline.client.dialects.vllm import Vllm
from pipeline.outcomes import Outcome, RowError

if TYPE_CHECKING:
    from pipeline.client.discovery import Site
    from pipeline.config import RunConfig

_IGNORES = "would ignore it without a word"


class Sglang(Vllm):
    """The dialect of SGLang and Dynamo."""

    server = "SGLang or Dynamo"
    route = "v1/classify"
    owners = ("sglang", "nvidia")
    limits: ClassVar = {
        **Vllm.limits,
        "function_to_apply": Limit((None,), _IGNORES),
        "truncate": Limit((False,), _IGNORES),
    }

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:
        """Know the server by its list of models, one of which Dynamo has to be asked for.

        Raises EndpointRefused if there are several and the settings name none.
        """
        if not (models := await cls._models(site)):
            return None
        found = cls(config)
        found._served = only_id(models, site, config)
        return found.under(config)

    def _best(self, entry: dict[str, Any]) -> Outcome:
        """Return the best label with its score, or the error that SGLang calls a label."""
        if (entry["label"], entry["probs"]) == ("Default", [1.0]):
            return RowError("the server could not score this text (it answered 'Default')")
        return super()._best(entry)
