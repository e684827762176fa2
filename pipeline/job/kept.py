"""The plan kept for the run: `classify plan` leaves its numbers, the run tells them with its own.

They are of one attempt, so they are kept with all that they depend on: the input, the settings, the
rows that are committed and the answers that are known. An attempt that is made otherwise has no
plan. The store forgets the plan when the run is complete.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import ClassifyError
from pipeline.job import opening

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.job.decisions import Opening
    from pipeline.store import RunStore

# What is compared; the names are those of the summary's `plan`.
NUMBERS = ("distinct_inputs", "cache_hits", "requests", "seconds", "cost")
# Beside those that change results: what decides the number of requests and their duration.
_SETTINGS = {"dialect", "batch_size", "concurrency", "rate", "dedup", "cache"}


def basis(
    config: RunConfig, store: RunStore, opened: Opening, *, resumed_rows: int
) -> dict[str, Any]:
    """Return what the numbers of an attempt depend on, as it reads back from JSON."""
    state, table = opened.state, opened.source.input
    answers_bytes = 0
    keeps = opened.keeps_answers
    if keeps or config.cache is not None:
        answers, earlier = opening.stores(config, store, state, keeps_answers=keeps)
        for file in (answers, *earlier):
            with suppress(OSError):
                answers_bytes += file.size()
    made_for = {
        "settings": config.result_settings() | config.model_dump(mode="json", include=_SETTINGS),
        "input": [[file.size_bytes, file.sha256] for file in table.files],
        "csv": table.to_json()["csv_format"],
        "rows": table.rows,
        "resumed_rows": resumed_rows,
        "retry": state is not None and state.retry_of is not None,
        "answers_bytes": answers_bytes,
    }
    return dict(orjson.loads(orjson.dumps(made_for)))


def keep(store: RunStore, made_for: dict[str, Any], numbers: dict[str, Any]) -> str | None:
    """Leave the numbers of a plan for the run, under the lease of its store.

    Return a notice if that fails, which is no reason to fail.
    """
    try:
        store.check()
        store.lease.acquire(create=True)
        try:
            store.put_plan({"made_for": made_for, "plan": {n: numbers[n] for n in NUMBERS}})
        finally:
            store.lease.release()
    except ClassifyError as error:
        return f"The run will not be compared with this plan, which could not be kept: {error}"
    return None


def find(config: RunConfig, store: RunStore, opened: Opening) -> dict[str, Any] | None:
    """Return the numbers of a plan that was made for just this attempt; None if there is none."""
    found = store.plan()
    if found.get("made_for") != basis(config, store, opened, resumed_rows=store.log.run.rows):
        return None
    with suppress(KeyError, TypeError):  # somebody else's words in our file
        return {name: found["plan"][name] for name in NUMBERS}
    return None
