"""What an opening decides: how an attempt at a run begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from pipeline.producer import FileSource, Source
    from pipeline.store import RunState


class EarlierRun(TypedDict, total=False):
    """What is to be done about an earlier run; each is False if it is left out.

    `restart` discards an unfinished run but for its stored answers, `ask_again` discards those
    too. `overwrite` replaces a complete output, `retry_failed` asks again for its rows with an
    error, and for nothing else; an unfinished run is continued as without it. `update` labels an
    input that has changed: it replaces a complete output and reuses its answers. `show_again`
    begins a run in place of one on the same table, complete or not, if all that its answers need is
    to be shown otherwise.
    """

    restart: bool
    overwrite: bool
    retry_failed: bool
    ask_again: bool
    update: bool
    show_again: bool


@dataclass(frozen=True)
class Fresh:
    """A run begins; whatever is recorded is thrown away, but the answers only if they are not kept.

    They are keyed by all that decides them, so what was paid for is not paid for twice.
    """

    source: Source
    keeps_answers: bool
    state: None = None


@dataclass(frozen=True)
class Renew(Fresh):
    """A run begins on a table that has changed; `was` is recorded of the one before.

    With `takes_over` the answers of the output that is replaced are kept, too.
    """

    was: RunState = field(kw_only=True)
    takes_over: bool = field(kw_only=True)


@dataclass(frozen=True)
class _Recorded:
    source: Source
    state: RunState
    keeps_answers: bool = True


class Continue(_Recorded):
    """A run, or the retry of one, goes on from its committed parts."""


class Standing(_Recorded):
    """The output of a run, or of a retry, is in its place; only its record is missing."""


class Complete(_Recorded):
    """The output is complete and stays as it is; a retry of it that was begun is dropped."""


class Retry(_Recorded):
    """The rows with an error of a complete output are asked again; `state` is that of the retry."""

    source: FileSource


# Where the output is that the recorded run assembled: in its place; moved aside or not there yet,
# by a kill between the renames that replace a directory; or not known, or not there.
Place = Literal["standing", "between renames", "elsewhere"]

Opening = Fresh | Renew | Continue | Standing | Complete | Retry
