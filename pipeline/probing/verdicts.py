"""Verdicts: what the findings of a probe mean, check by check, and how to fix what is wrong."""

from __future__ import annotations

import re
from copy import copy
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pipeline.addresses import public
from pipeline.errors import EXIT_COMPLETE, Cause, ClassifyError
from pipeline.events import NoBatches, Notice, OldHost, OneTextARequest, SmallerBatches
from pipeline.meanings import Seconds
from pipeline.observers.words import fix_of, what_of
from pipeline.outcomes import RowError
from pipeline.probing.asking import EnoughError
from pipeline.probing.blame import blame, fix_of_failure
from pipeline.probing.estimates import Estimate, estimated, texts_per_request
from pipeline.probing.measuring import most_in_flight, most_texts
from pipeline.wording import counted, sentence, setting, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pipeline.probing.asking import Findings

# A request that takes more of `timeout_s` than this is likely to exceed it under load.
NEAR_TIMEOUT = 0.5
# So many labels are named.
MOST_LABELS = 10
_UNNAMED = re.compile(r"LABEL_\d+")


class Verdict(StrEnum):
    """How a check went; `skipped` where nothing was seen of it."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Check:
    """One check: its verdict, what was seen, and what to do where it is not ok."""

    name: str
    verdict: Verdict
    seen: str
    mend: str | None = None


@dataclass(frozen=True)
class Probe:
    """What a probe came to. `failure` is the error that a run would end with, if any."""

    state: Annotated[str, "worst verdict: `ok`, `warning` or `failed`"]
    exit_code: Annotated[int, "exit code of the command"]
    checks: Annotated[
        tuple[Check, ...],
        "each with `name`, `verdict`, `seen` and `mend` (the fix, or null)",
    ]
    url: Annotated[str, "address asked"]
    model: Annotated[str | None, "model asked for"]
    dialect: Annotated[str | None, "dialect of the server"]
    requests: Annotated[int, "requests sent"]
    most_requests: Annotated[int, "most that may be sent, not counting a loading model"]
    loading_requests: Annotated[int, "requests to a loading model"]
    texts: Annotated[int, "texts sent"]
    texts_per_request: Annotated[int, "texts a request when a run begins"]
    most_texts_per_request: Annotated[int, "the most that `auto` may reach"]
    in_flight: Annotated[int, "most requests in flight of a run"]
    canaries: Annotated[int, "requests that only detect the dialect"]
    latency_s: Annotated[Seconds | None, "median of the largest requests, one at a time"]
    texts_measured: Annotated[int, "texts in such a request"]
    estimate: Annotated[Estimate | None, "expected throughput of a run"]
    throttled: Annotated[bool, "the endpoint answered 429"]
    labels: Annotated[tuple[str, ...], "labels seen"]
    model_revision: Annotated[str | None, "revision (`x-sha`)"]
    failure: ClassifyError | None = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: value for key, value in asdict(self).items() if key != "failure"}


def judge(found: Findings) -> Probe:
    """Say what the findings mean."""
    blamed, failure = blame(found) or (None, None)
    checks = []
    for name, check in _CHECKS.items():
        if failure is not None and name == blamed:
            verdict, seen, fix = Verdict.FAILED, failure.what, failure.fix
        elif not found.answered and name in _OF_ANSWERS:
            verdict, seen, fix = _skipped()
        else:
            verdict, seen, fix = check(found)
        checks.append(Check(name, verdict, shown(seen), shown(fix) or None))
    if failure is not None:
        failure = copy(failure)
        failure.what = f"{blamed}: {failure.what}"
    verdicts = [check.verdict for check in checks]
    estimate = estimated(found)
    asked = found.asked
    return Probe(
        state=next((v.value for v in (Verdict.FAILED, Verdict.WARNING) if v in verdicts), "ok"),
        exit_code=EXIT_COMPLETE if failure is None else failure.exit_code,
        checks=tuple(checks),
        url=public(found.target.url),
        model=found.config.model_id,
        dialect=found.dialect.name if found.answered else None,
        requests=len(asked),
        most_requests=found.most_requests,
        loading_requests=sum(each.while_loading and not each.good for each in asked),
        texts=sum(each.texts for each in asked),
        texts_per_request=texts_per_request(found),
        most_texts_per_request=most_texts(found),
        in_flight=most_in_flight(found, texts_per_request(found)),
        canaries=_canaries(found),
        latency_s=estimate.latency_s if estimate else None,
        texts_measured=estimate.texts_alone if estimate else 0,
        estimate=estimate,
        throttled=any(each.status == 429 for each in asked),  # noqa: PLR2004
        labels=tuple(_labels(found)),
        model_revision=found.revisions[-1] if found.revisions else None,
        failure=failure,
    )


_Seen = tuple[Verdict, str, str]


def _skipped(why: str = "nothing was answered") -> _Seen:
    return Verdict.SKIPPED, f"Not seen: {why}.", ""


def _ok(seen: str) -> _Seen:
    return Verdict.OK, seen, ""


def _warning(seen: str, fix: str) -> _Seen:
    return Verdict.WARNING, seen, fix


def _told(told: Notice) -> _Seen:
    return Verdict.WARNING, what_of(told), fix_of(told)


def _token(found: Findings) -> _Seen:
    token, target = found.token, found.target
    if found.config.endpoint == "local":
        return _ok("None is needed: the embedded endpoint runs on this machine.")
    if token.value is None:
        if found.answered:
            return _ok("None was found, and the endpoint asks for none.")
        return _skipped("none was found, and whether one is needed is not known")
    if target.token is None and target.notice is not None:
        return _told(target.notice)
    if token.warning is not None:
        return _told(token.warning)
    return _ok(f"Found in {token.where}{', and accepted' if found.answered else ''}.")


def _address(found: Findings) -> _Seen:
    if all(asked.status is None for asked in found.asked):
        return _skipped()
    parts = urlsplit(found.target.url)
    where = f"{parts.netloc} answers{' over TLS' if parts.scheme == 'https' else ''}"
    if found.target.proxy is not None:
        where += f", by the proxy {found.target.proxy}"
    if isinstance(found.target.notice, OldHost):
        return _told(found.target.notice)
    explained = {Cause.LOADING}
    if found.dialect.name == "single":  # that is why it is
        explained.add(Cause.UNREADABLE)
    troubles = [asked.trouble for asked in found.asked]
    failed = [each for each in troubles if each is not None and each.cause not in explained]
    if found.answered and failed:
        last = failed[-1]
        seen = (
            f"{where}, but {len(failed)} of {counted(len(troubles), 'request')} failed: {last.what}"
        )
        return _warning(sentence(seen), f"A run tries again. {fix_of_failure(last)}")
    return _ok(f"{where}.")


def _model(found: Findings) -> _Seen:
    waited = "" if found.waited_s is None else f", after loading for {found.waited_s:.0f} s"
    return _ok(f"{found.config.model_id or 'The model there'} classifies texts{waited}.")


def _dialect(found: Findings) -> _Seen:
    name = found.dialect.name
    if found.config.dialect != "auto":
        return _ok(f"{name}, as the setting says; its answers are what was asked for.")
    if found.config.endpoint == "local":
        return _ok(f"{name}, as the embedded endpoint speaks.")
    if _given(found):
        return _ok(f"{name}, as its address tells.")
    told_by = found.dialect.told_by
    return _ok(f"{name}, {'found out by asking' if told_by is None else f'as {told_by} tells'}.")


def _batching(found: Findings) -> _Seen:
    most, wanted = found.dialect.most_texts, found.config.texts_per_request
    largest = max(asked.texts for asked in found.answered)
    if found.dialect.name == "single":
        if found.config.dialect == "single":
            return _ok("One text a request, as the dialect says.")
        told = found.told(OneTextARequest) or OneTextARequest(NoBatches.TAKES_NO_LIST)
        said = f" ({told.said})" if told.said else ""
        return _warning(
            f"Not honoured: {told.why}{said}.",
            f"A run sends one text a request, {wanted} times as many requests. A server that takes "
            "lists (Text Embeddings Inference, the inference toolkit) is faster.",
        )
    if (refused := found.told(SmallerBatches)) is not None:
        return _warning(what_of(refused), f"Set {setting('batch_size', str(largest))}.")
    if most is not None and found.config.batch_size != "auto" and most < wanted:
        return _warning(
            f"Honoured, with {counted(most, 'text')} in one request at most, as the server tells.",
            f"A run sends {most} instead of {wanted}. Set {setting('batch_size', str(most))}.",
        )
    if largest == 1:
        return _skipped("there was one text to send")
    limit = "" if most is None else f"; the server takes {most} at most"
    trusted = " (the dialect is given, so no text is compared)" if _given(found) else ""
    return _ok(f"Honoured: {largest} texts in one request were answered{trusted}{limit}.")


def _given(found: Findings) -> bool:
    return found.target.dialect != "auto"


def _texts(found: Findings) -> _Seen:
    # Where the number of texts was at fault, that is told as such.
    explained = found.rejected or found.told(SmallerBatches) or found.told(OneTextARequest)
    if isinstance(found.ended, EnoughError) and not explained and (refused := found.refused):
        last = refused[-1]
        return _warning(
            f"{counted(last.texts, 'text')} in one request were refused, and the requests of a "
            f"probe are used up: {sentence(str(last.failure))}",
            "A run splits such a request, until the text at fault stands alone with its error.",
        )
    if not found.outcomes:
        return _skipped()
    count = len(found.outcomes)
    if failed := found.rejected:
        return _warning(
            f"{len(failed)} of {count} get no label: {sentence(failed[-1].message)}",
            f"Texts that are too long are labelled with {setting('truncate', 'True')}; others stay "
            "rows with an error.",
        )
    if found.from_input:
        return _ok(f"{count} from the first rows of the input are labelled.")
    return _ok(f"{count} plain ones are labelled; with INPUT, its own are tried.")


def _labels(found: Findings) -> list[str]:
    return sorted({label for answer in found.answers for label, _ in answer})


def _named_labels(found: Findings) -> _Seen:
    labels = _labels(found)
    if not labels:
        return _skipped()
    rest = f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
    words = ", ".join(labels[:MOST_LABELS]) + rest
    if all(_UNNAMED.fullmatch(label) for label in labels):
        return _warning(
            f"{words}: the model's config gives its labels no names.",
            "Name them as id2label in config.json where the model is served, or translate the "
            "column afterwards: what LABEL_0 means is in the model's card.",
        )
    return _ok(f"{words}.")


def _revision(found: Findings) -> _Seen:
    if not found.revisions:
        return _warning(
            "The server reports none (no x-sha header): a run would not notice another model.",
            "Do not deploy another model while a run goes on.",
        )
    drift = setting("allow_drift")
    changed = f" (it changed, as {drift} allows)" if len(found.revisions) > 1 else ""
    return _ok(f"{found.revisions[-1]}{changed}. A run stops where that changes.")


def _parameters(found: Findings) -> _Seen:
    config = found.config
    if wrong := " ".join(_not_honoured(found)):
        return _warning(wrong, "Leave it out, or serve the model by another server.")
    # Of each one that could be ignored: is it set, and was it tried?
    settings = {
        "top_k": (config.wants_predictions, True),
        "function_to_apply": (config.function_to_apply, found.function_ignored is not None),
        "truncate": (config.truncate, found.long_text is not None),
    }
    names = [name for name, (is_set, _) in settings.items() if is_set]
    if untried := [name for name in names if not settings[name][1]]:
        return _skipped(f"{', '.join(untried)} could not be tried")
    return _ok(f"{', '.join(names)}: honoured." if names else "None is set that could be ignored.")


def _not_honoured(found: Findings) -> Iterator[str]:
    if found.config.wants_predictions and max(map(len, found.answers), default=0) == 1:
        yield f"top_k {found.config.top_k} gives one label a text."
    if found.function_ignored:
        function = found.config.function_to_apply
        yield f"function_to_apply {function} gives the same scores as another one."
    if isinstance(found.long_text, RowError):
        yield f"truncate does not keep a long text from being refused: {found.long_text.message}."


def _latency(found: Findings) -> _Seen:
    estimate = estimated(found)
    if estimate is None:
        return _skipped("all answers came while it loaded")
    latency_s = estimate.latency_s
    took = f"{latency_s:.1f} s" if latency_s >= 1 else f"{latency_s * 1000:.0f} ms"
    seen = f"{took} for a request of {counted(estimate.texts_alone, 'text')}. {estimate.words}."
    if latency_s > NEAR_TIMEOUT * found.config.timeout_s:
        return _warning(
            seen,
            f"That is near the {found.config.timeout_s:g} s of {setting('timeout_s')}: raise "
            f"that, or lower {setting('batch_size')}.",
        )
    return _ok(seen)


def _canaries(found: Findings) -> int:
    """How many requests a run with this dialect needs, beside those that label its texts."""
    if _given(found) or found.dialect.told_by is not None:
        return 0
    return found.before_single if found.dialect.name == "single" else 1


_CHECKS: dict[str, Callable[[Findings], _Seen]] = {
    "token": _token,
    "address": _address,
    "model": _model,
    "dialect": _dialect,
    "batching": _batching,
    "texts": _texts,
    "labels": _named_labels,
    "revision": _revision,
    "parameters": _parameters,
    "latency": _latency,
}
# Not seen until something is answered.
_OF_ANSWERS = {"model", "dialect", "batching", "revision", "parameters", "latency"}
