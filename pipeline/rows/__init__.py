"""Rows: a chunk becomes its distinct inputs, and their outcomes the columns of its rows."""

from pipeline.rows.allowance import Allowance
from pipeline.rows.dedup import Dedup, recall
from pipeline.rows.drift import NOBODY_TOLD, DriftGuard, Revision
from pipeline.rows.inputs import keys_of, open_rows, prepare
from pipeline.rows.resolver import Resolver
from pipeline.rows.results import (
    Resolved,
    check_columns,
    check_gold,
    joined,
    labels_in,
    output_schema,
    result_fields,
)

__all__ = [
    "NOBODY_TOLD",
    "Allowance",
    "Dedup",
    "DriftGuard",
    "Resolved",
    "Resolver",
    "Revision",
    "check_columns",
    "check_gold",
    "joined",
    "keys_of",
    "labels_in",
    "open_rows",
    "output_schema",
    "prepare",
    "recall",
    "result_fields",
]
