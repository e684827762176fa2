"""Frames: what a run and its workers say to each other, as bytes.

A frame is a head, which is a JSON object, and a body. Both lengths come first. `kind` is one of

- to a worker: `line` (an address and its headers), `exchange`, `cancel`, `echo`;
- to the run: `ready`, `beat`, `answer` (of the endpoint), `error`, `failed` (for good).
"""

from __future__ import annotations

import json
from struct import Struct
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import (
    Cause,
    ClassifyError,
    EndpointRefused,
    Retryable,
    SettingsError,
    Unreachable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_LENGTHS = Struct(">II")
_KINDS = {each.__name__: each for each in (Retryable, EndpointRefused, SettingsError)}


def frame(head: dict[str, Any], body: bytes = b"") -> list[bytes]:
    """Return a frame in pieces, so that a large body is not copied."""
    try:
        packed = orjson.dumps(head)
    except orjson.JSONEncodeError:  # half a character, in the words of a server
        packed = json.dumps(head).encode()
    start = _LENGTHS.pack(len(packed), len(body)) + packed
    return [start, body] if body else [start]


class Frames:
    """Puts frames together from the pieces that come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def of(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """Yield the frames that `data` completes: head and body."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _LENGTHS.size:
            head_bytes, body_bytes = _LENGTHS.unpack_from(self._buffer, start)
            between = start + _LENGTHS.size + head_bytes
            end = between + body_bytes
            if len(self._buffer) < end:
                break
            yield (
                _read(self._buffer[start + _LENGTHS.size : between]),
                bytes(self._buffer[between:end]),
            )
            start = end
        del self._buffer[:start]


def _read(head: bytearray) -> dict[str, Any]:
    try:
        return orjson.loads(head)  # type: ignore[no-any-return]
    except orjson.JSONDecodeError:
        return json.loads(head)  # type: ignore[no-any-return]


def told(error: ClassifyError) -> dict[str, Any]:
    """Return what a head says of an error; `error_in` makes it again."""
    return {"error": type(error).__name__, "fields": error.__dict__}


def error_in(head: dict[str, Any]) -> ClassifyError:
    """Return the error that a head tells, of its class and with its fields."""
    kind, fields = _KINDS[head["error"]], head["fields"]
    error = kind.__new__(kind)
    if kind is Retryable:
        fields["cause"] = Cause(fields["cause"])
        if fields["unreachable"] is not None:
            fields["unreachable"] = Unreachable(fields["unreachable"])
    error.__dict__.update(fields)
    return error
