"""Label a large table with a text-classification model behind an HTTP endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.version import __version__ as __version__

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.errors import ClassifyError
    from pipeline.evaluation import Evaluation, evaluate
    from pipeline.library import aclassify, classify, run
    from pipeline.result import RunResult

__all__ = [
    "ClassifyError",
    "Evaluation",
    "RunConfig",
    "RunResult",
    "aclassify",
    "classify",
    "evaluate",
    "run",
]

_HOMES = {
    "ClassifyError": "errors",
    "Evaluation": "evaluation",
    "RunConfig": "config",
    "RunResult": "result",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `classify --help` and an import should not wait for Arrow and aiohttp.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'library')}"), name)
