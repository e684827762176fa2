"""The run store: where the state of a run is kept, and how it is committed.

    log/00000001.json ...      what is committed: see `log` and `records`
    parts/000000000000-....    the committed parts, under names that are never used twice
    responses.journal          the stored answers of this run
    events.jsonl               the event log of all attempts
    summary.json, plan.json    of the last attempt; of `classify plan`, until that is done
    lock                       held while a process works on this output

A part is durable before its record is. Whoever writes holds the lease; readers need nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from pipeline.errors import OutputError, ResumeRefused, StoppedEarly
from pipeline.store.objects import TEMP_SUFFIX, ByteSource, reading, writing
from pipeline.store.ownership import MANIFEST, is_manifest
from pipeline.store.records import RunLog
from pipeline.system.failpoints import failpoint
from pipeline.system.globs import RUN_SUFFIX, overlap
from pipeline.system.paths import expanded
from pipeline.system.remote import is_address
from pipeline.system.threads import stop_point
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.objects import GrowingFile, Lease, Objects, Output
    from pipeline.store.records import Identity, PartRecord, RunRecord, RunState

_PARTS, _SUMMARY, _PLAN = "parts/", "summary.json", "plan.json"
_A_PART = "000000000000-00000000.parquet"
# Also as versions before the log named parts, and the log itself.
_PART_NAME = re.compile(
    r"parts/(\d{12}-[0-9a-f]{8}\.(arrows|parquet)|part-\d{12}\.parquet(\.tmp)?)"
)
_LEFT_BEHIND = re.compile(rf".*\.[0-9a-f]{{8}}\{TEMP_SUFFIX}")


@dataclass(eq=False)
class RunStore:
    """The state of one run, on any kind of storage. Methods raise StoppedEarly if it refuses."""

    _objects: Objects
    lease: Lease
    journal: GrowingFile
    events: GrowingFile
    output: Output

    def __post_init__(self) -> None:
        self.place = self._objects.place  # for messages
        self.log = RunLog(self._objects)

    def load(self, *, restart: bool = False, overwrite: bool = False) -> RunState | None:
        """Read what is recorded; None if no run is.

        Raises ResumeRefused for a record that is damaged or of another version, unless that is to
        be thrown away: by `restart`, or by `overwrite` if it is a complete run of an older version.
        """
        try:
            if not self.log.entries.exists():
                self._check_version(overwrite=overwrite)
            return self.log.load()
        except ResumeRefused:
            if not restart:
                raise
            return None

    def _check_version(self, *, overwrite: bool) -> None:
        found = self._manifest()
        if found is None:
            # What lies there is looked at first: the first entry is made before it.
            if (self._parts() or self.holds_answers()) and not self.log.entries.exists():
                raise ResumeRefused(
                    f"{self.place} holds parts or answers of a run, but its log is missing, so "
                    "what was done is not known.",
                    f"Restore {self.log.entries.place}, or start over with "
                    f"{setting('restart', 'True')}.",
                )
            return
        complete = found.rfind(b'{"kind":"complete"') > found.rfind(b'{"kind":"retry"')
        if complete and overwrite:
            return
        fix = (
            "Finish it with the version that began it, or start over with "
            f"{setting('restart', 'True')}."
        )
        if complete:
            fix = (
                f"It is complete. Replace its output with {setting('overwrite', 'True')}, or "
                "choose another output."
            )
        raise ResumeRefused(
            f"{self.place} holds a run of a previous version of this software ({MANIFEST}).", fix
        )

    def _manifest(self) -> bytes | None:
        found = self._objects.get(MANIFEST)
        return found if found is not None and is_manifest(found) else None

    def _parts(self) -> list[str]:
        """Return the names of the objects that are parts, recorded or not."""
        return list(filter(_PART_NAME.fullmatch, self._objects.list(_PARTS)))

    def check(self) -> None:
        """Refuse a storage that cannot keep the state of a run. Raises OutputError."""
        self._objects.check()

    def free_bytes(self) -> int | None:
        """Return how much room there is for parts, answers and output; None if nobody knows."""
        return self._objects.free_bytes()

    def check_is_outside(self, inputs: Sequence[str]) -> None:
        """Refuse an input that would read this run's own parts. Raises OutputError."""
        for name in inputs:
            if any(
                overlap(each, place, f"{place}/{_PARTS}{_A_PART}")
                for each, place in zip(_addresses(name), _addresses(self.place), strict=True)
            ):
                fix = f"Choose a directory elsewhere, or one whose name ends with {RUN_SUFFIX}."
                if self.log.entries.exists():
                    fix = (
                        "Move the directory elsewhere, or give it a name that ends with "
                        f"{RUN_SUFFIX}. Then continue with its new path: nothing that was done is "
                        "lost."
                    )
                raise OutputError(
                    f"{setting('run_dir')}: {self.place} and the input {name} are the same, or one "
                    "is inside the other.",
                    fix,
                )

    def holds_answers(self) -> bool:
        """Return True if there is anything in the journal of this run."""
        with reading(self.journal.place):
            try:
                return self.journal.size() > 0
            except (FileNotFoundError, NotADirectoryError):
                return False

    def begin(self, run: RunRecord, *, keep_answers: bool = False) -> None:
        """Begin a run; what was recorded before is thrown away, as far as it is of a run."""
        stale = not keep_answers and self.holds_answers()
        if stale or self.log.entries.exists() or self._manifest() is not None:
            self.log.abandon()
            failpoint("begin.abandoned")
            self.clear(keep_answers=keep_answers)
            failpoint("begin.cleared")
        self.log.begin(run)
        self.log.entries.shorten()

    def renew(self, run: RunRecord, caches: Sequence[str]) -> None:
        """Begin a run on another table, in one step: its answers, and those of `caches`, count."""
        self.log.begin(run)
        failpoint("renew.begun")
        for cache in caches:
            self.log.add_cache(cache)
        for name in self._parts():  # of an unfinished run; after a kill, `repair` removes them
            self._objects.delete(name)
        self.log.entries.shorten()

    def fence(self) -> None:
        """Fence what an earlier attempt may still write: a request outlives a killed process."""
        if not self.lease.is_lock:
            self.log.take_over()

    def repair(self) -> int:
        """Make an interrupted run ready to go on. Return how many parts were damaged.

        Their rows are done again; the answers are in the journal.
        """
        self.fence()
        there = self._objects.stamps(_PARTS)
        damaged = self._damaged(self.log.run, there)
        if damaged:
            self.log.forget_parts(damaged)
            failpoint("parts.forgotten")
        recorded = {_PARTS + part.file for part in self.log.run.parts}
        for name in there:
            is_part = _PART_NAME.fullmatch(name) is not None
            if _LEFT_BEHIND.fullmatch(name) or (is_part and name not in recorded):
                self._objects.delete(name)
                failpoint("parts.orphan removed")
        self._delete_left_behind("", "log/")
        return len(damaged)

    def finish(self, facts: dict[str, Any], *, keep_answers: bool = False) -> None:
        """Record that the output stands, and tidy up; a failure to do so is no failure."""
        self.log.set_complete(facts)
        failpoint("finish.complete")
        with suppress(StoppedEarly):
            self.clear(keep_answers=keep_answers)
            self._objects.delete(_PLAN)
        failpoint("finish.cleared")

    def clear(self, *, keep_answers: bool = False) -> None:
        """Remove all that a finished or discarded run leaves, but for its log, lock and plan.

        Raises OutputBusy if another run has begun.
        """
        self.log.entries.check_is_last()
        # The folder, too: a power cut may have kept it, but none of the parts.
        self._objects.delete(*self._parts(), _PARTS)
        failpoint("clear.parts removed")
        self.output.clear()
        if not keep_answers:
            with writing(self.journal.place):
                self.journal.delete()
        if self._manifest() is not None:
            self._objects.delete(MANIFEST)
        self.log.entries.shorten()
        self._delete_left_behind("", "log/", _PARTS)

    def _delete_left_behind(self, *folders: str) -> None:
        """Delete what a kill left of objects that did not get their name."""
        for folder in folders:
            self._objects.delete(*filter(_LEFT_BEHIND.fullmatch, self._objects.list(folder)))

    def put_part(self, first_row: int, content: bytes, suffix: str) -> tuple[str, str, str | None]:
        """Store a part durably. Return its name, SHA-256 and stamp; it counts once recorded."""
        name = f"{first_row:012d}-{secrets.token_hex(4)}{suffix}"
        digest = hashlib.sha256(content).hexdigest()
        return name, digest, self._objects.put(_PARTS + name, content)

    def part(self, part: PartRecord) -> ByteSource:
        """Return the bytes of a part."""
        name = _PARTS + part.file
        opened = partial(self._open, name)
        return ByteSource(f"{self.place}/{name}", part.size_bytes, opened, part.first_row)

    def draft_parts(self) -> Identity:
        """Make the parts the files of the draft, in order. Return what the output will be.

        Nothing is read: the parts were checked when the run was continued.
        """
        parts = self.log.run.parts
        digits = max(5, len(str(len(parts) - 1)))
        with writing(self.output.place):
            self.output.begin_draft()
            failpoint("draft.begun")
            for number, part in enumerate(parts):
                self.output.take_part(_PARTS + part.file, f"part-{number:0{digits}}.parquet")
                failpoint("draft.part taken")
        return [[part.size_bytes, part.sha256] for part in parts]

    def _open(self, name: str) -> pa.NativeFile:
        content = self._objects.get(name)
        if content is None:
            raise FileNotFoundError(2, "No such file", f"{self.place}/{name}")
        return pa.BufferReader(content)

    def damaged_parts(self, state: RunState) -> list[PartRecord]:
        """Return the parts whose bytes are not what was recorded.

        The checksum catches what a power cut left short, empty or garbled. A storage that vouches
        for its objects is believed, and nothing is read: a run may have terabytes of parts.
        """
        return self._damaged(state, self._objects.stamps(_PARTS)) if state.parts else []

    def _damaged(self, state: RunState, there: dict[str, str | None]) -> list[PartRecord]:
        damaged = []
        for part in state.parts:
            stop_point()
            if part.stamp is not None and there.get(_PARTS + part.file) == part.stamp:
                continue
            content = None
            with suppress(StoppedEarly):
                content = self._objects.get(_PARTS + part.file)
            if content is None or hashlib.sha256(content).hexdigest() != part.sha256:
                damaged.append(part)
        return damaged

    def summary(self) -> dict[str, Any]:
        """Return the summary of the last attempt; empty if it could not write one."""
        return self.summary_in(self._objects)

    @staticmethod
    def summary_in(objects: Objects) -> dict[str, Any]:
        """Do what `summary` does, before it is known which output the run has."""
        return _json(objects, _SUMMARY)

    def put_summary(self, summary: dict[str, Any]) -> None:
        """Keep the summary of this attempt."""
        self._objects.put(_SUMMARY, orjson.dumps(summary, option=orjson.OPT_INDENT_2))

    def put_evaluation(self, summary: dict[str, Any]) -> None:
        """Keep what a summary says of the labels; the attempt that made them says all else.

        A failure is no failure: nothing was to be done.
        """
        with suppress(StoppedEarly, orjson.JSONDecodeError):
            kept = orjson.loads(self._objects.get(_SUMMARY) or b"{}") or summary
            if kept.get("evaluation") != (found := summary["evaluation"]):
                self.put_summary({**kept, "evaluation": found})

    def plan(self) -> dict[str, Any]:
        """Return the plan that was kept; empty if there is none."""
        return _json(self._objects, _PLAN)

    def put_plan(self, plan: dict[str, Any]) -> None:
        """Keep a plan until the run that it is of is complete. Needs the lease."""
        self._objects.put(_PLAN, orjson.dumps(plan))


def _addresses(name: str) -> list[str]:
    """Return an address as it is named, and without links."""
    if is_address(name):
        return [name, name]
    named = found = Path(os.path.abspath(expanded(name)))  # noqa: PTH100 - without ".."
    with suppress(OSError, RuntimeError, ValueError):  # a loop of links, or no name at all
        found = named.resolve()
    return [f"file://{named}", f"file://{found}"]


def _json(objects: Objects, name: str) -> dict[str, Any]:
    with suppress(StoppedEarly, orjson.JSONDecodeError):
        found = orjson.loads(objects.get(name) or b"{}")
        if isinstance(found, dict):
            return found
    return {}
