"""The room that a run needs on its disk: parts, the output assembled from them, and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import OutputError
from pipeline.job.decisions import Continue, Fresh
from pipeline.labelled import is_text
from pipeline.observers.words import size
from pipeline.store.forms import compression_of

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.job.decisions import Opening
    from pipeline.store import RunStore

# What a label and its score take: compressed in the output, as Arrow data in a part, and in the
# journal.
_RESULT_BYTES, _PART_BYTES, _ANSWER_BYTES = 10, 28, 52
# How many labels a model has, if the rows get all of them.
_LABELS = 10
# How much less than the sample of them the rows may take: in parts, and in the output, whose larger
# row groups hold what repeats only once.
_LEAST_PARTS, _LEAST_OUTPUT = 0.5, 0.1
# Packed parts take about so many times what the output does.
_PACKED = 2


class Room(NamedTuple):
    """In bytes: about what a run takes at its worst, the least that it can take, what is free.

    None for what nobody knows.
    """

    about: int | None
    least: int
    free: int | None


def room(
    config: RunConfig, store: RunStore, opened: Opening, open_rows: int, answers: int = 0
) -> Room:
    """Return how much more disk a run takes for so many open rows, with so many new answers.

    The parts of a file stay until the output that is assembled from them has its name; those of a
    directory are its files. Raises StoppedEarly if the disk cannot be asked.
    """
    table, free = opened.source.input, store.free_bytes()
    if not open_rows:
        return Room(0, 0, free)
    if table.stored_bytes is None or table.arrow_bytes is None:
        return Room(None, 0, free)
    rows_in_files = max(1, sum(file.rows for file in table.files))
    labels = _LABELS if config.top_k == "all" else config.top_k
    stored = table.stored_bytes / rows_in_files
    written = table.rows if store.output.is_file else open_rows
    # Text that is not compressed takes about what it does in memory.
    is_plain = is_text(store.output) and compression_of(store.output.place) is None
    output = table.arrow_bytes / rows_in_files if is_plain else stored
    about = (output + _RESULT_BYTES * labels) * written
    least = _LEAST_OUTPUT * output * written
    if store.output.is_file:
        part = _PACKED * stored if table.packs_well else table.arrow_bytes / rows_in_files
        about += (part + _PART_BYTES * labels) * open_rows
        least += _LEAST_PARTS * part * open_rows
    if config.cache is None:  # which may lie elsewhere
        about += _ANSWER_BYTES * labels * answers
    return Room(int(about), int(least), free)


def check(config: RunConfig, store: RunStore, opened: Opening, open_rows: int) -> None:
    """Raise OutputError for a run that cannot fit on its disk, however small its rows become.

    One that takes the place of another is let through: what it throws away makes room.
    """
    begins = isinstance(opened, Fresh) and not store.log.entries.exists()
    if not (begins or isinstance(opened, Continue)):
        return
    need = room(config, store, opened, open_rows)
    if need.free is not None and need.least > need.free:
        raise OutputError(
            f"{store.place}: the run takes about {size(need.about or 0)} of disk, "
            f"{size(need.least)} at least, and {size(need.free)} are free.",
            "Make room, or choose another place for the output.",
        )
