"""The run store: where the state of a run is kept; local disk or memory.

    objects    the five verbs that a kind of storage offers; `disk` and `memory` are two kinds
    log        numbered entries of records, each created only if its number is free
    records    what is recorded of a run, and the state that follows
    lease      one run at a time works on an output; `beat` where there are no locks
    ownership  whose files are these? their content proves it
    files      files that only grow: stored answers, the event log
    output     the output: drafted, then put in its place
    runstore   all of it together

Nothing outside of this package knows a path inside a run directory, or makes a file durable.
"""

from pipeline.store.objects import ByteSource
from pipeline.store.records import PartRecord, RunRecord, RunState
from pipeline.store.runstore import LocalStore, MemoryStore, RunStore

__all__ = [
    "ByteSource",
    "LocalStore",
    "MemoryStore",
    "PartRecord",
    "RunRecord",
    "RunState",
    "RunStore",
]
