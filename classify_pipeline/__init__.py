"""Label a table with a text-classification model behind an HTTP endpoint.

    import classify_pipeline as cp

    labelled = cp.classify(reviews, "review", endpoint="local")

- classify: label a table in memory; the same kind of table comes back
- aclassify: the same beside other work of the event loop
- evaluate: measure labels against a column of true ones
- run: label files, as the command `classify run` does
- RunResult: what `run` returns

This is the package `pipeline` under a name that collides with nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pipeline

if TYPE_CHECKING:
    from pipeline import ClassifyError as ClassifyError
    from pipeline import Evaluation as Evaluation
    from pipeline import RunConfig as RunConfig
    from pipeline import RunResult, aclassify, classify, evaluate, run

# What most people need; errors and RunConfig are here, too, but not shown.
__all__ = ["RunResult", "aclassify", "classify", "evaluate", "run"]


def __getattr__(name: str) -> Any:
    if name not in (*pipeline.__all__, "__version__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(pipeline, name)


def __dir__() -> list[str]:
    return __all__
