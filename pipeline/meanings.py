"""What the keys mean that `--json` prints: the one place, which docs/reference is made from.

Each entry is a kind and a meaning. Kinds: `count` (a whole number), `seconds` (a number, maybe
with a fraction), `per second` (likewise), `money`, `text`, `true or false`, `list`, `counts` (an
object of a count for each name), `object`. A key that may also be null has `or null` after it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Meaning(NamedTuple):
    """The kind of a value and what it tells."""

    kind: str
    words: str


def _table(**meanings: tuple[str, str]) -> dict[str, Meaning]:
    return {key: Meaning(*meaning) for key, meaning in meanings.items()}


# In the order in which the summary has them.
SUMMARY = _table(
    state=("text", "`complete`, or `stopped` before the end, which the same command continues"),
    exit_code=("count", "what the command ended with"),
    rows=("count", "rows of the input"),
    labelled=("count", "rows that are committed with a label, by all attempts together"),
    errors=("count", "rows that are committed with an error instead"),
    labels=("counts", "committed rows by their label"),
    output=("text", "path of the output, as it was given"),
    endpoint=("text", "`local`, `hf` or the address, as it was given"),
    model=("text or null", "the model asked for; null where the address alone decides it"),
    model_revision=("text or null", "the model's revision (`x-sha`); null where none was told"),
    message=("text", "why it stopped; only where it did"),
    resumed_rows=("count", "rows that were committed before this attempt"),
    distinct_inputs=("count", "distinct texts (or pairs) that this attempt met"),
    cache_hits=("count", "of these, how many were answered before it: nothing is sent for them"),
    requests=("count", "requests sent by this attempt, retries included"),
    retries=("count", "of these, how many were not the first try"),
    responses=(
        "counts",
        "requests that ended, by HTTP status, or by the cause where no answer came",
    ),
    seconds=("seconds", "how long this attempt took, from opening the input to the output"),
    rows_per_second=("per second", "rows that this attempt committed, over `seconds`"),
    peak_in_flight=("count", "the most requests in flight at once"),
    plan=(
        "object or null",
        "what `classify plan` said of it: distinct_inputs, cache_hits, requests, seconds, cost",
    ),
)

PLAN = _table(
    state=("text", "`planned`, or `complete` where a run would do nothing"),
    rows=("count", "rows of the input"),
    resumed_rows=("count", "of these, rows that are committed already"),
    retried_rows=("count or null", "with `--retry-failed`: rows of the output with an error"),
    unsendable=("counts", "rows that get an error before anything is sent, by that error"),
    distinct_inputs=("count", "distinct texts (or pairs) of the other rows"),
    duplicates=("count", "rows that have one of these again, which costs nothing"),
    cache_hits=("count", "distinct inputs that are answered already"),
    asked=("count", "distinct inputs that go to the endpoint"),
    requests=("count", "requests that carry them, retries not counted"),
    canaries=("count", "of these, requests that only find out how the endpoint wants to be asked"),
    texts_per_request=("count", "the most texts in one request"),
    seconds=("list", "the least and the most seconds that it may take"),
    seconds_are=("text", "how far these can be trusted, in words"),
    cost=("money or null", "at the price given, in its currency; null without one"),
    output=("text", "path of the output, as it was given"),
    endpoint=("text", "`local`, `hf` or the address, as it was given"),
    model=("text or null", "the model asked for"),
    notices=("list", "what else is worth knowing, in words"),
    probe=("object or null", "with `--probe`, what was measured"),
)

PROBE = _table(
    state=("text", "the worst of the verdicts: `ok`, `warning` or `failed`"),
    exit_code=("count", "what the command ended with, as a run would"),
    checks=("list", "of each check `name`, `verdict`, `seen` and `mend` (null where all is well)"),
    url=("text", "the address that was asked"),
    model=("text or null", "the model asked for"),
    dialect=("text or null", "how the endpoint wants to be asked; null where nothing was answered"),
    requests=("count", "requests that were sent"),
    loading_requests=("count", "of these, requests that found the model loading"),
    texts=("count", "texts that they carried"),
    texts_per_request=("count", "the most texts in a request of a run"),
    in_flight=("count", "the most requests in flight of a run"),
    canaries=("count", "requests that only find out how the endpoint wants to be asked"),
    latency_s=("seconds or null", "median of the requests with most texts"),
    texts_measured=("count", "texts in such a request"),
    texts_per_second=("per second or null", "an estimate for a run with these settings"),
    throttled=("true or false", "whether the endpoint answered 429"),
    labels=("list", "labels that were seen"),
    model_revision=("text or null", "the model's revision (`x-sha`)"),
)

STATUS = _table(
    output=("text", "path of the output, as it was given"),
    run_directory=("text", "where the run keeps what it needs to continue"),
    state=("text", "`running`, `stopped` or `complete`"),
    doing=("text", "what a running one does now, in words"),
    next=("text", "what to do, in words"),
    retry=("true or false", "whether it is a `--retry-failed`, which goes through all rows again"),
    rows=("count or null", "rows of the input; null while it is read for the first time"),
    committed_rows=("count", "rows that no kill can take back"),
    labelled=("count", "of these, rows with a label"),
    errors=("count", "of these, rows with an error"),
    labels=("counts", "committed rows by their label"),
    endpoint=("text or null", "`local`, `hf` or the address"),
    model=("text or null", "the model asked for"),
    model_revision=("text or null", "the model's revision, once it is known"),
    pid=("count or null", "the process that works on it"),
    host=("text or null", "the machine of that process"),
    since=("seconds or null", "when that process began, in seconds since 1970 (UTC)"),
    waits=(
        "object or null",
        "what is waited for: `reason`; `since` (seconds since 1970); `seconds` to take, or null",
    ),
    requests_per_second=("per second or null", "requests that ended, over the last minute"),
    inputs_per_second=("per second or null", "distinct inputs that were answered, likewise"),
    rows_per_second=("per second or null", "rows, over the last minute or the last parts"),
    seconds_left=("seconds or null", "how long yet at that speed; null where nobody can say"),
    message=("text or null", "why the last attempt stopped"),
    exit_code=("count or null", "what the last attempt ended with; null where it was killed"),
    last_attempt=(
        "object",
        "a part of the last attempt's summary; empty while one runs, or where it was killed",
    ),
)

# Of the output's Parquet schema, each after `classify.`.
METADATA = _table(
    software=("text", "this package and its version"),
    endpoint=("text", "host of the endpoint, or `local`, `hf`"),
    model=("text", "the model asked for; empty where the address alone decides it"),
    model_revision=("text", "its revision; empty where none was told"),
    top_k=("text", "the setting"),
    function_to_apply=("text", "the setting; empty where none was given"),
    truncate=("text", "the setting, `true` or `false`"),
)


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    """Give the keys of a summary in the order in which they are declared; no key is lost."""
    return {key: found[key] for key in (*SUMMARY, *found) if key in found}
