"""The response store: what was already answered.

One store serves three purposes: deduplication within a run, the journal that makes a kill cheap,
and the cache between runs. It maps the digest of an input (never its text) to the answer.

    keys      digest of an input and of all that decides its answer
    store     the answers in an append-only journal: one write and one fsync a group
    counts    how many answers a journal holds, and of which labels
    index     where in the journal each key's answer is; bounded memory, rebuilt on opening
"""

from pipeline.responses.cache import check_cache
from pipeline.responses.counts import count_answers, count_labels
from pipeline.responses.keys import Keys, provisional
from pipeline.responses.store import (
    Known,
    ResponseStore,
    ResponseStores,
)

__all__ = [
    "Keys",
    "Known",
    "ResponseStore",
    "ResponseStores",
    "check_cache",
    "count_answers",
    "count_labels",
    "provisional",
]
