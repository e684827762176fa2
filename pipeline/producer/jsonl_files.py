"""JSON Lines: one object a line, read by Arrow in blocks, with the line of whatever is wrong.

The rules:

- A row is a line; blank lines are skipped. The last one needs no line break.
- The columns are the keys of all lines of all files, in the order in which they first come. A row
  without one has null there.
- Types are settled over all rows of all files: see `json_types`. Nested lists and objects stay.
- Files are UTF-8, with or without a byte order mark. `NaN` and `Infinity`, which Python writes, are
  read as such.
- A line that is no object, holds a key twice, is not UTF-8 or takes more than ROW_BYTES is an error
  with its line; nothing is repaired or dropped.

Arrow's reader is given whole lines, never a file: it would settle the types on the first block, and
ends the process at a bare `null` (seen with pyarrow 26.0.1).
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.json as pj

from pipeline.errors import InputError
from pipeline.producer import files, json_types
from pipeline.producer.input_table import InputFile
from pipeline.producer.text_bytes import (
    READ_BYTES,
    RowTooLong,
    Tap,
    first_bytes,
    marked_encoding,
    open_bytes,
    reading,
    too_long,
)
from pipeline.system.threads import stop_point
from pipeline.wording import short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.producer.files import SourceFile
    from pipeline.producer.footprint import Footprint

# What is parsed together. Keys that differ from line to line make columns as long as a block.
BLOCK_ROWS = 4096
BLOCK_BYTES = 4 << 20

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r"
_CHANGED = re.compile(r"Column\(/(.*)\) changed from (\w+) to (\w+)")
_ROW = re.compile(r"in row (\d+)")
# What Arrow does not survive between two objects of one line.
_NULL_AFTER = re.compile(rb"\}[ \t\r]*n")


@dataclass(frozen=True)
class _Block:
    """Some lines of a file that are not blank, and the number of each, counted from 1.

    `is_cut` is true of the last line of a file that does not end with a line break.
    """

    lines: list[bytes]
    numbers: list[int]
    is_cut: bool = False


def settle_files(
    sources: Sequence[SourceFile], footprint: Footprint
) -> tuple[pa.Schema, tuple[InputFile, ...]]:
    """Read every file once, and return the schema that holds over all rows of all files.

    Raises InputError for the first thing that is wrong with any of them.
    """
    types = _Types()
    found = []
    for source in sources:
        signature = source.signature()
        digest = hashlib.sha256()
        rows = 0
        with source.unchanged(signature):
            for block in _blocks(source, digest):
                table = _parsed(source, block)
                types.observe(source, block, table)
                rows += table.num_rows
                footprint.observe(table.num_rows, partial(pa.Table.slice, table))
        found.append(
            InputFile(
                source.path,
                rows,
                sha256=digest.hexdigest(),
                **signature._asdict(),
                keys=source.keys,
            )
        )
    return types.schema(sources), tuple(found)


def read_schema(source: SourceFile) -> pa.Schema:
    """Return the schema of the first block: the rows after it may tell more. Raises InputError."""
    types = _Types()
    for block in _blocks(source):
        types.observe(source, block, _parsed(source, block))
        break
    return types.schema([source])


def read_batches(source: SourceFile, schema: pa.Schema, start_row: int) -> Iterator[pa.RecordBatch]:
    """Stream the rows of one file from `start_row` on, as batches of at most BLOCK_ROWS.

    Raises InputError if the file does not read as it did when the schema was settled.
    """
    for block in _blocks(source):
        rows = len(block.lines)
        if rows > start_row:
            table = _parsed(source, block, schema)
            for batch in table.slice(start_row).combine_chunks().to_batches():
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
        start_row = max(0, start_row - rows)


class _Types:
    """The types of all columns, joined block by block, and where integers are that are long."""

    def __init__(self) -> None:
        self._kind: pa.DataType = pa.struct([])
        self._long: dict[tuple[str, ...], str] = {}

    def observe(self, source: SourceFile, block: _Block, table: pa.Table) -> None:
        """Take a block into account. Raises InputError for what differs from those before."""
        now = json_types.plain(pa.struct(list(table.schema)))
        try:
            joined = json_types.joined(self._kind, now)
        except json_types.Conflict as conflict:
            raise self._changed(source, block, conflict) from conflict
        if json_types.count_fields(joined) > json_types.MOST_FIELDS:
            raise InputError(
                f"{source} line {block.numbers[-1]}: up to here, the objects have more than "
                f"{json_types.MOST_FIELDS:,} different keys, and each is a column.",
                "Write what the keys say as values, such as a list of objects with a name and a "
                "value.",
            )
        self._kind = joined
        for at, path in json_types.long_integers(block.lines, table):
            self._long.setdefault(path, f"{source} line {block.numbers[at]}")

    def schema(self, sources: Sequence[SourceFile]) -> pa.Schema:
        """Return the schema that all rows allow. Raises InputError."""
        for path, place in self._long.items():
            if json_types.type_at(self._kind, path) == pa.float64():
                raise InputError(
                    f"{place}: {_column(path)} holds an integer that would be rounded, since "
                    "other numbers of it are no integers or even larger.",
                    "Write it as text, in quotes.",
                )
        schema = pa.schema(list(json_types.settled(self._kind)))
        if not schema.names:
            raise InputError(
                f"{sources[0]} has no columns: it holds no object with a key.",
                'Each line must be one object, such as {"text": "..."}.',
            )
        return schema

    def _changed(
        self, source: SourceFile, block: _Block, conflict: json_types.Conflict
    ) -> InputError:
        at = next(
            number
            for line, number in zip(block.lines, block.numbers, strict=True)
            if _differs(line, conflict)
        )
        was, now = map(json_types.named, (conflict.was, conflict.now))
        return _other_type(f"{source} line {at}", conflict.path, was, now)


def _differs(line: bytes, conflict: json_types.Conflict) -> bool:
    found = json_types.plain(pa.struct(list(_read(line).schema)))
    inner = json_types.type_at(found, conflict.path)
    if inner is None or pa.types.is_null(inner):
        return False
    try:
        json_types.joined(conflict.was, inner)
    except json_types.Conflict:
        return True
    return False


def _other_type(where: str, path: Sequence[str], was: str, now: str) -> InputError:
    return InputError(
        f"{where}: {_column(path)} is {now}, but {was} before.",
        "Write it in one type in all lines, such as text in quotes.",
    )


def _column(path: Sequence[str]) -> str:
    name, *inside = path
    return f"column {short(name)!r}" + (f" ({'.'.join(path)})" if inside else "")


def _blocks(source: SourceFile, digest: Any = None) -> Iterator[_Block]:
    """Yield the lines that are not blank, in blocks. Raises InputError."""
    line = 0
    with reading(source), ExitStack() as stack:
        skipped = _check_start(source)
        tap = open_bytes(source, stack, digest)
        rest = b""
        try:
            for piece in _pieces(tap):
                whole, has_end, rest = (rest + piece)[skipped:].rpartition(b"\n")
                skipped = 0
                if has_end:
                    yield from _cut(source, whole, line)
                    line += whole.count(b"\n") + 1
        except RowTooLong as error:
            fix = "Shorten it, or write each object on a line of its own."
            raise too_long(source, line + 1, fix) from error
    for block in _cut(source, rest, line):
        yield replace(block, is_cut=True)


def _pieces(tap: Tap) -> Iterator[bytes]:
    """Yield about BLOCK_BYTES at a time, more only where a line is longer."""
    held: list[bytes] = []
    size_bytes = 0
    while piece := tap.read(READ_BYTES):
        stop_point()
        held.append(piece)
        size_bytes += len(piece)
        end = piece.rfind(b"\n") + 1
        if end:
            tap.row_begins = tap.position - len(piece) + end
        if size_bytes >= BLOCK_BYTES and tap.row_begins > tap.position - size_bytes:
            yield b"".join(held)
            held, size_bytes = [], 0
    yield b"".join(held)


def _cut(source: SourceFile, whole: bytes, before: int) -> Iterator[_Block]:
    try:
        whole.decode()
    except UnicodeDecodeError as error:
        at = before + whole.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{source} line {at}: not valid UTF-8 (byte 0x{whole[error.start]:02x}: "
            f"{error.reason}).",
            "Write the file as UTF-8.",
        ) from error
    lines, numbers = [], []
    for number, text in enumerate(whole.split(b"\n"), start=before + 1):
        stripped = text.strip(_BLANK)
        if stripped:
            lines.append(stripped)
            numbers.append(number)
        if len(lines) >= BLOCK_ROWS:
            yield _Block(lines, numbers)
            lines, numbers = [], []
    if lines:
        yield _Block(lines, numbers)


def _check_start(source: SourceFile) -> int:
    """Return the length of the byte order mark. Raises InputError for what is not JSON Lines."""
    start = first_bytes(source)
    encoding = marked_encoding(start)
    if encoding != "utf-8":
        raise InputError(
            f"{source} is {encoding.upper()}, by its byte order mark.", "Write it as UTF-8."
        )
    text = start.removeprefix(_BOM)
    if text.lstrip().startswith(b"["):
        raise InputError(
            f"{source} is one JSON list, not JSON Lines.",
            "Write each of its objects on a line of its own, such as by `jq -c '.[]'`.",
        )
    return len(start) - len(text)


def _parsed(source: SourceFile, block: _Block, schema: pa.Schema | None = None) -> pa.Table:
    """Read the lines of a block; by `schema`, if it is settled. Raises InputError."""
    lines = b"\n".join(block.lines)
    if _NULL_AFTER.search(lines) or not all(line.startswith(b"{") for line in block.lines):
        for at in range(len(block.lines)):
            _check_object(source, block, at)
    try:
        table = _read(lines, schema)
    except pa.ArrowException as error:
        place = _ROW.search(str(error))
        at = int(place[1]) if place else len(block.lines)
        if schema is not None or at >= len(block.lines):
            raise files.changed(source) from error
        raise _malformed(source, block, at, error) from error
    if table.num_rows != len(block.lines):
        for at in range(len(block.lines)):
            _check_object(source, block, at)
        raise files.changed(source)
    return table


def _read(lines: bytes, schema: pa.Schema | None = None) -> pa.Table:
    return pj.read_json(
        pa.BufferReader(lines),
        # One block, so that nothing depends on where Arrow would cut.
        read_options=pj.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        parse_options=pj.ParseOptions(
            explicit_schema=schema,
            unexpected_field_behavior="infer" if schema is None else "error",
        ),
    )


def _check_object(source: SourceFile, block: _Block, at: int) -> None:
    """Raise InputError unless a line is one object."""
    try:
        found = json.loads(block.lines[at])
    except (ValueError, RecursionError) as error:
        raise _malformed(source, block, at, error) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{source} line {block.numbers[at]}: not an object, but "
            f"{short(block.lines[at].decode())}.",
            'Each line must be one object, such as {"text": "..."}.',
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _malformed(source: SourceFile, block: _Block, at: int, error: Exception) -> InputError:
    where = f"{source} line {block.numbers[at]}"
    if block.is_cut and at == len(block.lines) - 1 and not _is_json(block.lines[at]):
        return InputError(
            f"{where}: the last line is cut off.",
            "Wait until whatever writes the file is done, or remove the line.",
        )
    if (changed := _CHANGED.search(str(error))) is not None:
        was, now = (json_types.NAMES.get(changed[i], changed[i]) for i in (2, 3))
        return _other_type(where, changed[1].split("/"), was, now)
    why = str(error).removeprefix("JSON parse error: ").partition(" in row ")[0].rstrip(".")
    return InputError(
        f"{where}: not a JSON object ({why}).",
        "Each line must be one object by itself; correct the line, or remove it.",
    )
