"""Requests and answers have the shapes that the serverless API was seen to have."""

from __future__ import annotations

import json
import struct

import pytest

from pipeline.endpoint.models import Function
from pipeline.endpoint.protocol import BadRequestError, classify, parse, shape

GOOD = "I love it"
BAD = "I hate it"
P, N = "positive", "negative"


def answer(model, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    query = parse(raw)
    return shape(query, classify(query, model))


def labels(nested):
    """Keep the nesting of an answer and put its labels in place of its objects."""
    if isinstance(nested, list):
        return [labels(each) for each in nested]
    assert set(nested) == {"label", "score"}
    return nested["label"]


def with_top_k(inputs, top_k):
    return {"inputs": inputs, "parameters": {"top_k": top_k}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"inputs": GOOD}, [[P, N]], id="text, top_k absent"),
        pytest.param({"inputs": GOOD, "parameters": {}}, [[P, N]], id="text, empty parameters"),
        pytest.param(with_top_k(GOOD, 1), [[P]], id="text, 1"),
        pytest.param(with_top_k(GOOD, 2), [[P, N]], id="text, 2"),
        pytest.param(with_top_k(GOOD, None), [[P, N]], id="text, null"),
        pytest.param(with_top_k(GOOD, 99), [[P, N]], id="text, more than there are"),
        pytest.param(with_top_k(GOOD, 0), [[]], id="text, 0"),
        pytest.param(with_top_k(GOOD, -1), [[P]], id="text, -1"),
        pytest.param(with_top_k(GOOD, "1"), [[P, N]], id="text, a string is absent"),
        pytest.param(with_top_k(GOOD, 1.5), [[P, N]], id="text, a fraction is absent"),
        pytest.param({"inputs": [GOOD, BAD]}, [[P, N]], id="list, absent: one list of the best"),
        pytest.param({"inputs": [GOOD]}, [[P]], id="list of one, absent"),
        pytest.param({"inputs": [BAD, BAD, GOOD]}, [[N, N, P]], id="list of three, absent"),
        pytest.param(with_top_k([GOOD, BAD], "2"), [[P, N]], id="list, a string is absent"),
        pytest.param(with_top_k([GOOD, BAD], 1), [[P], [N]], id="list, 1"),
        pytest.param(with_top_k([GOOD, BAD], None), [[P, N], [N, P]], id="list, null"),
        pytest.param(with_top_k([GOOD, BAD], 99), [[P, N], [N, P]], id="list, more"),
        pytest.param(with_top_k([GOOD, BAD], 0), [[], []], id="list, 0"),
        pytest.param(with_top_k([GOOD, BAD], -1), [[P], [N]], id="list, -1"),
        pytest.param(with_top_k([GOOD, BAD], -9), [[], []], id="list, -9"),
        pytest.param(with_top_k([GOOD], 1), [[P]], id="list of one, 1"),
        pytest.param(with_top_k([{"text": GOOD}], 1), [[P]], id="object"),
        pytest.param(with_top_k([{"text": "I", "text_pair": "love it"}], 1), [[P]], id="pair"),
        pytest.param(with_top_k([{"text": GOOD, "text_pair": None}], 1), [[P]], id="null pair"),
        pytest.param(
            with_top_k([GOOD, {"text": BAD, "text_pair": "really"}], 1), [[P], [N]], id="mixed"
        ),
        pytest.param({"inputs": []}, [], id="empty list"),
        pytest.param(with_top_k([], 1), [], id="empty list, 1"),
        pytest.param({"inputs": ""}, [[N, P]], id="empty text"),
        pytest.param(with_top_k(["", GOOD], 1), [[N], [P]], id="empty text in a list"),
        pytest.param(with_top_k(["I \x00 \U0001f60d it"], 1), [[P]], id="NUL and emoji"),
        pytest.param(
            {"inputs": [GOOD], "parameters": {"top_k": 1, "truncation": True, "max_length": 9}},
            [[P]],
            id="parameters of the tokenizer",
        ),
        pytest.param(
            {"inputs": [GOOD], "parameters": {"top_k": 1, "function_to_apply": None}},
            [[P]],
            id="function null",
        ),
        pytest.param({"inputs": GOOD, "options": {"use_cache": False}}, [[P, N]], id="unknown key"),
    ],
)
def test_answer_shape(sentiment, body, expected):
    assert labels(answer(sentiment, body)) == expected


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param({"inputs": {"text": GOOD}}, "object with the keys text", id="bare object"),
        pytest.param({"inputs": [["a"], ["b"]]}, "one is a list", id="nested lists"),
        pytest.param({"inputs": [["a", "b"]]}, "one is a list", id="nested pair"),
        pytest.param({"inputs": ["a", 1]}, "one is a number", id="number in a list"),
        pytest.param({"inputs": ["a", None]}, "one is null", id="null in a list"),
        pytest.param({"inputs": [{"text_pair": "b"}]}, "keys text_pair", id="pair without text"),
        pytest.param({"inputs": [{"text": 1}]}, "keys text", id="text is a number"),
        pytest.param({"inputs": [{"text": "a", "x": 1}]}, "keys text, x", id="unknown key in pair"),
        pytest.param({"inputs": [{}]}, "an empty object", id="empty object"),
        pytest.param({"inputs": None}, "not null", id="inputs null"),
        pytest.param({"inputs": 7}, "not a number", id="inputs a number"),
        pytest.param({"inputs": True}, "not a boolean", id="inputs a boolean"),
        pytest.param({}, "inputs key", id="inputs missing"),
        pytest.param({"parameters": {}}, "inputs key", id="only parameters"),
        pytest.param(["a"], "inputs key", id="not an object"),
        pytest.param({"inputs": "a", "parameters": None}, "not null", id="parameters null"),
        pytest.param({"inputs": "a", "parameters": [1]}, "not a list", id="parameters a list"),
        pytest.param(
            {"inputs": "a", "parameters": {"function_to_apply": "tanh"}},
            "softmax, sigmoid, none, not 'tanh'",
            id="unknown function",
        ),
        pytest.param(
            {"inputs": "a", "parameters": {"function_to_apply": 3}}, "not 3", id="function a number"
        ),
        pytest.param(b"", "not valid JSON", id="no body"),
        pytest.param(b"{", "not valid JSON", id="broken JSON"),
        pytest.param(b'{"inputs": "\xff"}', "not valid JSON", id="broken UTF-8"),
        pytest.param(rb'{"inputs": "\ud800"}', "not valid JSON", id="lone surrogate"),
        pytest.param(rb'{"inputs": ["a", "\udfff b"]}', "not valid JSON", id="surrogate in a list"),
    ],
)
def test_refused_request(body, says):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(BadRequestError, match=says):
        parse(raw)


