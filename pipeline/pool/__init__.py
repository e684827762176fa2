"""The pool: inputs become outcomes, through everything that an endpoint can do."""

from pipeline.pool.batching import MAX_REQUEST_BYTES
from pipeline.pool.pool import Pool

__all__ = ["MAX_REQUEST_BYTES", "Pool"]
