"""The input table: what is read, settled before the first request and recorded with the run."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.producer.folders import Keys


class Signature(NamedTuple):
    """What the storage says of a file; any write to the file changes at least one of these.

    An object at an address has an ETag in place of the last three, and the time too where the ETag
    is missing or weak.
    """

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    etag: str | None = None


@dataclass(frozen=True)
class InputFile:
    """One input file as it was when the input was settled.

    `rows` is what the whole file holds, also if a limit takes fewer. `sha256` is of the raw
    bytes, before decompression; of an object at an address it may be its ETag. Times are
    nanoseconds since the epoch. `keys` are the columns that its folders give, which come after its
    own.
    """

    path: str
    rows: int
    size_bytes: int
    sha256: str
    mtime_ns: int
    ctime_ns: int
    inode: int
    keys: Keys = ()
    etag: str | None = None

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "keys", tuple((name, value) for name, value in self.keys))

    @property
    def signature(self) -> Signature:
        """The part that `stat` can confirm without reading the file."""
        return Signature(self.size_bytes, self.mtime_ns, self.ctime_ns, self.inode, self.etag)


@dataclass(frozen=True)
class CsvFormat:
    """How CSV bytes become cells: one delimiter character; `auto` or a Python codec name.

    `escape` is the character that makes the next one plain text; None if there is no such.

    `text_columns` stay text whatever they hold: a column to classify is no number, even where
    all its texts happen to be digits.
    """

    delimiter: str = ","
    encoding: str = "auto"
    text_columns: tuple[str, ...] = ()
    escape: str | None = None

    def __post_init__(self) -> None:
        # JSON knows lists only.
        object.__setattr__(self, "text_columns", tuple(self.text_columns))


_PACKS_WELL = 4


@dataclass(frozen=True)
class InputTable:
    """The input, settled: its columns and types, how many rows will come, and from which files.

    `rows` is after the limit. `csv_format` is None for Parquet and for tables in memory.
    `stored_bytes` is about what all rows of the files take as Parquet, `arrow_bytes` as Arrow data;
    None where an older version recorded the input.
    """

    schema: pa.Schema
    rows: int
    files: tuple[InputFile, ...]
    csv_format: CsvFormat | None = None
    stored_bytes: int | None = None
    arrow_bytes: int | None = None

    @property
    def packs_well(self) -> bool:
        """True if the rows as Arrow data take so much more than as Parquet that packing them pays.

        Packing takes several times the CPU of writing them as they are.
        """
        return (self.arrow_bytes or 0) > _PACKS_WELL * (self.stored_bytes or 0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the schema, with its metadata, as base64 of its Arrow IPC message."""
        return {
            "schema": base64.b64encode(self.schema.serialize()).decode("ascii"),
            "rows": self.rows,
            "files": [asdict(file) for file in self.files],
            "csv_format": None if self.csv_format is None else asdict(self.csv_format),
            "stored_bytes": self.stored_bytes,
            "arrow_bytes": self.arrow_bytes,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> InputTable:
        """Return what `to_json` was called on."""
        csv_format = values["csv_format"]
        return cls(
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(values["schema"]))),
            rows=values["rows"],
            files=tuple(InputFile(**file) for file in values["files"]),
            csv_format=None if csv_format is None else CsvFormat(**csv_format),
            stored_bytes=values.get("stored_bytes"),
            arrow_bytes=values.get("arrow_bytes"),
        )

    def differences(self, other: InputTable) -> list[str]:
        """Return in words what differs from `other`, the earlier one; empty for the same input.

        Compares how the files are read, the schema without its metadata, and the sequence of
        sizes and checksums of the files; never paths or times, so a moved input stays the same.
        A Parquet object at an address has an ETag for a checksum, and a copy may have another.
        `rows` is not compared: with the same files it differs only by the limit, which is a
        setting.
        """
        return [
            *_format_differences(self.csv_format, other.csv_format),
            *_schema_differences(self.schema, other.schema),
            *_file_differences(self.files, other.files),
        ]


def _format_differences(now: CsvFormat | None, was: CsvFormat | None) -> list[str]:
    if now is None or was is None:
        is_now, it_was = ("CSV", "not CSV") if was is None else ("not CSV", "CSV")
        return [] if now is was else [f"input format: {is_now}, was {it_was}"]
    found = []
    if now.delimiter != was.delimiter:
        found.append(f"delimiter: {now.delimiter!r}, was {was.delimiter!r}")
    if now.escape != was.escape:
        found.append(f"csv_escape: {now.escape!r}, was {was.escape!r}")
    if now.encoding != was.encoding:
        found.append(f"encoding: {now.encoding}, was {was.encoding}")
    return found


def _schema_differences(now: pa.Schema, was: pa.Schema) -> list[str]:
    if now.equals(was, check_metadata=False):
        return []
    types_now = {field.name: field.type for field in now}
    types_was = {field.name: field.type for field in was}
    found = [f"column {name}: new" for name in types_now if name not in types_was]
    found += [f"column {name}: gone" for name in types_was if name not in types_now]
    found += [
        f"column {name}: {kind}, was {types_was[name]}"
        for name, kind in types_now.items()
        if name in types_was and kind != types_was[name]
    ]
    if found:
        return found
    if now.names != was.names:
        return [f"columns in another order: {', '.join(now.names)}, was {', '.join(was.names)}"]
    return [
        f"column {field.name}: {_nullable(field)}, was {_nullable(was.field(position))}"
        for position, field in enumerate(now)
        if field.nullable != was.field(position).nullable
    ]


def _nullable(field: pa.Field) -> str:
    return "may hold nulls" if field.nullable else "never null"


def _file_differences(now: tuple[InputFile, ...], was: tuple[InputFile, ...]) -> list[str]:
    if len(now) != len(was):
        return [f"{counted(len(now), 'file')}, was {len(was)}"]
    contents_now = [(file.size_bytes, file.sha256, file.keys) for file in now]
    contents_was = [(file.size_bytes, file.sha256, file.keys) for file in was]
    if contents_now != contents_was and Counter(contents_now) == Counter(contents_was):
        return ["the same files in another order"]
    moved = [
        f"{file.path}: its folders give {dict(file.keys)}, gave {dict(before.keys)}"
        for file, before in zip(now, was, strict=True)
        if file.keys != before.keys
    ]
    return moved + [
        f"{file.path}: content changed ({file.size_bytes:,} bytes, "
        + ("as before)" if file.size_bytes == before.size_bytes else f"was {before.size_bytes:,})")
        for file, before in zip(now, was, strict=True)
        if (file.size_bytes, file.sha256) != (before.size_bytes, before.sha256)
    ]
