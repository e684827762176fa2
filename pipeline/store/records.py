"""What is recorded of a run, and the state that follows from the records.

run            what this run is: settings, the input                   a snapshot
abandoned      the run before is thrown away                           a snapshot
cache          a shared response store that an attempt wrote to
revision       the model's revision, as the endpoint first told it
mixed          answers of several revisions were accepted
range          one committed part: a range of rows, in no order
forgotten      the parts that begin at these rows are damaged, and done again
again          no part counts: the endpoint told another revision than stored answers
assembled      what the output is, recorded before it takes its name
complete       the output stands                                       a snapshot
retry          its rows with an error are asked again; parts follow
retry dropped  the complete output stands as it was
taken over     another attempt goes on; one that was frozen meanwhile, and wakes, loses the output
"""

from __future__ import annotations

from bisect import bisect, insort
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby, pairwise
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from pipeline.errors import ResumeRefused
from pipeline.store.log import Log
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.store.objects import Objects

    # Size and SHA-256 of each file of an output, by name.
    Identity = list[list[Any]]

FORMAT = 2

_first_row = attrgetter("first_row")


@dataclass(frozen=True)
class RunRecord:
    """What a run is: two attempts with equal records continue each other."""

    software: str
    settings: dict[str, Any]
    input: dict[str, Any]
    format: int = FORMAT


@dataclass(frozen=True)
class PartRecord:
    """One committed part: `rows` input rows from `first_row` on, in an object of known content.

    `revision` is the model's, as far as the endpoint or stored answers had told it by then.
    `stamp` is what the storage said of the object when it was put, if that says what is in it.
    """

    first_row: int
    rows: int
    file: str
    size_bytes: int
    sha256: str
    errors: int
    revision: str | None
    labels: dict[str, int] = field(default_factory=dict)
    stamp: str | None = None

    @property
    def end_row(self) -> int:
        """The row after its last one."""
        return self.first_row + self.rows


def open_ranges(parts: Sequence[PartRecord], rows: int) -> list[range]:
    """Return which of the first `rows` rows no part covers, as the longest ranges there are.

    `parts` are in the order of their rows and do not overlap.
    """
    ends = [0, *(part.end_row for part in parts)]
    firsts = [*(part.first_row for part in parts), rows]
    return [range(end, first) for end, first in zip(ends, firsts, strict=True) if first > end]


@dataclass(frozen=True)
class RunState:
    """What is recorded of a run.

    Args:
        run: what the run is.
        caches: the shared response stores that attempts wrote to, as absolute paths.
        revision: the model's revision once the endpoint told it; stored answers alone do not.
        parts: the committed parts, in the order of their rows; there may be rows between them.
        assembled: the identity of the assembled output before it took its name. An output of this
            identity was put in place by this run, even if a kill came before its completion.
        complete: the facts that were recorded when the output was put in place; None before.
        retry_of: the complete run whose rows with an error are asked again.
        newest_revision: that of the part which was recorded last, of those that have one.
        mixed: True if answers of several revisions were accepted, as `allow_drift` has it.

    """

    run: RunRecord
    caches: tuple[str, ...] = ()
    revision: str | None = None
    parts: tuple[PartRecord, ...] = ()
    assembled: Identity | None = None
    complete: dict[str, Any] | None = None
    retry_of: RunState | None = None
    newest_revision: str | None = None
    mixed: bool = False

    @property
    def rows(self) -> int:
        """How many rows are committed."""
        if self.complete is not None:
            return int(self.complete["rows"])
        return sum(part.rows for part in self.parts)

    @property
    def overlaps(self) -> bool:
        """True if a row is in two parts."""
        return any(part.end_row > after.first_row for part, after in pairwise(self.parts))

    @property
    def errors(self) -> int:
        """How many committed rows have an error."""
        if self.complete is not None:
            return int(self.complete["errors"])
        return sum(part.errors for part in self.parts)

    @property
    def labels(self) -> dict[str, int]:
        """Committed rows by their label, in order of the labels."""
        if self.complete is not None:
            return dict(self.complete["labels"])
        labels: Counter[str] = Counter()
        for part in self.parts:
            labels.update(part.labels)
        return dict(sorted(labels.items()))

    @property
    def latest_revision(self) -> str | None:
        """The model's revision, as far as the endpoint or stored answers told it."""
        if self.complete is not None:
            told: str | None = self.complete["model_revision"]
            return told
        before = self.retry_of.latest_revision if self.retry_of else None
        return self.newest_revision or self.revision or before

    @property
    def retried_identity(self) -> Identity | None:
        """What the output is whose rows with an error are, or would be, asked again."""
        return (self.retry_of or self).assembled

    def retrying(self) -> RunState:
        """Return the state of a retry that begins: all rows of the output are gone through."""
        return RunState(self.run, retry_of=self, mixed=self.mixed)


