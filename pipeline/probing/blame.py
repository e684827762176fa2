"""Blame: which check an error that ended a probe belongs to, worded for whoever probes."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from pipeline.errors import (
    Cause,
    ClassifyError,
    EndpointRefused,
    Retryable,
    SettingsError,
    StoppedEarly,
    Unreachable,
)
from pipeline.pool.trust import not_the_api
from pipeline.probing.asking import EnoughError
from pipeline.wording import counted, sentence, setting

if TYPE_CHECKING:
    from pipeline.probing.asking import Findings

_NO_TOKEN = "No token was found: put one into HF_TOKEN or a token_file, or run `hf auth login`."  # noqa: S105
_DOWN = f"Look at the server, or try later: a run waits for {setting('max_outage_s')}."
_FIXES = {
    Cause.TIMEOUT: (
        f"Raise {setting('timeout_s')}, lower {setting('batch_size')}, or find out why the server "
        "takes so long."
    ),
    Cause.LOADING: f"Probe again later, or wait longer with {setting('max_loading_s')}.",
    Cause.THROTTLED: (
        f"Try later, and set {setting('rate')} to what the account or the server allows."
    ),
}
_FIXES_UNREACHABLE = {
    Unreachable.UNKNOWN_HOST: "Check how the host is spelled, and the network.",
    Unreachable.REFUSED: "Nothing listens there: check the port, and start the server.",
}


def blame(found: Findings) -> tuple[str, ClassifyError] | None:
    """Return the check that failed, with the error that a run would end with.

    None where a run would go on.
    """
    reason = found.ended
    last = found.asked[-1].failure if found.asked else None
    failure = last if isinstance(last, Retryable) else None
    used_up = isinstance(reason, EnoughError) and reason.failure is None
    mixed = len(found.revisions) > 1 and not found.config.allow_drift
    match reason:
        case SettingsError():
            sent = any(asked.texts for asked in found.asked)
            return "parameters", reason.after_sending() if sent else reason
        case StoppedEarly() if mixed and not used_up:
            return "revision", StoppedEarly(
                f"Two answers tell different revisions: {', '.join(found.revisions)}.",
                "Wait until only one model is served there, or accept a mixture with "
                f"{setting('allow_drift', 'True')}.",
            )
        case None:
            return _rejected(found)
        case StoppedEarly() if found.answered and (used_up or failure is None):
            return _rejected(found)  # the requests are used up: the probe's, or max_requests
        case _ if failure is not None and failure.cause is Cause.UNREADABLE:
            return "dialect", not_the_api(failure)
        case EndpointRefused():
            if reason.status == 401 and not found.token.value:  # noqa: PLR2004
                reason = copy(reason)
                reason.fix = _NO_TOKEN
            return reason.at_fault, reason
        case _ if failure is not None:
            return _given_up(found, reason, failure)
        case _:
            # It stopped for a setting such as max_requests, or the page of a server was loading.
            return ("model" if found.waited_s is not None else "address"), reason


def _rejected(found: Findings) -> tuple[str, ClassifyError] | None:
    """Blame the texts if each of them was rejected."""
    failed = found.rejected
    if not failed or len(failed) < len(found.outcomes):
        return None
    return "texts", EndpointRefused(
        f"{counted(len(failed), 'text was', 'texts were')} rejected, the last with: "
        f"{sentence(failed[-1].message)}",
        "Check model, text_pair, truncate, function_to_apply and dialect.",
    )


def _given_up(
    found: Findings, reason: ClassifyError, failure: Retryable
) -> tuple[str, ClassifyError]:
    """Blame what a run would have tried again for, until it gave up."""
    fix = fix_of_failure(failure)
    if found.target.proxy is not None and failure.cause is Cause.CONNECTION:
        fix = "Check the proxy and the host, or name the host in NO_PROXY."
    if failure.cause is Cause.LOADING:
        return "model", StoppedEarly(reason.what, fix)
    pause = "" if failure.wait_s is None else f", and asks for a pause of {failure.wait_s:g} s"
    tried = sum(asked.trouble is not None for asked in found.asked)
    times = f" ({tried} attempts)" if tried > 1 else ""
    what = f"{failure.what.rstrip('. ')}{pause}{times}."
    return ("latency" if failure.cause is Cause.TIMEOUT else "address"), StoppedEarly(what, fix)


def fix_of_failure(failure: Retryable) -> str:
    """Say what to do about a failure that a run would wait out."""
    if failure.unreachable is not None:
        return _FIXES_UNREACHABLE[failure.unreachable]
    return _FIXES.get(failure.cause, _DOWN)
