"""The worker pool stage: resolves every row of a chunk to a label, a score or an error."""

from pipeline.workers.batching import Batcher, Job
from pipeline.workers.client import Client, Target, dialect_of, stated_dialect
from pipeline.workers.clock import Clock
from pipeline.workers.dedup import Dedup, recall
from pipeline.workers.pool import Pool
from pipeline.workers.resolver import (
    Resolved,
    Resolver,
    check_columns,
    joined,
    keys_of,
    open_rows,
    output_schema,
    prepare,
    result_fields,
)
from pipeline.workers.revision import Revision
from pipeline.workers.token import find_token

__all__ = [
    "Batcher",
    "Client",
    "Clock",
    "Dedup",
    "Job",
    "Pool",
    "Resolved",
    "Resolver",
    "Revision",
    "Target",
    "check_columns",
    "dialect_of",
    "find_token",
    "joined",
    "keys_of",
    "open_rows",
    "output_schema",
    "prepare",
    "recall",
    "result_fields",
    "stated_dialect",
]
