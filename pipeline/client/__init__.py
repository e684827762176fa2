"""The client: one request to the endpoint, in the dialect that it speaks, and what came of it."""

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
