"""What is said of a run: in its summary, in its last record, and in the output itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline import meanings
from pipeline.errors import EXIT_COMPLETE, EXIT_ROWS_FAILED
from pipeline.version import __version__

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.observers import Metrics
    from pipeline.store import RunState


def facts(config: RunConfig, done: RunState, state: str) -> dict[str, Any]:
    """Return what can be said of the rows that are committed."""
    rows = done.run.plan["rows"]
    failed = done.errors > (config.allowed_errors(rows) or 0)
    return {
        "state": state,
        "exit_code": EXIT_ROWS_FAILED if failed else EXIT_COMPLETE,
        "rows": rows,
        "labelled": done.rows - done.errors,
        "errors": done.errors,
        "labels": done.labels,
        "output": str(config.output),
        "endpoint": config.endpoint,
        "model": config.model_id,
        "model_revision": done.latest_revision,
    }


def of_attempt(
    done: dict[str, Any],
    metrics: Metrics,
    started: float,
    error: BaseException | None,
    plan: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the summary of an attempt that began at `started` (by `time.monotonic`)."""
    seconds = time.monotonic() - started
    if error is not None:
        done = {**done, "exit_code": getattr(error, "exit_code", 1), "message": str(error)}
    found = {
        **done,
        "resumed_rows": metrics.resumed_rows,
        "distinct_inputs": metrics.distinct_inputs,
        "cache_hits": metrics.cache_hits,
        "requests": metrics.requests,
        "retries": metrics.retries,
        "responses": dict(sorted(metrics.responses.items())),
        "seconds": round(seconds, 3),
        "rows_per_second": round(metrics.committed_rows / seconds, 1),
        "peak_in_flight": metrics.peak_in_flight,
        "plan": plan,
    }
    return meanings.in_order(found)


def metadata(config: RunConfig, state: RunState) -> dict[bytes, bytes]:
    """Return what the output tells of its origin; no time, so that equal runs give equal bytes."""
    told = {
        "software": f"classify-pipeline {__version__}",
        "endpoint": urlsplit(config.endpoint).netloc or config.endpoint,
        "model": config.model_id or "",
        "model_revision": state.latest_revision or "",
        "top_k": str(config.top_k),
        "function_to_apply": config.function_to_apply or "",
        "truncate": str(config.truncate).lower(),
    }
    return {f"classify.{key}".encode(): value.encode() for key, value in told.items()}
