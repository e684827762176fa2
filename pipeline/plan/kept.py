"""The plan kept for the run: `classify plan` leaves its numbers, the run tells them with its own.

They are of one attempt, so they are kept with all that they depend on: the input, the settings, the
rows that are committed and the answers that are known. An attempt that is made otherwise has no
plan. A run that is complete removes what was kept.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.job import opening
from pipeline.store import disk as storage

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.job.rundir import RunDirectory
    from pipeline.producer import Plan
    from pipeline.writer import Manifest

# What is compared; the names are those of the summary's `plan`.
NUMBERS = ("distinct_inputs", "cache_hits", "requests", "seconds", "cost")
# Beside those that change results: what decides the number of requests and their duration.
_SETTINGS = {"dialect", "batch_size", "concurrency", "rate", "dedup", "cache"}


def made_for(
    config: RunConfig,
    directory: RunDirectory,
    manifest: Manifest | None,
    plan: Plan,
    *,
    resumed_rows: int,
) -> dict[str, Any]:
    """Return what the numbers of an attempt depend on; `manifest` is None before it begins."""
    answers_bytes = 0
    if manifest is not None or config.cache is not None:
        store, earlier = opening.stores(config, directory, manifest)
        for path in (store, *earlier):
            with suppress(OSError):
                answers_bytes += path.stat().st_size
    return {
        "settings": {
            **config.result_settings(),
            **config.model_dump(mode="json", include=_SETTINGS),
        },
        "input": [[file.size_bytes, file.sha256] for file in plan.files],
        "csv": plan.to_json()["csv_format"],
        "rows": plan.rows,
        "resumed_rows": resumed_rows,
        "retry": manifest is not None and manifest.retry_of is not None,
        "answers_bytes": answers_bytes,
    }


def keep(directory: RunDirectory, made_for: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Leave the numbers of a plan for the run. Raises OutputError or StoppedEarly where that fails.

    The lock is not needed: the file takes its name at once, and is read when a run begins.
    """
    directory.create()
    kept = {"made_for": made_for, "plan": {name: numbers[name] for name in NUMBERS}}
    with storage.writing(directory.plan):
        storage.commit_bytes(orjson.dumps(kept), directory.plan, "plan")


def find(directory: RunDirectory, made_for: dict[str, Any]) -> dict[str, Any] | None:
    """Return the numbers of a plan that was made for just this attempt; None if there is none."""
    try:
        kept = orjson.loads(directory.plan.read_bytes())
        if kept["made_for"] != orjson.loads(orjson.dumps(made_for)):
            return None
        return {name: kept["plan"][name] for name in NUMBERS}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(directory: RunDirectory) -> None:
    """Remove what was kept: what was planned is done."""
    with suppress(OSError):
        storage.remove(directory.plan)
