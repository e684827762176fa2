"""The shapes of the serverless Inference API: what a request may say, how its answer looks.

Pure functions from bytes to values and back. The rules are those of the inference toolkit that
serves the serverless API, quirks included: a client that is right here is right there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import orjson

from pipeline.endpoint.models import Function, Ranking, TextInput, Tokenization, ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.endpoint.models import Model

# How many labels a single text gets where the request has no `top_k`.
_LABELS_UNASKED: Final = 5

# The last two say how the server is to work and change no answer.
_NOT_FOR_TOKENIZERS: Final = {"top_k", "function_to_apply", "batch_size", "num_workers"}


class BadRequestError(ValueError):
    """The body cannot be classified; the answer is 400 with `{"error": message}`."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """A validated request.

    `single` tells a bare text from a list of one. `top_k` None means all labels and counts only
    where `top_k_given`: absent and null are different requests. `function` None leaves the choice
    to the model. `tokenization` is every other parameter, for models with a tokenizer.
    """

    inputs: tuple[TextInput, ...]
    single: bool
    top_k: int | None = None
    top_k_given: bool = False
    function: Function | None = None
    tokenization: Tokenization = field(default_factory=dict)

    def labels_wanted(self, available: int) -> int:
        """Return how many labels each input gets from a model that has `available`.

        A number cuts as a Python slice does: -1 drops the last, too many is fine.
        """
        if self.top_k_given:
            return len(range(available)[: self.top_k])
        return min(_LABELS_UNASKED, available) if self.single else 1


def parse(body: bytes) -> Query:
    """Read a request body.

    Raises BadRequestError if it is not JSON (a lone surrogate counts as not JSON), has no
    `inputs`, or has inputs or parameters of a form that the API refuses.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not valid JSON: {error}") from error
    if not isinstance(request, dict) or "inputs" not in request:
        raise BadRequestError("Body needs to provide a inputs key")
    inputs = request["inputs"]
    single = isinstance(inputs, str)
    if not single and not isinstance(inputs, list):
        raise BadRequestError(
            'inputs must be a string, or a list of strings and of {"text", "text_pair"}, '
            f"not {_kind(inputs)}"
        )
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequestError(f"parameters must be an object, not {_kind(parameters)}")
    top_k = parameters.get("top_k")
    # Only whole numbers and null count; anything else is as good as absent, without a word.
    given = "top_k" in parameters and (top_k is None or isinstance(top_k, int))
    return Query(
        inputs=tuple(_text_input(each) for each in ([inputs] if single else inputs)),
        single=single,
        top_k=top_k if given else None,
        top_k_given=given,
        function=_function(parameters.get("function_to_apply")),
        tokenization={key: parameters[key] for key in parameters.keys() - _NOT_FOR_TOKENIZERS},
    )


def classify(query: Query, model: Model) -> list[Ranking]:
    """Run the model and give every input its ranking, cut to the labels that the query wants.

    Raises ModelError if the model cannot take one of the inputs.
    """
    wanted = query.labels_wanted(len(model.labels))
    function = model.function if query.function is None else query.function
    if function is Function.SOFTMAX:
        return model.best(query.inputs, wanted, query.tokenization)
    apply = _APPLY[function]
    return [
        ranked(model.labels, apply(logits))[:wanted]
        for logits in model.logits(query.inputs, query.tokenization)
    ]


def shape(query: Query, rankings: Sequence[Ranking]) -> list[Any]:
    """Nest the rankings as the serverless API does.

    One text gives a list in a list. A list with `top_k` gives one list for each input; a list
    without gives all best labels inside one outer list, and an empty list stays empty.
    """
    answers = [
        [{"label": label, "score": score} for label, score in ranking] for ranking in rankings
    ]
    if query.single or query.top_k_given or not answers:
        return answers
    return [[answer[0] for answer in answers]]


def _text_input(value: Any) -> TextInput:
    if isinstance(value, str):
        return value, None
    if isinstance(value, dict) and set(value) <= {"text", "text_pair"}:
        text, pair = value.get("text"), value.get("text_pair")
        if isinstance(text, str) and (pair is None or isinstance(pair, str)):
            return text, pair
    raise BadRequestError(
        'each of inputs must be a string or {"text": string, "text_pair": string}, '
        f"and one is {_kind(value)}"
    )


def _function(value: Any) -> Function | None:
    if value is None:
        return None
    try:
        return Function(value.lower())
    except (AttributeError, ValueError) as error:
        raise BadRequestError(
            f"function_to_apply must be one of {', '.join(Function)}, not {value!r:.80}"
        ) from error


def _sigmoid(logits: Sequence[float]) -> list[float]:
    # The power is never of a positive number, which would overflow from 710 up.
    powers = [math.exp(-abs(logit)) for logit in logits]
    return [
        (power if logit < 0 else 1) / (1 + power)
        for logit, power in zip(logits, powers, strict=True)
    ]


_APPLY: Final[dict[Function, Callable[[Sequence[float]], list[float]]]] = {
    Function.SIGMOID: _sigmoid,
    Function.NONE: list,
}


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, dict):
        keys = ", ".join(list(value)[:5])
        return f"an object with the keys {keys}" if keys else "an empty object"
    return "a list" if isinstance(value, list) else "a number"
