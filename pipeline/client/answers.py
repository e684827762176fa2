"""Reading answers: nothing is assumed, a wrong shape is an error and never a label.

The shape follows from the request: with a list and an explicit `top_k`, every server of the
Hugging Face API answers one list of labels per input. Anything else is unreadable.
"""

from __future__ import annotations

from math import isfinite
from operator import itemgetter
from sys import intern
from typing import Any

import orjson

from pipeline.errors import Cause, Retryable
from pipeline.outcomes import Answer, Outcome, RowError
from pipeline.wording import counted

NON_FINITE = RowError("the model gave a score that is not a finite number")


def read_list(body: bytes) -> list[Any]:
    """Read a body that must be a JSON list. Raises Retryable (unreadable answer)."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise unreadable(f"not JSON: {excerpt(body)}") from None
    if type(answer) is not list:
        raise unreadable(f"not a list: {excerpt(body)}")
    return answer


def read_answers(answer: list[Any], count: int, top_k: int | None, body: bytes) -> list[Outcome]:
    """Read the answer to a request of `count` inputs; `top_k` None stands for all labels.

    A score of null is how servers print a non-finite one: an error of that row alone. Raises
    Retryable (unreadable answer) for everything else that is not one list of labels per input.
    """
    if len(answer) != count:
        raise unreadable(f"{counted(len(answer), 'answer')} for {counted(count, 'input')}")
    found = _single_labels(answer) if count > 1 else None  # for one, it is the longer way
    return found or [_one(entry, top_k, body) for entry in answer]


def _single_labels(answer: list[Any]) -> list[Outcome] | None:
    """Read an answer of one good label per input.

    None if anything is otherwise: `_one` reads it then, or says what is wrong with it.
    """
    try:
        # What has a label by name is an object, and what holds an object is a list; a label that
        # can be interned is text. Of many equal labels one is held.
        pairs = [(intern(found["label"]), found["score"]) for (found,) in answer]
    except (TypeError, ValueError, LookupError):
        return None
    scores = [score for _, score in pairs]
    # What is not finite stays so in a sum.
    if set(map(type, scores)) != {float} or not isfinite(sum(scores)):
        return None
    return list(zip(pairs, strict=True))


def _one(entry: Any, top_k: int | None, body: bytes) -> Outcome:
    if type(entry) is not list or not entry:
        raise unreadable(f"not a list of labels for each input: {excerpt(body)}")
    labels: list[tuple[str, float]] = []
    finite = True
    for found in entry:
        if type(found) is not dict:
            raise unreadable(f"not label and score: {excerpt(body)}")
        label, score = found.get("label"), found.get("score", "")
        if type(label) is not str:
            raise unreadable(f"a label that is no text: {excerpt(body)}")
        if type(score) is float and isfinite(score):
            labels.append((intern(label), score))
        elif type(score) is int:
            labels.append((intern(label), float(score)))
        elif score is None:
            finite = False
        else:
            raise unreadable(f"a score that is no number: {excerpt(body)}")
    if not finite:
        return NON_FINITE
    if len(labels) > 1:
        labels.sort(key=itemgetter(1), reverse=True)
    answer: Answer = tuple(labels[:top_k])
    return answer


def read_object(body: bytes) -> dict[str, Any]:
    """Read a body that may be a JSON object; empty if it is not."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def unreadable(what: str) -> Retryable:
    """Return the error for an answer of status 200 that is not what was asked for."""
    return Retryable(Cause.UNREADABLE, f"the endpoint's answer is {what}", status=200)


def excerpt(body: bytes, length: int = 200) -> str:
    """Return the beginning of a body, on one line, for messages."""
    text = " ".join(body[: 4 * length].decode("utf-8", "replace").split())
    return text if len(text) <= length else text[:length] + "..."
