"""The manifest: an append-only record of what is committed; it, not the directory, is the truth.

One JSON record a line, each behind the CRC-32 of its bytes:

    5d1c3f0a {"kind": "run", ...}         what this run is: settings, plan of the input
    e07b9f42 {"kind": "cache", ...}       a shared response store that an attempt wrote to
    9a04c3e1 {"kind": "revision", ...}    the model's revision, as the endpoint first told it
    0b7d2e91 {"kind": "part", ...}        one committed part, in order of rows
    3e90d1b7 {"kind": "assembled", ...}   what the output is, recorded before it takes its name
    77aa01c4 {"kind": "complete", ...}    the output stands
    1c6f2a5d {"kind": "retry"}            its rows with an error are asked again; parts follow

A kill while a line is written leaves a torn tail, which is cut off on opening. A bad line with a
good one after it is damage that no kill causes; that is refused rather than guessed at.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import ResumeRefused
from pipeline.store import disk as storage
from pipeline.system.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    `revision` is the model's, as far as the endpoint or stored answers had told it by then.
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
    caches: list[str] = field(default_factory=list)
    revision: str | None = None
    parts: list[PartRecord] = field(default_factory=list)
    assembled: list[Any] | None = None
    complete: dict[str, Any] | None = None
    valid_bytes: int = 0
    # What was recorded of the complete output whose rows with an error are being asked again.
    retry_of: _Content | None = None


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
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ResumeRefused(f"{path}: cannot read the manifest: {error.strerror}.") from None
        content = _parse(raw, path)
        return cls(path, content) if content else None

    @classmethod
    def create(cls, path: Path, run: RunRecord) -> Manifest:
        """Begin a manifest, replacing whatever stood there."""
        manifest = cls(path, _Content(run))
        manifest.save()
        return manifest

    @property
    def run(self) -> RunRecord:
        """What this run is."""
        return self._content.run

    @property
    def caches(self) -> list[str]:
        """The shared response stores that attempts at this run wrote to, as absolute paths."""
        return self._content.caches

    @property
    def revision(self) -> str | None:
        """The model's revision, once the endpoint told it; stored answers alone do not."""
        return self._content.revision

    @property
    def latest_revision(self) -> str | None:
        """The model's revision, as far as the endpoint or stored answers told it."""
        before = self.revision or (self.retry_of or {}).get("model_revision")
        return next((part.revision for part in reversed(self.parts) if part.revision), before)

    @property
    def parts(self) -> list[PartRecord]:
        """The committed parts, in order, without gaps."""
        return self._content.parts

    @property
    def assembled(self) -> list[Any] | None:
        """What `identify` said of the assembled output before it took its name; None before.

        An output of this identity was put in place by this run, also where a kill came before
        its completion was recorded.
        """
        return self._content.assembled

    @property
    def complete(self) -> dict[str, Any] | None:
        """What was recorded when the output was put in place; None before."""
        return self._content.complete

    @property
    def retry_of(self) -> dict[str, Any] | None:
        """What `complete` was of the output whose rows with an error are asked again; else None."""
        return None if self._content.retry_of is None else self._content.retry_of.complete

    @property
    def retried_identity(self) -> list[Any] | None:
        """What the output is whose rows with an error are, or would be, asked again."""
        return (self._content.retry_of or self._content).assembled

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
        self._rewrite(replace(self._content, parts=self.parts[:count], assembled=None))
        failpoint("parts.forgotten")

    def add_cache(self, path: str) -> None:
        """Record that this attempt writes its answers to a shared response store."""
        if path not in self.caches:
            self._append({"kind": "cache", "path": path})
            self.caches.append(path)

    def set_revision(self, revision: str) -> None:
        """Record what the endpoint told first."""
        self._append({"kind": "revision", "revision": revision})
        self._content = replace(self._content, revision=revision)

    def begin_again(self, revision: str) -> None:
        """Forget all parts: the endpoint told another revision than the answers in them are of."""
        self._rewrite(replace(self._content, parts=[], assembled=None, revision=revision))

    def add_part(self, part: PartRecord) -> None:
        """Record a part whose file is durable. Raises StoppedEarly if the disk refuses."""
        assert part.first_row == self.rows, "parts are committed in the order of their rows"
        self._append({"kind": "part", **asdict(part)})
        self.parts.append(part)

    def set_assembled(self, identity: list[Any]) -> None:
        """Record what the output is, just before it takes its name."""
        self._append({"kind": "assembled", "identity": identity})
        self._content = replace(self._content, assembled=identity)

    def set_complete(self, facts: dict[str, Any]) -> None:
        """Record that the output stands, and drop the part records, whose files go."""
        self._rewrite(_Content(self.run, assembled=self.assembled, complete=facts))

    def retrying(self) -> Manifest:
        """The record of a retry: the complete output is gone through again, from its first row on.

        It is on disk only once it is saved, as that of `without_retry` is.
        """
        assert self.complete is not None, "only a complete run is retried"
        return Manifest(self._path, _Content(self.run, retry_of=self._content))

    def without_retry(self) -> Manifest:
        """The record of the complete output alone, which stands until a retry is done."""
        assert self._content.retry_of is not None, "there is no retry to drop"
        return Manifest(self._path, self._content.retry_of)

    def save(self) -> None:
        """Replace what is recorded on disk by this."""
        self._rewrite(self._content)

    def _rewrite(self, content: _Content) -> None:
        raw = b"".join(map(_line, _records(content)))
        with storage.writing(self._path):
            storage.commit_bytes(raw, self._path, "manifest")
        self._content = replace(content, valid_bytes=len(raw))

    def _append(self, record: dict[str, Any]) -> None:
        with storage.writing(self._path):
            storage.append_durably(self._path, _line(record))


def _records(content: _Content) -> Iterator[dict[str, Any]]:
    if content.retry_of is None:
        yield {"kind": "run", **asdict(content.run)}
    else:
        yield from _records(content.retry_of)
        yield {"kind": "retry"}
    for path in content.caches:
        yield {"kind": "cache", "path": path}
    if content.revision is not None:
        yield {"kind": "revision", "revision": content.revision}
    for part in content.parts:
        yield {"kind": "part", **asdict(part)}
    if content.assembled is not None:
        yield {"kind": "assembled", "identity": content.assembled}
    if content.complete is not None:
        yield {"kind": "complete", **content.complete}


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
    known = {"cache", "revision", "part", "assembled", "complete", "retry"}
    if (
        run.pop("kind") != "run"
        or run["format"] != FORMAT
        or not known.issuperset(record["kind"] for record in others)
    ):
        raise ResumeRefused(
            f"{path}: made by another version of this software ({run.get('software')}). Finish it "
            "with that one, or start over with --restart."
        )
    valid_bytes = sum(len(line) + 1 for line in lines[:valid])
    content = _Content(RunRecord(**run), valid_bytes=valid_bytes)
    for record in others:
        match record.pop("kind"):
            case "cache":
                content.caches.append(record["path"])
            case "revision":
                content = replace(content, revision=record["revision"])
            case "part":
                content.parts.append(PartRecord(**record))
            case "assembled":
                content = replace(content, assembled=record["identity"])
            case "complete":
                content = replace(content, complete=record)
            case _:
                content = _Content(content.run, valid_bytes=valid_bytes, retry_of=content)
    return content
