"""The client: one request to the endpoint, in the dialect that it speaks, and what came of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.client.client import Client, Reply
    from pipeline.client.dialects import dialect_of
    from pipeline.client.target import Target, stated_dialect
    from pipeline.client.token import find_token

__all__ = [
    "Client",
    "Reply",
    "Target",
    "dialect_of",
    "find_token",
    "stated_dialect",
]

_HOMES = {
    "Target": "target",
    "dialect_of": "dialects",
    "find_token": "token",
    "stated_dialect": "target",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: a worker has the wire alone, and should start fast.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'client')}"), name)
