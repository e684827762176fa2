"""The run store: where the state of a run is kept.

    objects    what a kind of storage offers: five verbs, growing files, a lease, an output
    disk       the five verbs on disk
    log        numbered entries of records, each created only if its number is free
    records    what is recorded of a run, and the state that follows
    lease      the lease on disk: a lock; `beat` where there are no locks
    ownership  whose files are these? their content proves it
    files      growing files on disk
    output     the output on disk
    runstore   all of it together

Nothing outside of this package knows a path inside a run directory, or makes a file durable.
"""

from pipeline.store.objects import ByteSource
from pipeline.store.records import PartRecord, RunRecord, RunState, open_ranges
from pipeline.store.runstore import LocalStore, RunStore

__all__ = [
    "ByteSource",
    "LocalStore",
    "PartRecord",
    "RunRecord",
    "RunState",
    "RunStore",
    "open_ranges",
]
