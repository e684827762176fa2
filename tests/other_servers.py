"""Servers of other makers as scripts: their pages, answers and errors, and the dialect of each.

What a server sends was seen on a running one, or read in its source (docs/protocol.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.errors import Cause
from tests.labels import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable

BAD = "a text that is too long"
NOT_FOUND = {"detail": "Not Found"}


def fastapi(*routes):
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI"},
        "paths": {each: {} for each in routes},
    }


def openai_error(status, message, kind="BadRequestError", param=None):
    error = {"message": message, "type": kind, "param": param, "code": status}
    return status, {"error": error}


def sglang_error(status, message):
    return status, {"object": "error", "message": message, "type": "BadRequest", "param": None,
                    "code": status}  # fmt: skip


def mlflow_error(status, code, message):
    return status, {"error_code": code, "message": message, "stack_trace": f"Traceback: {BAD}"}


def classified(kit, items, **more):
    """One best label with the scores of all, as vLLM and SGLang answer."""
    data = []
    for index, item in enumerate(items):
        found = {each["label"]: each["score"] for each in kit.labels_of(item)}
        best = kit.labels_of(item)[0]["label"]
        probs = [found[label] for label in LABELS]
        data.append({"index": index, "label": best, "probs": probs, "num_classes": len(probs)})
    return {"id": "classify-1", "object": "list", "model": "m", "data": data, "usage": {}, **more}


@dataclass
class Server:
    """`pages` it has for GET, where it takes texts (`route`), how it answers them, and its errors.

    `bad_row` is what it answers a request with `BAD` in it. `refusals` are answers to everything
    that end a run with 4, `passing` are those that pass.
    """

    route: str
    pages: dict[str, Any]
    answer: Callable[[Any, Any], Any]
    bad_row: tuple[int, Any] | None = None
    refusals: dict[str, tuple[int, Any]] = field(default_factory=dict)
    passing: dict[str, tuple[int, Any, Cause]] = field(default_factory=dict)

    def page(self, kit):
        def get(path):
            if path in self.pages:
                return kit.Said(200, self.pages[path])
            return kit.Said(404, NOT_FOUND)

        return get

    def script(self, kit, said=None, until=math.inf):
        """Answer as it does; with `said`, answer that to everything until a time."""

        def script(asked):
            if asked.path != self.route:
                return kit.Said(404, NOT_FOUND)
            if said is not None and asked.at < 1000 + until:
                return kit.Said(*said[:2])
            if BAD in asked.items and self.bad_row is not None:
                return kit.Said(*self.bad_row)
            return kit.Said(200, self.answer(kit, asked))

        return script


def _all_labels(key, **more):
    return lambda kit, asked: {key: [kit.labels_of(item) for item in asked.items], **more}


def _sglang_answer(kit, asked):
    answer = classified(kit, asked.items)
    for item, entry in zip(asked.items, answer["data"], strict=True):
        if item == BAD:  # what it says where scoring failed
            entry.update(label="Default", probs=[1.0], num_classes=1)
    return answer


VLLM_MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]}
SGLANG_MODELS = {"object": "list", "data": [{"id": "m", "owned_by": "sglang"}]}
INFINITY_MODELS = {
    "object": "list",
    "data": [{"id": "m", "owned_by": "infinity", "capabilities": ["classify"], "backend": "torch"}],
}
NO_CLASSIFIER = "The model does not support Classification API"
TOO_LONG = "The size of tensor a (502) must match the size of tensor b (64)"
SERVERS = {
    "vllm": Server(
        "/classify",
        {
            "/openapi.json": fastapi("/health", "/v1/models", "/classify", "/pooling"),
            "/v1/models": VLLM_MODELS,
        },
        lambda kit, asked: classified(kit, asked.items),
        openai_error(
            400,
            "This model's maximum context length is 64 tokens. However, your request has 502 input "
            "tokens. Please reduce the length of the input messages.",
            param="input_tokens",
        ),
        {
            "unknown model": openai_error(
                404, "The model `x` does not exist.", "NotFoundError", "model"
            ),
            "no classifier": openai_error(400, NO_CLASSIFIER),
            "no classifier, 501": openai_error(501, NO_CLASSIFIER, "NotImplementedError"),
            "validation": openai_error(400, "[{'type': 'missing', 'loc': ('body', 'input')}]"),
            "key": (401, {"error": "Unauthorized"}),
        },
        {
            "starting": (503, "", Cause.OVERLOADED),
            "failed": (*openai_error(500, "boom", "InternalServerError"), Cause.SERVER_ERROR),
        },
    ),
    "sglang": Server(
        "/v1/classify",
        {
            "/openapi.json": fastapi("/v1/models", "/classify", "/v1/classify"),
            "/v1/models": SGLANG_MODELS,
        },
        _sglang_answer,
        None,
        {"empty": sglang_error(400, "Input at index 0 cannot be empty or whitespace only")},
        {"busy": (*sglang_error(503, "The request queue is full."), Cause.OVERLOADED)},
    ),
    "mlflow": Server(
        "/invocations",
        {
            "/openapi.json": fastapi("/ping", "/health", "/version", "/invocations"),
            "/version": "3.17.2",
            "/ping": "\n",
        },
        lambda kit, asked: {"predictions": [kit.labels_of(item)[0] for item in asked.items]},
        mlflow_error(400, "BAD_REQUEST", "Encountered an unexpected error while evaluating"),
        {
            "schema": mlflow_error(400, "INVALID_PARAMETER_VALUE", "Failed to enforce schema"),
            "permission": mlflow_error(403, "PERMISSION_DENIED", "no CAN QUERY"),
            "unknown": mlflow_error(404, "RESOURCE_DOES_NOT_EXIST", "no such endpoint"),
        },
        {
            "too fast": (
                *mlflow_error(429, "REQUEST_LIMIT_EXCEEDED", "exceeded"),
                Cause.THROTTLED,
            ),
            "scaling": (
                *mlflow_error(503, "TEMPORARILY_UNAVAILABLE", "scaling up"),
                Cause.LOADING,
            ),
        },
    ),
    "vertex": Server(
        "/v1/endpoints/1:predict",
        {},
        lambda kit, asked: {
            "predictions": [
                kit.labels_of(item)[: asked.body["parameters"]["top_k"]] for item in asked.items
            ],
            "deployedModelId": "1",
        },
        (400, {"error": TOO_LONG}),
        {
            "argument": (400, {"error": {"code": 400, "message": "x", "status": "INVALID"}}),
            "token": (401, {"error": {"code": 401, "message": "x", "status": "UNAUTHENTICATED"}}),
            "permission": (403, {"error": {"code": 403, "message": "Permission denied"}}),
            "unknown": (404, {"error": {"code": 404, "message": "Endpoint not found"}}),
        },
        {
            "quota": (
                429,
                {"error": {"code": 429, "message": "Quota exceeded"}},
                Cause.THROTTLED,
            )
        },
    ),
    "infinity": Server(
        "/classify",
        {
            "/openapi.json": fastapi("/health", "/models", "/embeddings", "/rerank", "/classify"),
            "/models": INFINITY_MODELS,
        },
        _all_labels("data", object="classify", model="m", usage={}),
        (
            422,
            {
                "detail": [
                    {"type": "string_too_long", "loc": ["body", "input", 1],
                     "msg": "String should have at most 122880 characters", "input": BAD}
                ]
            },
        ),
        {
            "rerank only": openai_error(
                400, "ModelNotDeployedError: model=`m` does not support `classify`.", None
            ),
            "key": (401, {"detail": "Unauthorized"}),
            "validation": (422, {"detail": [{"type": "list_type", "msg": "no list"}]}),
        },
        {
            "overloaded": (
                *openai_error(429, "model m is currently overloaded", None),
                Cause.OVERLOADED,
            )
        },
    ),
}  # fmt: skip
# Known by its host, not by a page: it is stated here.
ASKED = [name for name in SERVERS if name != "vertex"]


def given(name):
    """The address of a scripted server that its dialect gets, after that of the machine."""
    return SERVERS[name].route if name == "vertex" else ""
