"""How large rows are, told by their values alone.

So what is cut by size is cut at the same row wherever reading began, and however the rows came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipeline.system.arrays import numbers


def row_bytes(rows: pa.Table | pa.RecordBatch) -> Any:
    """Return about how many bytes each row has, told by its values alone."""
    none = np.zeros(0, np.int64)
    chunked = (each.chunks if isinstance(rows, pa.Table) else [each] for each in rows.columns)
    columns = [[none, *map(_value_bytes, chunks)] for chunks in chunked]
    return sum(map(np.concatenate, columns), np.zeros(rows.num_rows, np.int64))


def _value_bytes(array: pa.Array) -> Any:
    """Return about how many bytes each value of an array has, those inside lists included."""
    kind = array.type
    if isinstance(kind, pa.ExtensionType):
        return _value_bytes(array.storage)
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        return _value_bytes(array.cast(pa.large_binary()))
    if any(is_it(kind) for is_it in (pt.is_string, pt.is_large_string, pt.is_binary,
                                     pt.is_large_binary)):  # fmt: skip
        lengths = pc.binary_length(array)
        if lengths.null_count:
            lengths = pc.coalesce(lengths, numbers([0], pa.int64())[0])
        return np.from_dlpack(lengths)
    if pt.is_struct(kind):
        return sum(map(_value_bytes, array.flatten()), np.zeros(len(array), np.int64))
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_map(kind):
        offsets = np.from_dlpack(array.offsets)
        inside = array.values if not pt.is_map(kind) else pa.StructArray.from_arrays(
            [array.keys, array.items], ["key", "value"]
        )  # fmt: skip
        # A slice refers to the values of its whole parent.
        first, last = int(offsets[0]), int(offsets[-1])
        ends = np.concatenate([[0], np.cumsum(_value_bytes(inside.slice(first, last - first)))])
        return ends[offsets[1:] - first] - ends[offsets[:-1] - first]
    if pt.is_fixed_size_list(kind):
        size = kind.list_size
        inside = _value_bytes(array.values.slice(array.offset * size, len(array) * size))
        return inside.reshape(len(array), size).sum(axis=1)
    try:
        width_bytes = kind.bit_width / 8
    except ValueError:  # null, for example
        width_bytes = 0
    return np.full(len(array), width_bytes, np.int64)
