"""The run store: where the state of a run is kept.

    objects    what a kind of storage offers: five verbs, growing files, a lease, an output
    disk       the five verbs on disk
    remote     the five verbs on object storage
    log        numbered entries of records, each created only if its number is free
    records    what is recorded of a run, and the state that follows
    lease      the lease on disk: a lock
    beat       the lease without locks, such as on object storage
    holder     who holds a lease
    ownership  whose files are these? their content proves it
    files      growing files on disk
    frames     growing files on object storage
    output     the output on disk
    remote_output  the output on object storage
    hub_output the output in a dataset of the Hub
    runstore   all of it together
    places     which of these a run has, by the places of its output and its state

Nothing outside of this package knows a path inside a run directory, or makes a file durable.
"""

from pipeline.store.objects import ByteSource
from pipeline.store.places import LocalStore, located, open_store, output_at, place_of
from pipeline.store.records import PartRecord, RunRecord, RunState, open_ranges
from pipeline.store.runstore import RunStore

__all__ = [
    "ByteSource",
    "LocalStore",
    "PartRecord",
    "RunRecord",
    "RunState",
    "RunStore",
    "located",
    "open_ranges",
    "open_store",
    "output_at",
    "place_of",
]
