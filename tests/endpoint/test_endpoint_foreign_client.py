"""A client that someone else wrote is content with the endpoint."""

from __future__ import annotations

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from pipeline.endpoint.process import EndpointProcess


@pytest.fixture(scope="module")
def endpoint():
    with EndpointProcess(("sentiment", "language"), arguments=("--poison", "venom")) as process:
        yield process


@pytest.fixture
def client(endpoint):
    with InferenceClient(model=endpoint.url, token="any") as client:
        yield client


def pairs(elements):
    return [(element.label, element.score) for element in elements]


def test_text_classification(client):
    assert pairs(client.text_classification("I love it")) == [
        ("positive", pytest.approx(0.81845)),
        ("negative", pytest.approx(0.18155)),
    ]


@pytest.mark.parametrize(("top_k", "count"), [(None, 5), (1, 1), (3, 3), (200, 176)])
def test_top_k(endpoint, client, top_k, count):
    elements = client.text_classification(
        "Bonjour tout le monde", model=f"{endpoint.url}/models/language", top_k=top_k
    )
    assert elements[0].label == "fr"
    assert len(elements) == count


@pytest.mark.parametrize(
    ("function", "score"),
    [("softmax", 0.81845), ("sigmoid", 0.81845 / 1.81845), ("none", -0.2003429)],
)
def test_function_to_apply(client, function, score):
    elements = client.text_classification("I love it", top_k=1, function_to_apply=function)
    assert pairs(elements) == [("positive", pytest.approx(score))]


def test_bad_request_carries_the_message(client):
    with pytest.raises(BadRequestError, match="size of tensor a"):
        client.text_classification("some venom")


def test_unknown_model_is_its_http_error(endpoint, client):
    with pytest.raises(HfHubHTTPError, match="404"):
        client.text_classification("I love it", model=f"{endpoint.url}/models/nope")
