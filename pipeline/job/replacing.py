"""What is replaced by an output must be what was read, or an output of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import OutputError, StoppedEarly
from pipeline.producer import SourceFile
from pipeline.system.remote import is_address

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.producer import FileSource, InputTable
    from pipeline.store import RunState, RunStore


def check_only_input_is_lost(store: RunStore, table: InputTable) -> None:
    """Refuse to replace more than was read, if the output takes the place of what was.

    Raises OutputError for other files in its directory, InputError if the input was changed.
    """
    for file in table.files:
        SourceFile(file.path).check_unchanged(file.signature)
    store.output.check_holds_only([file.path for file in table.files])


def check_before_publishing(config: RunConfig, store: RunStore, table: InputTable) -> None:
    """Refuse to replace what came into the output's place since the run began.

    Raises StoppedEarly for other files in a directory; what `check_only_input_is_lost` does if the
    output takes the place of what was read.
    """
    if not store.output.exists():
        return
    is_input = store.output.replaces(config.input) or store.log.run.retry_of is not None
    if is_input and not store.output.is_torn():
        check_only_input_is_lost(store, table)
        return
    try:
        store.output.check_replaceable()
    except OutputError as error:
        raise StoppedEarly(error.what, "Move it away, then continue the run.") from error


def is_of(store: RunStore, source: FileSource, found: RunState) -> bool:
    """Return True if the source is the output that was recorded."""
    if is_address(str(store.output.name)):  # ETags tell of a change, and nothing of the content
        return store.output.identity() == found.retried_identity
    identity = [[file.size_bytes, file.sha256] for file in source.input.files]
    return identity == found.retried_identity
