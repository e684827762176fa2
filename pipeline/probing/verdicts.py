"""Verdicts: what the findings of a probe mean, check by check, and how to mend what is wrong."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from pipeline.errors import (
    EXIT_COMPLETE,
    Cause,
    ClassifyError,
    EndpointRefused,
    SettingsError,
    StoppedEarly,
)
from pipeline.outcomes import RowError
from pipeline.probing.blame import blame, mend_of, sentence, split, worded

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


class Check(NamedTuple):
    """One check: its verdict, what was seen, and what to do where it is not ok."""

    name: str
    verdict: Verdict
    seen: str
    mend: str | None = None


@dataclass(frozen=True)
class Probe:
    """What a probe came to.

    `exit_code` is what a run would end with as things are: 0 with warnings too. `requests` were
    sent, `loading_requests` of them to a model that was loading, with `texts` in all. `latency_s`
    is the median of those with the most texts, `texts_measured`; `texts_per_second` is an estimate
    for the concurrency and rate that are set, None where nothing was measured. `texts_per_request`
    is how many texts a run would send at once, and `in_flight` how many requests. `canaries` are
    those that a run needs to find out the dialect. `throttled` tells of a 429.
    """

    exit_code: int
    checks: tuple[Check, ...]
    url: str
    model: str | None
    dialect: str | None
    requests: int
    loading_requests: int
    texts: int
    texts_per_request: int
    in_flight: int
    canaries: int
    latency_s: float | None
    texts_measured: int
    texts_per_second: float | None
    throttled: bool
    labels: tuple[str, ...]
    model_revision: str | None

    @property
    def state(self) -> str:
        """`failed`, `warning` or `ok`: the worst of the verdicts."""
        verdicts = [check.verdict for check in self.checks]
        return next((v.value for v in (Verdict.FAILED, Verdict.WARNING) if v in verdicts), "ok")

    @property
    def failure(self) -> ClassifyError | None:
        """The error that a run would end with; None where it would go on."""
        if self.exit_code == EXIT_COMPLETE:
            return None
        failed = next(check for check in self.checks if check.verdict is Verdict.FAILED)
        message = f"{failed.name}: {failed.seen} {failed.mend}"
        kinds: dict[int, type[ClassifyError]] = {2: SettingsError, 4: EndpointRefused}
        return kinds.get(self.exit_code, StoppedEarly)(message)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        checks = [check._asdict() for check in self.checks]
        return {"state": self.state, **asdict(self), "checks": checks}


def judge(found: Findings) -> Probe:
    """Say what the findings mean."""
    blamed, reason = blame(found)
    checks = []
    for name, check in _CHECKS.items():
        if name == blamed:
            seen, todo = worded(found, reason)
            checks.append(Check(name, Verdict.FAILED, seen, todo))
        else:
            checks.append(Check(name, *check(found)))
    latency_s, texts = _measured(found)
    attempts = found.attempts
    return Probe(
        exit_code=reason.exit_code if blamed else EXIT_COMPLETE,
        checks=tuple(checks),
        url=found.target.url,
        model=found.config.model_id,
        dialect=found.dialect.name if found.answered else None,
        requests=len(attempts),
        loading_requests=sum(attempt.while_loading and not attempt.good for attempt in attempts),
        texts=sum(attempt.texts for attempt in attempts),
        texts_per_request=_texts_per_request(found),
        in_flight=_in_flight(found),
        canaries=_canaries(found),
        latency_s=latency_s,
        texts_measured=texts,
        texts_per_second=_texts_per_second(found, latency_s, texts),
        throttled=any(attempt.status == 429 for attempt in attempts),  # noqa: PLR2004
        labels=tuple(_labels(found)),
        model_revision=found.revisions[-1] if found.revisions else None,
    )


_Seen = tuple[Verdict, str, str | None]


def _skipped(why: str = "nothing was answered") -> _Seen:
    return Verdict.SKIPPED, f"Not seen: {why}.", None


def _ok(seen: str) -> _Seen:
    return Verdict.OK, seen, None


def _warning(seen: str, mend: str) -> _Seen:
    return Verdict.WARNING, seen, mend


def _token(found: Findings) -> _Seen:
    token, target = found.token, found.target
    if found.config.endpoint == "local":
        return _ok("None is needed: the embedded endpoint is of this machine.")
    if token.value is None:
        if found.answered:
            return _ok("None was found, and the endpoint asks for none.")
        return _skipped("none was found, and whether one is needed is not known")
    where = f"Found in {token.where}"
    if target.token is None:
        return _warning(*split(str(target.notice)))
    if token.warning is not None:
        return _warning(f"{where}.", sentence(token.warning))
    return _ok(f"{where}, and accepted." if found.answered else f"{where}.")


def _address(found: Findings) -> _Seen:
    heard = [attempt for attempt in found.attempts if attempt.status is not None]
    if not heard:
        return _skipped()
    parts = urlsplit(found.target.url)
    where = f"{parts.netloc} answers{' over TLS' if parts.scheme == 'https' else ''}"
    if found.target.notice and found.target.token == found.token.value:
        return _warning(*split(found.target.notice))
    explained = {Cause.LOADING}
    if found.dialect.name == "single":  # that is why it is
        explained.add(Cause.UNREADABLE)
    troubles = [attempt.trouble for attempt in found.attempts]
    failed = [each for each in troubles if each is not None and each.cause not in explained]
    if found.answered and failed:
        seen = f"{where}, but {len(failed)} of {len(found.attempts)} requests failed: {failed[-1]}"
        return _warning(sentence(seen), f"A run tries again. {mend_of(failed[-1])}")
    return _ok(f"{where}.")


def _model(found: Findings) -> _Seen:
    if not found.answered:
        return _skipped()
    waited = ""
    if found.waited_s is not None:
        waited = f", after loading for {found.waited_s:.0f} s"
    return _ok(f"{found.config.model_id or 'The model there'} classifies texts{waited}.")


def _dialect(found: Findings) -> _Seen:
    if not found.answered:
        return _skipped()
    name = found.dialect.name
    if found.config.dialect != "auto":
        return _ok(f"{name}, as the setting says; its answers are what was asked for.")
    if found.config.endpoint == "local":
        return _ok(f"{name}, as the embedded endpoint speaks.")
    how = "as the page /info tells" if found.described else "found out by asking"
    return _ok(f"{name}, {how}.")


def _batching(found: Findings) -> _Seen:
    if not found.answered:
        return _skipped()
    most, wanted = found.dialect.most_texts, found.config.texts_per_request
    largest = max(attempt.texts for attempt in found.answered)
    if found.dialect.name == "single":
        if found.config.dialect == "single":
            return _ok("One text a request, as the dialect says.")
        why = next((n for n in found.notices if "honour batches" in n), "it takes no list of texts")
        why = why.partition("honour batches: ")[2] or why
        return _warning(
            f"Not honoured: {sentence(why)}",
            f"A run sends one text a request, {wanted} times as many requests. A server that takes "
            "lists (Text Embeddings Inference, the inference toolkit) is faster.",
        )
    if (
        refused := next((n for n in found.notices if "together were refused" in n), None)
    ) is not None:
        return _warning(sentence(refused), f"Set --batch-size {largest}.")
    if most is not None and found.config.batch_size != "auto" and most < wanted:
        seen = f"Honoured, with {most} texts in one request at most, as the server tells."
        return _warning(
            seen,
            f"A run sends {most} instead of {wanted}: --batch-size {most}.",
        )
    if largest == 1:
        return _skipped("there was one text to send")
    limit = "" if most is None else f"; the server takes {most} at most"
    trusted = " (the dialect is given, so no text is compared)" if _given(found) else ""
    return _ok(f"Honoured: {largest} texts in one request were answered{trusted}{limit}.")


def _given(found: Findings) -> bool:
    return found.config.dialect != "auto" or found.config.endpoint == "local"


def _texts(found: Findings) -> _Seen:
    failed = [outcome for outcome in found.outcomes if isinstance(outcome, RowError)]
    if not found.outcomes:
        return _skipped()
    count = len(found.outcomes)
    if failed:
        return _warning(
            f"{len(failed)} of {count} get no label: {failed[-1].message.rstrip('.')}.",
            "Too long texts are labelled with --truncate; others stay rows with an error.",
        )
    if found.from_input:
        return _ok(f"{count} from the first rows of the input are labelled.")
    return _ok(f"{count} plain ones are labelled; with INPUT, its own are tried.")


def _labels(found: Findings) -> list[str]:
    outcomes = [outcome for outcome in found.outcomes if not isinstance(outcome, RowError)]
    return sorted({label for outcome in outcomes for label, _ in outcome})


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
    if not found.answered:
        return _skipped()
    if not found.revisions:
        return _warning(
            "None is told (no x-sha header): a run would not notice another model there.",
            "Do not deploy another model while a run goes on.",
        )
    changed = " (it changed, as --allow-drift allows)" if len(found.revisions) > 1 else ""
    return _ok(f"{found.revisions[-1]}{changed}. A run stops where that changes.")


def _parameters(found: Findings) -> _Seen:
    config = found.config
    if not found.answered:
        return _skipped()
    wrong = list(_not_honoured(found))
    if wrong:
        return _warning(
            " ".join(wrong),
            "Leave it out, or serve the model by another server.",
        )
    tried = {
        "top_k": config.wants_predictions or None,
        "function_to_apply": found.function_ignored is not None or None,
        "truncate": found.long_text is not None or None,
    }
    stated = {
        "top_k": config.wants_predictions,
        "function_to_apply": config.function_to_apply is not None,
        "truncate": config.truncate,
    }
    if missing := [name for name in stated if stated[name] and not tried[name]]:
        return _skipped(f"{', '.join(missing)} could not be tried")
    names = [name for name, is_set in stated.items() if is_set]
    return _ok(f"{', '.join(names)}: honoured." if names else "None is set that could be ignored.")


def _not_honoured(found: Findings) -> Iterator[str]:
    answers = [each for each in found.outcomes if not isinstance(each, RowError)]
    if found.config.wants_predictions and answers and max(map(len, answers)) == 1:
        yield f"top_k {found.config.top_k} gives one label a text."
    if found.function_ignored:
        function = found.config.function_to_apply
        yield f"function_to_apply {function} gives the same scores as another one."
    if isinstance(found.long_text, RowError):
        yield f"truncate does not keep a long text from being refused: {found.long_text.message}."


def _latency(found: Findings) -> _Seen:
    latency_s, texts = _measured(found)
    if latency_s is None:
        return _skipped("all answers came while it loaded") if found.answered else _skipped()
    speed = _texts_per_second(found, latency_s, texts)
    took = f"{latency_s:.1f} s" if latency_s >= 1 else f"{latency_s * 1000:.0f} ms"
    rate = "" if found.config.rate is None else f", at a rate of {found.config.rate:g}"
    seen = (
        f"{took} for a request of {texts} text{'' if texts == 1 else 's'} (median of "
        f"{len(_samples(found))}). An estimate: up to {speed:,.0f} texts/s, if {_in_flight(found)} "
        f"requests in flight take no longer than one{rate}."
    )
    if latency_s > NEAR_TIMEOUT * found.config.timeout_s:
        return _warning(
            seen,
            f"That is near timeout_s ({found.config.timeout_s:g} s): raise --timeout-s, or lower "
            "--batch-size.",
        )
    return _ok(seen)


def _samples(found: Findings) -> list[float]:
    """How long the requests took that are like those of a run: the largest ones."""
    good = [each for each in found.answered if not each.while_loading]
    largest = max((attempt.texts for attempt in good), default=0)
    return [attempt.seconds for attempt in good if attempt.texts == largest]


def _measured(found: Findings) -> tuple[float | None, int]:
    good = [attempt.texts for attempt in found.answered if not attempt.while_loading]
    return (median(_samples(found)), max(good)) if good else (None, 0)


def _texts_per_request(found: Findings) -> int:
    largest = max((attempt.texts for attempt in found.answered), default=0)
    wanted = min(found.config.texts_per_request, found.dialect.most_texts or 1 << 30)
    refused = any("together were refused" in notice for notice in found.notices)
    return min(wanted, largest) if refused else wanted


def _in_flight(found: Findings) -> int:
    concurrency = found.config.concurrency
    if found.permits is None:
        return concurrency
    return max(1, min(concurrency, found.permits // _texts_per_request(found)))


def _texts_per_second(found: Findings, latency_s: float | None, texts: int) -> float | None:
    if not latency_s:
        return None
    per_second = _in_flight(found) / latency_s
    return round(texts * min(per_second, found.config.rate or per_second), 1)


def _canaries(found: Findings) -> int:
    """How many requests a run with this dialect needs, beside those that label its texts."""
    if _given(found) or found.described:
        return 0
    if found.dialect.name != "single":
        return 1
    # Where no list is taken, the text that tells is asked once more.
    return found.before_single + any("takes no list" in notice for notice in found.notices)


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