class RunLog:
    """The log of a run's records, and the state that follows from them.

    The methods that record something raise what `Log.append` does; the state is then as before.
    """

    def __init__(self, objects: Objects) -> None:
        self.entries = Log(objects)
        self.state: RunState | None = None

    @property
    def run(self) -> RunState:
        """The state of the run that is begun."""
        assert self.state is not None, "no run is begun"
        return self.state

    def load(self) -> RunState | None:
        """Read the state; None if no run was begun, or the last one was thrown away.

        Raises ResumeRefused for a log that is damaged or of another version.
        """
        self.state = None
        entries = self.entries.read()
        try:
            self.state = _replayed(None, [each for entry in entries for each in entry.records])
        except (KeyError, TypeError) as error:
            # Each entry is whole, so this is what its writer wrote.
            raise _another_version("unknown") from error
        if (state := self.state) is not None and state.overlaps:
            self.state = None
            raise ResumeRefused(
                f"The parts that {self.entries.place} records overlap, so what was done cannot be "
                "trusted.",
                f"Restore it, or start over with {setting('restart', 'True')}.",
            )
        return self.state

    def abandon(self) -> None:
        """Throw away what was recorded, even if it cannot be read."""
        self._append({"kind": "abandoned"}, snapshot=True)

    def begin(self, run: RunRecord) -> None:
        """Begin a run."""
        self._append({"kind": "run", **asdict(run)}, snapshot=True)

    def begin_retry(self) -> None:
        """Begin to ask again for the rows with an error of the complete output."""
        assert self.run.complete is not None, "only a complete run is retried"
        self._append({"kind": "retry"})

    def drop_retry(self) -> None:
        """Throw the begun retry away; the complete output stands."""
        assert self.run.retry_of is not None, "there is no retry to drop"
        self._append({"kind": "retry dropped"})

    def take_over(self) -> None:
        """Record that this attempt goes on, so that no earlier one can."""
        self._append({"kind": "taken over"})
        self.entries.check_is_last()

    def add_cache(self, path: str) -> None:
        """Record that this attempt writes its answers to a shared response store."""
        if path not in self.run.caches:
            self._append({"kind": "cache", "path": path})

    def set_revision(self, revision: str | None) -> None:
        """Record the revision that the endpoint told, unless one is recorded or none was told."""
        if told := self._told(revision):
            self._append(*told)

    def set_mixed(self) -> None:
        """Record that answers of several revisions were accepted."""
        if not self.run.mixed:
            self._append({"kind": "mixed", "mixed": True})

    def add_part(self, part: PartRecord, revision: str | None = None) -> None:
        """Record a part that is durable, and the revision that the endpoint told, if any."""
        parts = self.run.parts
        place = bisect(parts, part.first_row, key=_first_row)
        around = (*parts[max(0, place - 1) : place], part, *parts[place : place + 1])
        assert not RunState(self.run.run, parts=around).overlaps, "a row is committed once"
        self._append(*self._told(revision), {"kind": "range", **asdict(part)})

    def forget_parts(self, damaged: Sequence[PartRecord]) -> None:
        """Record that these parts are damaged: their rows are done again."""
        self._append({"kind": "forgotten", "first_rows": [part.first_row for part in damaged]})

    def begin_again(self, revision: str) -> None:
        """Forget all parts: the endpoint told another revision than the answers in them are of."""
        self._append({"kind": "again", "revision": revision})

    def set_assembled(self, identity: Identity) -> None:
        """Record what the output is, just before it takes its name."""
        self._append({"kind": "assembled", "identity": identity})
        self.entries.check_is_last()

    def set_complete(self, facts: dict[str, Any]) -> None:
        """Record that the output stands."""
        state = self.run
        record = {
            "run": asdict(state.run),
            "assembled": state.assembled,
            "facts": facts,
            "mixed": state.mixed,
            "caches": list(
                dict.fromkeys((*(state.retry_of.caches if state.retry_of else ()), *state.caches))
            ),
        }
        self._append({"kind": "complete", **record}, snapshot=True)

    def _told(self, revision: str | None) -> list[dict[str, Any]]:
        if revision is None or self.run.revision is not None:
            return []
        return [{"kind": "revision", "revision": revision}]

    def _append(self, *records: dict[str, Any], snapshot: bool = False) -> None:
        state = _replayed(self.state, records)
        self.entries.append(*records, snapshot=snapshot)
        self.state = state


def _replayed(state: RunState | None, records: Iterable[dict[str, Any]]) -> RunState | None:
    """Return the state after records."""
    counted = (record for record in records if record["kind"] != "taken over")
    for kind, group in groupby(counted, itemgetter("kind")):
        facts = [{key: record[key] for key in record if key != "kind"} for record in group]
        if kind == "range" and state is not None:
            # All at once, or the time would grow with the square of their number.
            parts, newest = list(state.parts), state.newest_revision
            for part in (PartRecord(**each) for each in facts):
                insort(parts, part, key=_first_row)
                newest = part.revision or newest
            state = replace(state, parts=tuple(parts), newest_revision=newest)
        else:
            for each in facts:
                state = _after(state, kind, each)
    return state


def _after(state: RunState | None, kind: str, facts: dict[str, Any]) -> RunState | None:
    """Return the state after one record that is no part."""
    match kind:
        case "run":
            return RunState(_run(facts))
        case "abandoned":
            return None
        case "complete":
            return RunState(
                _run(facts["run"]),
                caches=tuple(facts.get("caches", ())),
                assembled=facts["assembled"],
                complete=facts["facts"],
                mixed=facts.get("mixed", False),
            )
    if state is None:
        raise _another_version("unknown")
    match kind:
        case "cache":
            return replace(state, caches=(*state.caches, facts["path"]))
        case "revision" | "mixed":
            return replace(state, **facts)
        case "forgotten":
            damaged = set(facts["first_rows"])
            left = tuple(part for part in state.parts if part.first_row not in damaged)
            return replace(state, parts=left, assembled=None)
        case "again":
            revision = facts["revision"]
            return replace(state, parts=(), assembled=None, revision=revision, newest_revision=None)
        case "assembled":
            return replace(state, assembled=facts["identity"])
        case "retry":
            return state.retrying()
        case "retry dropped":
            return state.retry_of
        case _:
            raise _another_version(state.run.software)


def _run(facts: dict[str, Any]) -> RunRecord:
    if facts["format"] != FORMAT:
        raise _another_version(facts["software"])
    return RunRecord(**facts)


def _another_version(software: str) -> ResumeRefused:
    return ResumeRefused(
        f"The run was recorded by another version of this software ({software}).",
        f"Finish it with that one, or start over with {setting('restart', 'True')}.",
    )
