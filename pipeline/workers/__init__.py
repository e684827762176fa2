"""The worker pool stage: resolves every row of a chunk to a label, a score or an error."""

from pipeline.workers.client import Client, Target
from pipeline.workers.clock import Clock
from pipeline.workers.dedup import Dedup
from pipeline.workers.pool import Pool
from pipeline.workers.resolver import Resolved, Resolver, check_columns, output_schema

__all__ = [
    "Client",
    "Clock",
    "Dedup",
    "Pool",
    "Resolved",
    "Resolver",
    "Target",
    "check_columns",
    "output_schema",
]
