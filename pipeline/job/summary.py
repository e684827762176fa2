"""The summary of an attempt at a run, and what its output tells of its origin."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import orjson

from pipeline.errors import EXIT_COMPLETE, EXIT_ROWS_FAILED
from pipeline.meanings import PerSecond, Seconds
from pipeline.version import __version__

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.observers import Metrics
    from pipeline.store import RunState


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an attempt came to, as `classify run --json` prints it."""

    state: Annotated[str, "`complete`, or `stopped` (resumable)"]
    exit_code: Annotated[int, "exit code of the command"]
    rows: Annotated[int, "rows of the input"]
    labelled: Annotated[int, "committed rows with a label"]
    errors: Annotated[int, "committed rows with an error"]
    labels: Annotated[dict[str, int], "committed rows by their label"]
    output: Annotated[str, "the output as given"]
    endpoint: Annotated[str, "`local`, `hf` or the address without its keys"]
    model: Annotated[str | None, "model asked for"]
    model_revision: Annotated[str | None, "revision (`x-sha`)"]
    message: Annotated[str, "why it stopped; absent if it did not"] = ""
    notices: Annotated[
        list[str],
        "what this attempt reported beside its progress, such as labels that share a name; each "
        "once, 100 at most",
    ]
    resumed_rows: Annotated[int, "rows committed before this attempt"]
    distinct_inputs: Annotated[int, "distinct texts or pairs"]
    cache_hits: Annotated[int, "of these, already answered"]
    requests: Annotated[int, "requests sent, with retries"]
    retries: Annotated[int, "of these, retries"]
    responses: Annotated[dict[str, int], "requests by HTTP status, or by cause if unanswered"]
    seconds: Annotated[Seconds, "duration of this attempt"]
    rows_per_second: Annotated[PerSecond, "rows committed over `seconds`"]
    peak_in_flight: Annotated[int, "most requests in flight"]
    plan: Annotated[
        dict[str, Any] | None,
        "what `classify plan` predicted: distinct_inputs, cache_hits, requests, seconds, cost",
    ]
    evaluation: Annotated[
        dict[str, Any] | None,
        "with `gold`, how good the labels are, as below; null without it, or before the end",
    ] = None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, in the order of the fields."""
        return {key: value for key, value in asdict(self).items() if key != "message" or value}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the schema of the output tells of its origin, each key after `classify.`.

    It holds no time, so that equal runs give equal bytes.
    """

    software: Annotated[str, "this package and its version"]
    endpoint: Annotated[str, "host, `local` or `hf`"]
    model: Annotated[str, "model asked for; empty if the address decides"]
    model_revision: Annotated[
        str, "its revision; empty if unknown, or if a directory's file has no label"
    ]
    top_k: Annotated[str, "the setting"]
    function_to_apply: Annotated[str, "the setting, or empty"]
    truncate: Annotated[str, "`true` or `false`"]
    label_map: Annotated[str, "the setting, as JSON, or empty"]
    threshold: Annotated[str, "the setting, or empty"]
    unsure_label: Annotated[str, "the setting, or empty without a threshold"]


def facts(config: RunConfig, done: RunState, state: str) -> dict[str, Any]:
    """Return what can be said of the rows that are committed."""
    rows = done.run.input["rows"]
    failed = done.errors > (config.allowed_errors(rows) or 0)
    return {
        "state": state,
        "exit_code": EXIT_ROWS_FAILED if failed else EXIT_COMPLETE,
        "rows": rows,
        "labelled": done.rows - done.errors,
        "errors": done.errors,
        "labels": done.labels,
        "output": str(config.output),
        "endpoint": config.public_endpoint,
        "model": config.model_id,
        "model_revision": done.latest_revision,
    }


def of_attempt(
    done: dict[str, Any],
    metrics: Metrics,
    started: float,
    error: BaseException | None,
    plan: dict[str, Any] | None,
    evaluation: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the summary of an attempt that began at `started` (by `time.monotonic`)."""
    seconds = time.monotonic() - started
    if error is not None:
        done = {**done, "exit_code": getattr(error, "exit_code", 1), "message": str(error)}
    return Summary(
        **done,
        resumed_rows=metrics.resumed_rows,
        distinct_inputs=metrics.distinct_inputs,
        cache_hits=metrics.cache_hits,
        requests=metrics.requests,
        retries=metrics.retries,
        responses=dict(sorted(metrics.responses.items())),
        seconds=round(seconds, 3),
        rows_per_second=round(metrics.committed_rows / seconds, 1),
        peak_in_flight=metrics.peak_in_flight,
        notices=metrics.notices,
        plan=plan,
        evaluation=evaluation,
    ).to_json()


def metadata(config: RunConfig, revision: str | None) -> dict[bytes, bytes]:
    """Return what the output tells of its origin, as the metadata of a Parquet schema."""
    origin = Origin(
        software=f"classify-pipeline {__version__}",
        endpoint=config.host,
        model=config.model_id or "",
        model_revision=revision or "",
        top_k=str(config.top_k),
        function_to_apply=config.function_to_apply or "",
        truncate=str(config.truncate).lower(),
        label_map=orjson.dumps(config.label_map).decode() if config.label_map else "",
        threshold="" if config.threshold is None else str(config.threshold),
        unsure_label="" if config.threshold is None else config.unsure_label,
    )
    return {f"classify.{key}".encode(): value.encode() for key, value in asdict(origin).items()}
