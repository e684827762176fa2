"""What the columns of a CSV hold: a type only where each cell can be written back unchanged.

A column becomes int64 or double only when each of its non-empty cells, over all files, is the
one spelling in which that value is printed. `00123`, `+1`, `1.50`, `1e5`, `NaN`, `-0` and numbers
beyond 18 digits therefore keep their column text, and so do columns that mix `1` with `1.5`, since
a double would print the first as `1.0`. A column without a non-empty cell is text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.system.arrays import strings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INTEGER = r"^(?:0|-?[1-9][0-9]{0,17})$"

# A double gives back any decimal of up to 15 significant digits (DBL_DIG), and Python prints it
# without an exponent from 0.0001 on. One alternative for each count of digits before the point.
_DECIMAL = (
    r"^(?:0\.0|-?(?:"
    + "|".join(rf"[1-9][0-9]{{{n}}}\.(?:0|[0-9]{{0,{13 - n}}}[1-9])" for n in range(14))
    + r"|[1-9][0-9]{14}\.0|0\.0{0,3}[1-9](?:[0-9]{0,13}[1-9])?))$"
)

# No cell matches both, so at most one candidate outlives the first non-empty cell.
_CANDIDATES = ((pa.int64(), _INTEGER), (pa.float64(), _DECIMAL))


class ColumnTypes:
    """Narrows each column's type block by block; a column that is text is not looked at again.

    `text` are the positions of columns that are text whatever they hold.
    """

    def __init__(self, columns: int, text: Iterable[int] = ()) -> None:
        self._candidates: dict[int, tuple[tuple[pa.DataType, str], ...]]
        self._candidates = dict.fromkeys(set(range(columns)) - set(text), _CANDIDATES)
        self._columns = columns

    def observe(self, rows: Sequence[Sequence[str]]) -> None:
        """Take these rows into account; each must have one cell for each column."""
        for column, candidates in list(self._candidates.items()):
            cells = strings([cell for row in rows if (cell := row[column])])
            if len(cells) == 0:
                continue
            one = cells[0].as_py()
            self._candidates[column] = tuple(
                (kind, pattern)
                for kind, pattern in candidates
                # Most columns fail by one cell, which saves Arrow from compiling the pattern.
                if re.match(pattern, one)
                and pc.all(pc.match_substring_regex(cells, pattern)).as_py()
            )
            if not self._candidates[column]:
                del self._candidates[column]

    def types(self) -> list[pa.DataType]:
        """Return the types that every row observed so far allows."""
        settled = [pa.string()] * self._columns
        for column, candidates in self._candidates.items():
            if len(candidates) == 1:
                settled[column] = candidates[0][0]
        return settled


def to_batch(rows: Sequence[Sequence[str]], schema: pa.Schema) -> pa.RecordBatch:
    """Turn rows of cells into a record batch; an empty cell is null.

    Raises ArrowInvalid for a cell that is not of its column's type.
    """
    columns = []
    for cells, kind in zip(zip(*rows, strict=True), schema.types, strict=True):
        text = strings(cells, empty_is_null=True)
        columns.append(text if kind == pa.string() else text.cast(kind))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
