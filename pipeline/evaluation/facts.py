"""What the summary of a run says of its labels: the figures of an evaluation, and no texts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from pipeline.evaluation.quality import Evaluation

# A label's own figures are few bytes; a column of texts taken for labels has many of them.
MOST_LABELS = 100


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How good the labels of a run are; of one that cannot be measured, only `gold` and why."""

    gold: Annotated[str, "the column of true labels"]
    rows: Annotated[int, "rows with a true label"]
    without_gold: Annotated[int, "rows without one, which are not counted"]
    unlabelled: Annotated[int, "of `rows`, rows with an error instead of a label"]
    unsure: Annotated[int, "of `rows`, rows whose score is below the `threshold`"]
    accuracy: Annotated[
        dict[str, float | None],
        "of the other rows, the share whose label is the true one: `value`, with its 95% interval "
        "from `low` to `high`; null if there are no such rows",
    ]
    macro_f1: Annotated[float | None, "mean F1 of all labels"]
    calibration_error: Annotated[float | None, "mean gap between score and accuracy"]
    labels: Annotated[
        list[dict[str, Any]],
        f"of the {MOST_LABELS} most frequent true labels: `label`, `rows`, `predicted` (rows that "
        "were given it), and `precision`, `recall`, `f1` with `value`, `low`, `high`",
    ]
    notes: Annotated[list[str], "what looks wrong, such as labels that are called otherwise"]
    message: Annotated[str, "why nothing could be measured; only then"] = ""

    @classmethod
    def of(cls, found: Evaluation) -> dict[str, Any]:
        """Return plain JSON values, in the order of the fields."""
        told = found.to_json()
        facts = {name: told[name] for name in cls.__dataclass_fields__ if name in told}
        facts["labels"] = told["labels"][:MOST_LABELS]
        return {key: value for key, value in asdict(cls(**facts)).items() if key != "message"}

    @staticmethod
    def without(gold: str, why: str) -> dict[str, Any]:
        """Say why there are none."""
        return {"gold": gold, "message": why}
