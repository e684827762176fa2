"""Tables in memory: any kind in, and the same kind out with the results appended.

Only the columns to classify are read, through Arrow; the others are never touched, so that they
may hold anything and come back as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


class MemoryTable(Protocol):
    """A table of some library: the `names` of its columns, in order, and its number of `rows`."""

    names: list[str]
    rows: int

    def first(self, rows: int) -> MemoryTable:
        """The first rows only."""
        ...

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        """Read one column through Arrow. May raise whatever that library raises."""
        ...

    def with_results(self, results: pa.Table) -> Any:
        """Return the caller's table with the columns of an Arrow table of as many rows appended."""
        ...


def open_table(table: Any) -> MemoryTable:
    """Take a table of any kind; what is a stream or a query is read here.

    Raises InputError for what is no table, and where reading it fails.
    """
    libraries = {each.__module__.partition(".")[0] for each in type(table).__mro__}
    if "pandas" in libraries:
        import pandas as pd

        if isinstance(table, pd.DataFrame):
            return _PandasTable(table)
    if "polars" in libraries:
        import polars as pl

        if isinstance(table, pl.DataFrame):
            return _PolarsTable(table)
        if isinstance(table, pl.LazyFrame):
            raise InputError(
                "A polars LazyFrame is a plan that has no rows yet.",
                "Pass the result of its collect().",
            )
    try:
        found = pa.table(table)
    except Exception as error:  # noqa: BLE001  (a stream or a query may raise anything)
        offers = hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__")
        raise InputError(
            f"A {type(table).__name__} cannot be read as a table: {_first_line(error)}.",
            _advice(table),
        ) from (error if offers else None)
    if not found.column_names:
        raise InputError(f"The table (a {type(table).__name__}) has no columns.", _advice(table))
    return _ArrowTable(found)


def texts(table: MemoryTable, names: Sequence[str]) -> pa.Table:
    """Return the columns to classify as an Arrow table; names that the table has not are left out.

    Raises InputError where a column cannot be read, or has the name of another one.
    """
    columns = {}
    for position, name in enumerate(table.names):
        if name not in names:
            continue
        if name in columns:
            raise InputError(f"The table: two columns are named {name!r}.", "Rename one of them.")
        try:
            column = table.column(position)
        except Exception as error:
            raise InputError(
                f"The column {name!r} cannot be read as text: {_first_line(error)}.",
                "Convert it to text first.",
            ) from error
        if column.null_count == len(column):
            # A DataFrame has some type even for a column without values.
            column = pa.nulls(len(column), pa.string())
        elif pa.types.is_dictionary(column.type):
            # Parquet gives text that is not UTF-8 back only with an index of this width.
            column = column.cast(pa.dictionary(pa.int32(), column.type.value_type))
        columns[name] = column
    return pa.table(columns)


def _advice(table: Any) -> str:
    if isinstance(table, str | bytes) or hasattr(table, "__fspath__"):
        return "For files, use pipeline.run or `classify run`."
    if hasattr(table, "to_frame"):
        return "A single column is no table: pass the result of its to_frame()."
    return (
        "Pass a pandas or polars DataFrame, a pyarrow Table, a DuckDB relation, or anything else "
        "with the Arrow PyCapsule interface."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


class _ArrowTable:
    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.names: list[str] = table.schema.names
        self.rows: int = table.num_rows

    def first(self, rows: int) -> MemoryTable:
        return _ArrowTable(self._table.slice(0, rows))

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        return self._table.column(position)

    def with_results(self, results: pa.Table) -> Any:
        table = self._table
        for field, column in zip(results.schema, results.columns, strict=True):
            table = table.append_column(field, column)
        return table


class _PolarsTable:
    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.names: list[str] = frame.columns
        self.rows: int = frame.height

    def first(self, rows: int) -> MemoryTable:
        return _PolarsTable(self._frame.head(rows))

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        import polars as pl

        # Its own string views cannot be written to Parquet inside dictionaries.
        column = self._frame.to_series(position)
        return column.to_arrow(compat_level=pl.CompatLevel.oldest())

    def with_results(self, results: pa.Table) -> Any:
        import polars as pl

        added = pl.from_arrow(results)
        assert isinstance(added, pl.DataFrame)
        return self._frame.hstack(added)


class _PandasTable:
    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.names = [str(name) for name in frame.columns]
        self.rows = len(frame)

    def first(self, rows: int) -> MemoryTable:
        return _PandasTable(self._frame.iloc[:rows])

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        """Read a column; what is no text in it (it may hold anything) is an error of its row.

        Such a value becomes bytes that are no UTF-8, which the resolver reports.
        """
        series = self._frame.iloc[:, position]
        try:
            return pa.array(series, from_pandas=True)
        except (pa.ArrowException, UnicodeEncodeError):
            values = [
                value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b"\xff"
                for value in series
            ]
            present = series.notna().to_numpy()
            return pa.array(values, pa.large_binary(), mask=~present).view(pa.large_string())

    def with_results(self, results: pa.Table) -> Any:
        added = results.to_pandas()
        return self._frame.assign(**{str(name): added[name].array for name in added})