def test_single_text_without_top_k_gets_five_labels_at_most(language):
    [ranking] = answer(language, {"inputs": "Bonjour tout le monde"})
    assert len(ranking) == 5
    assert ranking[0]["label"] == "fr"


@pytest.mark.parametrize(("top_k", "count"), [(None, 176), (-1, 175), (6, 6), (0, 0)])
def test_explicit_top_k_is_not_capped(language, top_k, count):
    [[*ranking]] = answer(language, with_top_k("Bonjour tout le monde", top_k))
    assert len(ranking) == count


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none", None])
@pytest.mark.parametrize("model_name", ["sentiment", "language"])
def test_labels_come_best_first_in_single_precision(request, model_name, function):
    """Scores fall, and each is a float32 printed as a double."""
    model = request.getfixturevalue(model_name)
    parameters = {"top_k": None, "function_to_apply": function}
    [ranking] = answer(model, {"inputs": ["Guten Morgen"], "parameters": parameters})
    scores = [each["score"] for each in ranking]
    assert scores == sorted(scores, reverse=True)
    assert {each["label"] for each in ranking} == set(model.labels)
    assert [struct.unpack("f", struct.pack("f", score))[0] for score in scores] == scores


@pytest.mark.parametrize(
    ("function", "positive"),
    [
        ("softmax", 0.81845),
        (None, 0.81845),
        ("sigmoid", 0.81845 / 1.81845),
        ("none", -0.2003429),
        ("SoftMax", 0.81845),
    ],
)
def test_function_to_apply(sentiment, function, positive):
    parameters = {"top_k": 1, "function_to_apply": function}
    [[best]] = answer(sentiment, {"inputs": [GOOD], "parameters": parameters})
    assert best == {"label": P, "score": pytest.approx(positive, rel=1e-6)}


def test_certain_logits_get_a_sigmoid_of_zero_and_one(sentiment, monkeypatch):
    """A logit from -745 down has a sigmoid too small for any number, which is no error."""
    monkeypatch.setattr(sentiment, "logits", lambda *_: [[-1e4, 1e4]])
    [ranking] = answer(sentiment, {"inputs": "", "parameters": {"function_to_apply": "sigmoid"}})
    assert [each["score"] for each in ranking] == [1.0, 0.0]


def test_parameters_of_the_tokenizer_are_those_that_are_nothing_else():
    tokenization = {"truncation": True, "max_length": 9, "stride": None}
    others = {"top_k": 1, "function_to_apply": "none", "batch_size": 8, "num_workers": 0}
    query = parse(json.dumps({"inputs": "a", "parameters": {**others, **tokenization}}).encode())
    assert query.tokenization == tokenization


def test_independent_labels_get_sigmoid_by_default(sentiment, monkeypatch):
    """Where labels do not exclude each other, softmax is not the default."""
    by_name = answer(sentiment, {"inputs": GOOD, "parameters": {"function_to_apply": "sigmoid"}})
    monkeypatch.setattr(sentiment, "function", Function.SIGMOID, raising=False)
    assert answer(sentiment, {"inputs": GOOD}) == by_name
