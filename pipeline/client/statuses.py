"""What a status means: the one boundary where answers of servers become errors of ours.

Status and error type decide; a message decides only if the protocol leaves nothing else
(loading against overloaded on 503, a refused account or model behind a 400).
"""

from __future__ import annotations

import email.utils
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import orjson

from pipeline.client.answers import excerpt, read_object
from pipeline.errors import Cause, EndpointRefused, RequestError, Retryable, RowsRejected
from pipeline.wording import sentence, setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.client.wire import Headers


class Sign(NamedTuple):
    """An error that means something else than its status says: told by words of its message.

    It refuses what is at fault, for which `fix` is what to do, or has a cause that passes.
    """

    status: int
    words: str
    means: Literal["token", "address", "model"] | Cause
    fix: str = ""


# A 400 of the serverless API is otherwise about the rows, and TEI's 424 a failure of its backend.
_SIGNS = (
    Sign(400, "token seems invalid", "token", "Check the token in HF_TOKEN, then run again."),
    Sign(
        400,
        "not supported by provider|model .* is not supported",
        "model",
        "Check that the model is served here, then run again.",
    ),
    Sign(
        400,
        "invalid state",  # a dedicated endpoint that was paused
        "address",
        "Resume the endpoint if it is paused, then run again.",
    ),
    Sign(401, "", "token", "Check the token in HF_TOKEN, then run again."),
    Sign(402, "", "token", "Add credits, or wait for the next month, then run again."),
    Sign(
        403,
        "",
        "token",
        "Give the token permission for inference or for the model, then run again.",
    ),
    Sign(
        404,
        "",
        "model",
        "Check the model id, and that it is deployed at this endpoint, then run again.",
    ),
    Sign(
        410,
        "deprecated|by provider",
        "model",
        "Choose another model, or serve this one at an endpoint of your own, then run again.",
    ),
    Sign(410, "", "address", f"Set {setting('endpoint', 'hf')} instead, then run again."),
    Sign(
        424,
        "is not a classifier",
        "model",
        "Serve a model for text classification there, then run again.",
    ),
)
# How a 503 says that the model or its machine is on the way.
_LOADING = re.compile(r"loading|not ready|starting|initializing|scaling", re.IGNORECASE)
# Azure ML answers 424 for an error of the container, whose own status stands here.
_CONTAINER_STATUS = "ms-azureml-model-error-statuscode"
_CONTAINER_STATUSES = frozenset(map(str, range(400, 600)))
_REMAINING, _RESET = re.compile(r"\br=([0-9]+)"), re.compile(r"\bt=([0-9]+)")
# Nobody waits for so long, and no clock or message should meet a larger number.
LONGEST_HINT_S = 1e10


def error_of(
    status: int,
    headers: Headers | Mapping[str, str],
    body: bytes,
    signs: Iterable[Sign] = (),
    *,
    now: datetime | None = None,
) -> RequestError | EndpointRefused:
    """Return the error for an answer that is no success, with its fix.

    `signs` are those of the dialect, which go before those of all servers.
    """
    content = read_object(body)
    said = _message(content, body)
    message = f"{status} {said}"
    if status == 424 and (inner := headers.get(_CONTAINER_STATUS, "")) in _CONTAINER_STATUSES:
        status = int(inner)
    for refused, words, means, fix in (*signs, *_SIGNS):
        if status == refused and re.search(words, said, re.IGNORECASE):
            if isinstance(means, Cause):
                return Retryable(means, message, status=status, wait_s=_hint_s(headers, now))
            page = body.lstrip().startswith(b"<")
            return _refusal(status, message, fix, at_fault=means, is_page=page)
    match status:
        case 400 | 413 | 422:
            return RowsRejected(status, message)
        case 429:
            overloaded = content.get("error_type") == "Overloaded"
            cause = Cause.OVERLOADED if overloaded else Cause.THROTTLED
            return Retryable(cause, message, status=status, wait_s=_hint_s(headers, now))
        case 202 | 503:
            estimated = content.get("estimated_time")
            loading = status == 202 or estimated is not None or _LOADING.search(said) is not None
            wait_s = _hint_s(headers, now) if estimated is None else _seconds(estimated)
            cause = Cause.LOADING if loading else Cause.OVERLOADED
            return Retryable(cause, message, status=status, wait_s=wait_s)
        case _ if status >= 500 or status in (204, 408, 424, 425):
            cause = Cause.UNREADABLE if status == 204 else Cause.SERVER_ERROR
            return Retryable(cause, message, status=status)
        case _ if 300 <= status < 400:
            where = _host(headers.get("Location", ""))
            return EndpointRefused(
                f"The endpoint redirects ({status}) to {where}. Redirects are not followed, so "
                "that the token goes nowhere else.",
                f"Give the final address as {setting('endpoint')}.",
                status=status,
            )
        case _:
            return _refusal(status, message, f"Check its address and its {setting('dialect')}.")


def _refusal(status: int, message: str, fix: str, **facts: Any) -> EndpointRefused:
    what = f"The endpoint refuses: {sentence(message)}"
    return EndpointRefused(what, fix, status=status, **facts)


def _host(address: str) -> str:
    """Scheme, host and port of an address; the rest of it may repeat what was sent."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that is none"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else "another path of its own"


def _message(content: dict[str, Any], body: bytes) -> str:
    """Find the words of an error: `error` may be a text or a list, some servers say `detail`."""
    for key in ("error", "detail", "message"):
        said = content.get(key)
        if isinstance(said, list):
            said = "; ".join(map(_words, said))
        if said:
            return excerpt(_words(said).encode(), 300)
    return excerpt(body) or "(no message)"


def _words(said: Any) -> str:
    """Return a text as it is, and any other value as JSON; what is too deep for that is empty.

    Of an object that has its words under a usual name, these are all: the rest may repeat a text.
    """
    if isinstance(said, dict):
        told = (said.get(key) for key in ("message", "msg", "error", "detail"))
        said = next((words for words in told if isinstance(words, str)), said)
    if isinstance(said, str):
        return said
    try:
        return orjson.dumps(said).decode()
    except orjson.JSONEncodeError:
        return ""


def _hint_s(headers: Headers | Mapping[str, str], now: datetime | None) -> float | None:
    """Read how long to wait: Retry-After (seconds or a date), else a RateLimit that binds.

    Negative values and garbage are no hint.
    """
    after = headers.get("Retry-After", "")
    seconds = _seconds(after)
    if seconds is None:
        seconds = _until_s(after, now or datetime.now(UTC))
    return binding_hint_s(headers) if seconds is None else seconds


def _until_s(date_text: str, now: datetime) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(date_text)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        return _seconds(max((date - now).total_seconds(), 0.0))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def binding_hint_s(headers: Headers | Mapping[str, str]) -> float | None:
    """Read for how long nothing remains of the quota.

    RateLimit comes with every answer, and binds only where r is 0.
    """
    limit = headers.get("RateLimit", "")
    if not limit:
        return None
    remaining, reset = _REMAINING.search(limit), _RESET.search(limit)
    return _seconds(reset[1]) if remaining and reset and not remaining[1].strip("0") else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(seconds, LONGEST_HINT_S) if math.isfinite(seconds) and seconds >= 0 else None
