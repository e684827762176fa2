"""Blame: which check an error that ended a probe belongs to, and its words for whoever probes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.errors import (
    Cause,
    ClassifyError,
    EndpointRefused,
    Retryable,
    SettingsError,
    StoppedEarly,
)
from pipeline.outcomes import RowError
from pipeline.probing.asking import EnoughError

if TYPE_CHECKING:
    from pipeline.probing.asking import Findings

_MEND_CONNECTION = (
    (r"DNSError|Name or service|nodename", "Check how the host is spelled, and the network."),
    (r"refused|Connect call failed", "Nothing listens there: check the port, start the server."),
)
_MEND_DOWN = (
    "Look at the server, or try later: a run waits for max_outage_s, then it can be resumed."
)
# What an error says to who runs it again.
_AGAIN = re.compile(r"(; the run resumes then| Run the same command again[^.]*)\.$")


def blame(found: Findings) -> tuple[str | None, ClassifyError]:
    """Name the check that failed, and the error of the tree that a run would end with."""
    reason = found.ended
    last = found.attempts[-1] if found.attempts else None
    failure = last.failure if last and isinstance(last.failure, Retryable) else None
    if isinstance(reason, StoppedEarly) and not getattr(reason, "failure", None):
        if found.answered and failure is None and len(found.revisions) < 2:  # noqa: PLR2004
            reason = None  # the requests are used up: those of a probe, or of max_requests
        elif isinstance(reason, EnoughError) and found.answered:
            reason = None
        elif failure is not None and failure.cause is Cause.UNREADABLE:
            reason = EndpointRefused(
                f"This does not speak the Hugging Face Inference API: {failure}. Check the address "
                "and the dialect.",
                status=failure.status,
            )
        elif isinstance(reason, EnoughError) and failure is not None:
            reason = EnoughError(failure)
    if reason is None:
        if found.outcomes and all(isinstance(each, RowError) for each in found.outcomes):
            return "texts", EndpointRefused(
                f"Each of {len(found.outcomes)} was rejected, the last one with: "
                f"{sentence(str(found.outcomes[-1][0]))} Check model, text_pair, truncate, "
                "function_to_apply and dialect."
            )
        return None, ClassifyError()
    if isinstance(reason, SettingsError):
        return "parameters", reason
    if isinstance(reason, EndpointRefused):
        return _blame_refusal(reason, by_page=last is not None and last.status is not None), reason
    if len(found.revisions) > 1:
        return "revision", reason
    if failure is None:
        # It stopped for a setting such as max_requests, or the page of a server was loading.
        return ("model" if found.waited_s is not None else "address"), reason
    blamed = {Cause.LOADING: "model", Cause.TIMEOUT: "latency", Cause.UNREADABLE: "dialect"}
    return blamed.get(failure.cause, "address"), reason


def _blame_refusal(refusal: EndpointRefused, *, by_page: bool) -> str:
    match refusal.status:
        case 400:
            return "token" if "token" in str(refusal).lower().partition(". ")[0] else "model"
        case 401 | 402 | 403:
            return "token"
        case 404 | 424:
            return "model"
        case 200:
            return "dialect"
        case None if by_page:
            return "model"
        case _:
            return "address"


def worded(found: Findings, reason: ClassifyError) -> tuple[str, str]:
    """Split what an error says into what was seen and what to do."""
    if len(found.revisions) > 1 and isinstance(reason, StoppedEarly):
        return f"Two answers tell different ones: {', '.join(found.revisions)}.", (
            "Wait until one alone is served there, or accept a mixture with --allow-drift."
        )
    failure = found.attempts[-1].failure if found.attempts else None
    if isinstance(reason, StoppedEarly) and isinstance(failure, Retryable):
        if failure.cause is Cause.LOADING:
            return sentence(_AGAIN.sub("", str(reason))), mend_of(failure)
        pause = "" if failure.wait_s is None else f", and asks for a pause of {failure.wait_s:g} s"
        tried = sum(attempt.trouble is not None for attempt in found.attempts)
        times = f" ({tried} attempts)" if tried > 1 else ""
        return sentence(f"{str(failure).rstrip('.')}{pause}{times}"), mend_of(failure)
    seen, mend = split(str(reason))
    if getattr(reason, "status", None) == 401 and not found.token.value:  # noqa: PLR2004
        mend = "No token was found: put one into HF_TOKEN or a token_file, or run `hf auth login`."
    return seen, mend


def mend_of(failure: Retryable) -> str:
    """Say what to do about a failure that a run would try to outwait."""
    match failure.cause:
        case Cause.TIMEOUT:
            return "Raise --timeout-s, lower --batch-size, or look at why the server takes so long."
        case Cause.LOADING:
            return "Probe again later, or wait longer with --max-loading-s."
        case Cause.THROTTLED:
            return "Try later, and set --rate to what the account or the server allows."
        case Cause.CONNECTION:
            said = str(failure)
            return next((m for p, m in _MEND_CONNECTION if re.search(p, said)), _MEND_DOWN)
        case _:
            return _MEND_DOWN


def split(message: str) -> tuple[str, str]:
    """Give what was seen and what to do, which is the last sentence of an error."""
    seen, _, mend = _AGAIN.sub("", message).strip().rstrip(".").rpartition(". ")
    if not seen:
        return sentence(mend), "Look at the server, and probe again."
    return sentence(seen), sentence(mend)


def sentence(words: str) -> str:
    """End words with one full stop."""
    return words.rstrip(". ") + "."
