"""The manifest: an append-only record of what is committed; it, not the directory, is the truth.

One JSON record a line, each behind the CRC-32 of its bytes:

    5d1c3f0a {"kind": "run", ...}         what this run is: settings, plan of the input
    0b7d2e91 {"kind": "part", ...}        one committed part, in order of rows
    77aa01c4 {"kind": "complete", ...}    the output stands

A kill while a line is written leaves a torn tail, which is cut off on opening. A bad line with a
good one after it is damage that no kill causes; that is refused rather than guessed at.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from pipeline import storage
from pipeline.errors import ResumeRefused
from pipeline.failpoints import failpoint

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class RunRecord:
    """What a run is: two attempts with equal records continue each other."""

    software: str
    settings: dict[str, Any]
    plan: dict[str, Any]
    format: int = FORMAT


@dataclass(frozen=True)
class PartRecord:
    """One committed part: `rows` input rows from `first_row` on, in a file of known content.

    `revision` is the model's, as far as the endpoint had told it by then.
    """

    first_row: int
    rows: int
    file: str
    size_bytes: int
    sha256: str
    errors: int
    revision: str | None
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Content:
    run: RunRecord
    parts: list[PartRecord]
    complete: dict[str, Any] | None
    valid_bytes: int


class Manifest:
    """The manifest of one run directory, open for appending."""

    def __init__(self, path: Path, content: _Content) -> None:
        self._path = path
        self._content = content

    @classmethod
    def load(cls, path: Path) -> Manifest | None:
        """Read a manifest; None where none was ever committed. Changes nothing.

        Raises ResumeRefused where it is damaged before its tail or made by a newer version.
        """
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResumeRefused(f"{path}: cannot read the manifest: {error.strerror}.") from None
        content = _parse(raw, path)
        return cls(path, content) if content else None

    @classmethod
    def create(cls, path: Path, run: RunRecord) -> Manifest:
        """Begin a manifest, replacing whatever stood there."""
        line = _line({"kind": "run", **asdict(run)})
        with storage.writing(path):
            storage.commit_bytes(line, path, "manifest")
        return cls(path, _Content(run, [], None, len(line)))

    @property
    def run(self) -> RunRecord:
        """What this run is."""
        return self._content.run

    @property
    def parts(self) -> list[PartRecord]:
        """The committed parts, in order, without gaps."""
        return self._content.parts

    @property
    def complete(self) -> dict[str, Any] | None:
        """What was recorded when the output was put in place; None before."""
        return self._content.complete

    @property
    def rows(self) -> int:
        """How many rows are committed; the next part starts at this row."""
        return self.parts[-1].first_row + self.parts[-1].rows if self.parts else 0

    def cut_torn_tail(self) -> None:
        """Drop what a kill left behind the last whole line, so that appending is safe."""
        with storage.writing(self._path):
            if self._path.stat().st_size > self._content.valid_bytes:
                failpoint("tail.before")
                whole = self._path.read_bytes()[: self._content.valid_bytes]
                storage.commit_bytes(whole, self._path, "manifest")
                failpoint("tail.cut")

    def keep_parts(self, count: int) -> None:
        """Forget all but the first `count` parts: the others are damaged and done again."""
        kept = self.parts[:count]
        lines = [_line({"kind": "run", **asdict(self.run)})]
        lines += [_line({"kind": "part", **asdict(part)}) for part in kept]
        content = b"".join(lines)
        with storage.writing(self._path):
            storage.commit_bytes(content, self._path, "manifest")
            failpoint("parts.forgotten")
        self._content = _Content(self.run, kept, None, len(content))

    def add_part(self, part: PartRecord) -> None:
        """Record a part whose file is durable. Raises StoppedEarly if the disk refuses."""
        assert part.first_row == self.rows, "parts are committed in the order of their rows"
        self._append({"kind": "part", **asdict(part)})
        self.parts.append(part)

    def set_complete(self, facts: dict[str, Any]) -> None:
        """Record that the output stands, and drop the part records, whose files go."""
        content = _line({"kind": "run", **asdict(self.run)}) + _line({"kind": "complete", **facts})
        with storage.writing(self._path):
            storage.commit_bytes(content, self._path, "manifest")
        self._content = _Content(self.run, [], facts, len(content))

    def _append(self, record: dict[str, Any]) -> None:
        with storage.writing(self._path):
            storage.append_durably(self._path, _line(record))


def _line(record: dict[str, Any]) -> bytes:
    text = orjson.dumps(record)
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _record(line: bytes) -> dict[str, Any] | None:
    """Give the record of a line, or None where it is not what was written."""
    crc, _, text = line.partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = orjson.loads(text)
    return record


def _parse(raw: bytes, path: Path) -> _Content | None:
    lines = raw.split(b"\n")
    # What follows the last line feed is torn by definition; "" where nothing does.
    records = [_record(line) for line in lines[:-1]]
    valid = next((i for i, record in enumerate(records) if record is None), len(records))
    if any(record is not None for record in records[valid:]):
        raise ResumeRefused(
            f"{path}: line {valid + 1} of the manifest is damaged, and not by a kill. What was "
            "done cannot be trusted: start over with --restart."
        )
    if not valid:
        return None
    run, *others = [record for record in records[:valid] if record is not None]
    if run.pop("kind") != "run" or run["format"] != FORMAT:
        raise ResumeRefused(
            f"{path}: made by another version of this software ({run.get('software')}). Finish it "
            "with that one, or start over with --restart."
        )
    parts, complete = [], None
    for record in others:
        kind = record.pop("kind")
        if kind == "part":
            parts.append(PartRecord(**record))
        else:
            complete = record
    return _Content(RunRecord(**run), parts, complete, sum(len(line) + 1 for line in lines[:valid]))
