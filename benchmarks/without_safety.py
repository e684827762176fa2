"""`classify` without response store and checkpoint, to show what these two cost.

Nothing is remembered, and parts are written without fsync and records: never for real work.

    python without_safety.py run TABLE ...
"""

from __future__ import annotations

import os
from typing import Any

import pipeline.responses
import pipeline.runner  # noqa: F401  (loads what is replaced below)
from pipeline import storage
from pipeline.cli import main


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
    import sys

    runner = sys.modules["pipeline.runner"]
    runner.ResponseStores = NoStore
    storage.fsync_path = no_sync
    os.fsync = os.fdatasync = no_sync
    main()
