"""`mlflow`: models that MLflow or Databricks serves, which answer with the best label.

{"inputs": ["a", "b"]}    {"predictions": [{"label", "score"}, {"label", "score"}]}
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Self

import orjson

from pipeline.client.answers import read_answers
from pipeline.client.dialects.base import Dialect, Limit, read_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from yarl import URL

    from pipeline.client.discovery import Site
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

_HOSTS = (".cloud.databricks.com", ".azuredatabricks.net", ".gcp.databricks.com")
_VERSION = re.compile(rb"\s*\"?\d+\.\d+[\w.]*\"?\s*")
_IGNORES = "would ignore it without a word"


class Mlflow(Dialect):
    """The dialect of MLflow's scoring server, and of Databricks Model Serving."""

    server = "MLflow or Databricks"
    route = "invocations"
    limits: ClassVar = {
        "text_pair": Limit((None,), _IGNORES),
        "top_k": Limit((1,), "answers with the best label only"),
        "function_to_apply": Limit((None,), _IGNORES),
        "truncate": Limit((False,), _IGNORES),
    }

    @classmethod
    def lives_at(cls, url: URL) -> bool:
        """Know Databricks by its hosts."""
        return (url.host or "").endswith(_HOSTS)

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:
        """Know the server by the page of its version."""
        if not (await site.hints_at("version") or await site.offers("/invocations", "/version")):
            return None
        status, body = await site.page("version")
        return cls(config) if status == 200 and _VERSION.fullmatch(body) else None  # noqa: PLR2004

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the list of texts."""
        return orjson.dumps({"inputs": items})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the label of each text."""
        found = [[each] for each in read_field(answer, "predictions")]
        return read_answers(found, count, self._top_k, answer)
