"""The worker pool stage: resolves every row of a chunk to a label, a score or an error."""

from pipeline.workers.client import Client, Target
from pipeline.workers.clock import Clock
from pipeline.workers.dedup import Dedup
from pipeline.workers.pool import Pool
from pipeline.workers.resolver import (
    Resolved,
    Resolver,
    check_columns,
    output_schema,
    result_fields,
)
from pipeline.workers.revision import Revision
from pipeline.workers.token import find_token

__all__ = [
    "Client",
    "Clock",
    "Dedup",
    "Pool",
    "Resolved",
    "Resolver",
    "Revision",
    "Target",
    "check_columns",
    "find_token",
    "output_schema",
    "result_fields",
]
