"""Dialects: how a server wants to be asked, and how its answers are read.

    dialect   one request                                    answers
    hf        {"inputs": ["a", "b"], "parameters": {...}}    a list of labels per input
    tei       {"inputs": [["a"], ["b"]], "truncate": ...}    a list of all labels per input
    single    {"inputs": "a", "parameters": {...}}           one list, or one inside another

The shape of an answer is decided by what was asked, never by looking at the answer alone: a text
list sent to TEI is one pair and comes back as a well-formed wrong answer (docs/protocol.md,
"Response").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.addresses import beside
from pipeline.client.answers import read_answers, read_list

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome


class Dialect(ABC):
    """One way to ask. `most_texts` is how many texts a request may carry, None for any number."""

    name: str
    most_texts: int | None = None

    def __init__(self, config: RunConfig) -> None:
        self._top_k = None if config.top_k == "all" else config.top_k

    def url(self, address: str) -> str:
        """Return where to POST, given the address of the endpoint."""
        return address

    @abstractmethod
    def body(self, items: Sequence[Item]) -> bytes:
        """Return the request for these inputs."""

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the outcomes of `count` inputs. Raises Retryable (unreadable answer)."""
        return read_answers(read_list(answer), count, self._top_k, answer)


class Hf(Dialect):
    """Lists of texts, as the serverless API and the inference toolkit take them."""

    name = "hf"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        # Explicit even if it is the default: absent, variants differ in the answer's shape.
        self._parameters: dict[str, Any] = {"top_k": self._top_k}
        if config.function_to_apply is not None:
            self._parameters["function_to_apply"] = config.function_to_apply
        if config.truncate:
            self._parameters["truncation"] = True

    def body(self, items: Sequence[Item]) -> bytes:
        """Return a list of texts, or of pairs."""
        inputs = items if type(items[0]) is str else [_input(item) for item in items]
        return orjson.dumps({"inputs": inputs, "parameters": self._parameters})


class Single(Hf):
    """One text a request, for servers that take or honour no lists."""

    name = "single"
    most_texts = 1

    def body(self, items: Sequence[Item]) -> bytes:
        """Return the one text itself, in no list."""
        (item,) = items
        return orjson.dumps({"inputs": _input(item), "parameters": self._parameters})

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the labels of the one text: servers answer `[L1, L2]` or `[[L1, L2]]`."""
        found = read_list(answer)
        if found and type(found[0]) is dict:
            found = [found]
        return read_answers(found, count, self._top_k, answer)


class Tei(Dialect):
    """Text Embeddings Inference: each text in a list of its own, parameters at the root.

    It has no `top_k` (every label comes back, and the best are kept here) and picks softmax or
    sigmoid itself; only raw scores can be asked for.
    """

    name = "tei"

    def __init__(self, config: RunConfig, most_texts: int | None = None) -> None:
        super().__init__(config)
        self.most_texts = most_texts
        self._options = {
            "truncate": config.truncate,
            "raw_scores": config.function_to_apply == "none",
        }

    def url(self, address: str) -> str:
        """Return `/predict` below the address."""
        return beside(address, "predict")

    def body(self, items: Sequence[Item]) -> bytes:
        """Return a list of lists: one text, or a pair, in each."""
        inputs = [[item] if type(item) is str else list(item) for item in items]
        return orjson.dumps({"inputs": inputs, **self._options})


def dialect_of(name: str, config: RunConfig) -> Dialect:
    """Return the dialect of this name; `auto` begins as hf."""
    dialects: dict[str, type[Hf | Tei]] = {"tei": Tei, "single": Single}
    return dialects.get(name, Hf)(config)


def _input(item: Item) -> Any:
    return item if type(item) is str else {"text": item[0], "text_pair": item[1]}
