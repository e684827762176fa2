"""What the columns of JSON Lines hold: one type for each value, settled over all lines.

Arrow infers the types of a block of lines. A string that looks like a time stays a string, and a
column of nothing but nulls is one. Integers and other numbers together are doubles, unless one of
the integers is so large that a double would round it. Objects have the fields of all lines.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Path = tuple[str, ...]

# Beyond it, neighbouring integers are one double.
MOST_EXACT = 1 << 53
# Keys that are data, such as user names, would make a column each.
MOST_FIELDS = 10_000
ITEM = "[]"
# What Arrow calls kinds of JSON values, in words.
NAMES = {
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "string": "text",
}

_LONG = re.compile(rb"(?<![.0-9eE])[0-9]{16,}(?![0-9.eE])")


class Conflict(Exception):
    """No type holds the values of a column; its path, and the types on both sides."""

    def __init__(self, path: Path, was: pa.DataType, now: pa.DataType) -> None:
        super().__init__(path)
        self.path, self.was, self.now = path, was, now


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type without what inference adds: what looks like a time is a string."""
    if pt.is_timestamp(kind) or pt.is_time(kind) or pt.is_date(kind):
        return pa.string()
    if pt.is_list(kind):
        return pa.list_(plain(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, plain(field.type)) for field in kind.fields])
    return kind


def joined(was: pa.DataType, now: pa.DataType, path: Path = ()) -> pa.DataType:
    """Return the type that holds the values of both. Raises Conflict."""
    if was == now or pt.is_null(now):
        return was
    if pt.is_null(was):
        return now
    if {was, now} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pt.is_list(was) and pt.is_list(now):
        return pa.list_(joined(was.value_type, now.value_type, (*path, ITEM)))
    if pt.is_struct(was) and pt.is_struct(now):
        kinds = {field.name: field.type for field in was.fields}
        for field in now.fields:
            name = field.name
            kinds[name] = joined(kinds.get(name, pa.null()), field.type, (*path, name))
        return pa.struct(list(kinds.items()))
    raise Conflict(path, was, now)


def settled(kind: pa.DataType) -> pa.DataType:
    """Return the type that is kept: what was always null is a string."""
    if pt.is_null(kind):
        return pa.string()
    if pt.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pt.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind.fields])
    return kind


def count_fields(kind: pa.DataType) -> int:
    """Count the fields of objects, however deep."""
    inner = [kind.field(position).type for position in range(kind.num_fields)]
    own: int = kind.num_fields if pt.is_struct(kind) else 0
    return own + sum(map(count_fields, inner))


def type_at(kind: pa.DataType, path: Sequence[str]) -> pa.DataType | None:
    """Return the type of the values at a path; None if there are none."""
    for name in path:
        if name == ITEM and pt.is_list(kind):
            kind = kind.value_type
            continue
        if not pt.is_struct(kind) or kind.get_field_index(name) < 0:
            return None
        kind = kind.field(name).type
    return kind


def named(kind: pa.DataType) -> str:
    """Return what JSON calls the values of a type, in words."""
    if pt.is_integer(kind) or pt.is_floating(kind):
        return NAMES["number"]
    if pt.is_boolean(kind):
        return NAMES["boolean"]
    if pt.is_list(kind):
        return NAMES["array"]
    return NAMES["object" if pt.is_struct(kind) else "string"]


def long_integers(lines: Sequence[bytes], table: pa.Table) -> Iterator[tuple[int, Path]]:
    """Yield each integer of the lines that a double rounds: its line, and its path.

    `table` is what was read of them.
    """
    if not any(map(_may_round, table.columns)):
        return
    for number, line in enumerate(lines):
        if _LONG.search(line):
            for path in _long_in(json.loads(line, parse_float=_no_integer), ()):
                yield number, path


def _may_round(column: pa.ChunkedArray | pa.Array) -> bool:
    """Return True if a column holds doubles, or long integers, which others may make doubles."""
    kind = column.type
    if pt.is_floating(kind):
        return True
    if pt.is_integer(kind):
        found = pc.min_max(column).as_py()
        return any(abs(each or 0) > MOST_EXACT for each in found.values())
    if pt.is_list(kind):
        return _may_round(pc.list_flatten(column))
    if pt.is_struct(kind):
        return any(_may_round(pc.struct_field(column, i)) for i in range(kind.num_fields))
    return False


def _no_integer(_digits: str) -> float:
    return 0.0


def _long_in(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _long_in(inner, (*path, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _long_in(inner, (*path, ITEM))
    elif isinstance(value, int) and abs(value) > MOST_EXACT:
        yield path
