"""Types of Parquet columns: what reading them by Arrow would lose, and what holds several files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from pipeline.errors import InputError
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.producer.files import SourceFile

_FIX = "Convert the column in the tool that wrote it, to text for example, or leave it out."
_ARROW_SCHEMA = b"ARROW:schema"
# How a type came to be declared says nothing about its values.
_BY_THE_WAY = ("is_from_converted_type", "force_set_converted_type")
_TEXT = (pt.is_string, pt.is_large_string, pt.is_string_view)
_BYTES = (pt.is_binary, pt.is_large_binary, pt.is_binary_view)
_FLOATS = (pa.float16(), pa.float32(), pa.float64())
_UNITS = ("s", "ms", "us", "ns")
_MOST_DIGITS = {pa.decimal128: 38, pa.decimal256: 76}


def check_kept(source: SourceFile, file: pq.ParquetFile) -> None:
    """Raise InputError for a column whose type Arrow does not write as it read it.

    Arrow gives an INTERVAL as bare bytes, for example, and a TIME without its time zone.
    """
    sink = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, file.schema_arrow).close()
    except pa.ArrowException:
        return  # Parquet cannot hold it at all, which `check_storable` says
    with pq.ParquetFile(pa.BufferReader(sink.getvalue())) as written:
        by_arrow = _ARROW_SCHEMA in (file.metadata.metadata or {})
        for was, becomes in zip(_leaves_of(file), _leaves_of(written), strict=True):
            if was.physical_type == "INT96":
                continue  # see `int96_unit`
            if _meaning(was, by_arrow=by_arrow) != _meaning(becomes, by_arrow=by_arrow):
                raise InputError(
                    f"{source}: column {was.path!r} is {_named(was)}, which the output cannot "
                    f"keep: it would become {_named(becomes)}.",
                    _FIX,
                )


def _leaves_of(file: pq.ParquetFile) -> Iterator[pq.ColumnSchema]:
    return map(file.schema.column, range(file.metadata.num_columns))


def _named(column: pq.ColumnSchema) -> str:
    kind = str(column.logical_type)
    return column.physical_type if kind == "None" else kind


def _meaning(column: pq.ColumnSchema, *, by_arrow: bool) -> dict[str, Any]:
    kind: dict[str, Any] = orjson.loads(column.logical_type.to_json())
    for key in _BY_THE_WAY:
        kind.pop(key, None)
    if kind["Type"] == "Time" and by_arrow:
        # Arrow's times have no zone; older versions declared all of them as adjusted to UTC.
        del kind["isAdjustedToUTC"]
    if (
        kind["Type"] == "Int"
        and kind["isSigned"]
        and f"INT{kind['bitWidth']}" == (column.physical_type)
    ):
        return {"Type": "None"}
    return kind


def int96_unit(source: SourceFile, file: pq.ParquetFile, by_us: pq.ParquetFile) -> str | None:
    """Return the unit that holds all INT96 timestamps of a file; None if it has no such column.

    `by_us` is the same file, opened to read them as microseconds. Read as nanoseconds, which is
    Arrow's default, a date before 1678 or after 2261 silently becomes another one. Raises
    InputError if neither unit holds all values.
    """
    names = [leaf.path for leaf in _leaves_of(file) if leaf.physical_type == "INT96"]
    fits_ns = fits_us = True
    for name in names:
        batches = (each.iter_batches(columns=[name]) for each in (file, by_us))
        for pair in zip(*batches, strict=True):
            stop_point()
            ns, us = (_integers(batch.column(0)) for batch in pair)
            # Both wrap around alike, so this is what microseconds leave out, even then.
            rest = pc.subtract(ns, pc.multiply(us, 1000))
            whole = pc.divide(pc.subtract(ns, rest), 1000)
            fits_us = fits_us and not pc.any(pc.not_equal(rest, 0)).as_py()
            fits_ns = fits_ns and not pc.any(pc.not_equal(whole, us)).as_py()
        if not (fits_ns or fits_us):
            raise InputError(
                f"{source}: column {name!r} holds timestamps (INT96) that fit neither nanoseconds "
                "nor microseconds.",
                _FIX,
            )
    return None if not names else "ns" if fits_ns else "us"


def _integers(array: pa.Array) -> pa.Array:
    """Return timestamps as numbers, from however deep in lists and structs."""
    while not pt.is_timestamp(array.type):
        array = array.flatten()[0] if pt.is_struct(array.type) else array.flatten()
    return array.cast(pa.int64())


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds all values of two types unchanged; None if there is none."""
    if one == other or pt.is_null(other):
        return one
    if pt.is_null(one):
        return other
    if pt.is_dictionary(one) or pt.is_dictionary(other):
        return wider(
            *(each.value_type if pt.is_dictionary(each) else each for each in (one, other))
        )
    for tests, widest in ((_TEXT, pa.large_string()), (_BYTES, pa.large_binary())):
        if all(any(test(each) for test in tests) for each in (one, other)):
            return widest
    if pt.is_integer(one) and pt.is_integer(other):
        return _wider_integer(one, other)
    if one in _FLOATS and other in _FLOATS:
        return max(one, other, key=_FLOATS.index)
    if pt.is_decimal(one) and pt.is_decimal(other):
        return _wider_decimal(one, other)
    if pt.is_struct(one) or pt.is_list(one) or pt.is_large_list(one):
        return _wider_inside(one, other)
    return _wider_time(one, other)


def _wider_integer(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    high = max(one, other, key=lambda kind: kind.bit_width)
    if pt.is_signed_integer(one) == pt.is_signed_integer(other):
        return high
    unsigned = one if pt.is_unsigned_integer(one) else other
    bits = max(2 * unsigned.bit_width, high.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _wider_decimal(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    scale = max(one.scale, other.scale)
    precision = max(one.precision - one.scale, other.precision - other.scale) + scale
    kinds = (kind for kind, digits in _MOST_DIGITS.items() if precision <= digits)
    return next((kind(precision, scale) for kind in kinds), None)


def _wider_time(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the finer of two kinds of timestamps, times or durations."""
    kinds = (pt.is_timestamp, pt.is_time, pt.is_duration)
    if not any(is_kind(one) and is_kind(other) for is_kind in kinds):
        return None
    if pt.is_timestamp(one) and one.tz != other.tz:
        return None
    return max(one, other, key=lambda kind: _UNITS.index(kind.unit))


def _wider_inside(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Widen what two lists hold, or two structs with fields of the same names."""
    if one.id != other.id or one.num_fields != other.num_fields:
        return None
    fields = []
    for position in range(one.num_fields):
        left, right = one.field(position), other.field(position)
        kind = wider(left.type, right.type)
        if kind is None or (pt.is_struct(one) and left.name != right.name):
            return None
        fields.append(left.with_type(kind).with_nullable(left.nullable or right.nullable))
    if pt.is_struct(one):
        return pa.struct(fields)
    return pa.list_(fields[0]) if pt.is_list(one) else pa.large_list(fields[0])
