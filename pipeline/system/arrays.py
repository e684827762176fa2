"""Arrow arrays out of Python values, made of buffers.

`pa.array`, `pa.scalar`, `to_numpy` and computing with Python values all import pandas, to look
whether a value is one of its own: 0.4 s and 34 MB that no command has a use for. So what every
command passes through uses these functions, `to_pylist` and `np.from_dlpack` instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence


def strings(values: Sequence[str | None], *, empty_is_null: bool = False) -> pa.StringArray:
    """Return an array of strings, together below 2 GiB; None is null."""
    texts: Sequence[Any] = values
    valid = None
    try:
        joined = "".join(texts)
    except TypeError:
        valid, texts = _valid(values), [value or "" for value in values]
        joined = "".join(texts)
    data = joined.encode()
    lengths: Any = map(len, texts)
    if len(data) != len(joined):
        lengths = (len(text) if text.isascii() else len(text.encode()) for text in texts)
    lengths = np.fromiter(lengths, np.int32, len(texts))
    offsets = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return _array(pa.string(), lengths > 0 if empty_is_null else valid, offsets, data)


def numbers(values: Sequence[float | None], kind: pa.DataType) -> pa.Array:
    """Return an array of `kind`, int64 or float64; None is null."""
    valid = None
    try:
        found = np.fromiter(values, kind.to_pandas_dtype(), len(values))
    except TypeError:
        valid, values = _valid(values), [value or 0 for value in values]
        found = np.fromiter(values, kind.to_pandas_dtype(), len(values))
    if valid is None and found.dtype.kind == "f" and np.isnan(found).any():
        valid = _valid(values)  # NumPy makes a float that is not a number of None
    return _array(kind, valid, found)


def places(found: np.ndarray[Any, Any]) -> pa.Array:
    """Return an array of int64; a negative one is null."""
    return _array(pa.int64(), found >= 0, found.astype(np.int64))


def _valid(values: Sequence[Any]) -> Any:
    return np.fromiter((value is not None for value in values), np.bool_, len(values))


def _array(kind: pa.DataType, valid: Any, first: Any, *more: Any) -> pa.Array:
    bits = None if valid is None or valid.all() else np.packbits(valid, bitorder="little")
    size = len(first) - len(more)  # offsets are one more than what they tell apart
    buffers = [None if each is None else pa.py_buffer(each) for each in (bits, first, *more)]
    return pa.Array.from_buffers(kind, size, buffers)
