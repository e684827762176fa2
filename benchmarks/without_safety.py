"""`classify` without response store and checkpoint, to show what these two cost.

Nothing is remembered, and parts are written without fsync and records: never for real work.

    python without_safety.py run TABLE ...
"""

from __future__ import annotations

import os
import sys
from typing import Any

from pipeline.cli import console, process

# As `fit` does, which comes too late here.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
sys.meta_path.insert(0, process.NoPandas())

import pipeline.job.runner  # noqa: E402  (loads what is replaced below)


class NoStore:
    """Knows nothing and keeps nothing."""

    def __init__(self, *_: Any) -> None:
        self.passed_over: list[str] = []

    def get(self, _keys: Any) -> list[dict[int, Any]]:
        return []

    def put(self, _answers: Any) -> None:
        pass

    def close(self) -> None:
        pass


def no_sync(_: Any) -> None:
    pass


if __name__ == "__main__":
    pipeline.job.runner.ResponseStores = NoStore
    os.fsync = os.fdatasync = no_sync
    console()
