"""Tables in memory: any kind in, and the same kind out with the results appended.

Only the columns to classify are read, through Arrow; the others are never touched, so that they
may hold anything and come back as they were. Texts without a table give the results alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.wording import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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


def open_table(table: Any, text: str = "text") -> MemoryTable:
    """Take a table of any kind; what is a stream or a query is read here.

    Texts alone, in a list, a Series or an Arrow array, are a table of one column named `text`.
    Raises InputError for what is no table, and where reading it fails.
    """
    libraries = {each.__module__.partition(".")[0] for each in type(table).__mro__}
    opened = None
    if "pandas" in libraries:
        opened = _of_pandas(table, text)
    elif "polars" in libraries:
        opened = _of_polars(table, text)
    elif "datasets" in libraries:
        opened = _of_datasets(table)
    elif isinstance(table, pa.Array | pa.ChunkedArray):
        opened = _Alone(_ArrowTable(pa.table({text: table})), lambda results: results)
    elif isinstance(table, list | tuple):
        opened = _of_list(table, text)
    return opened or _of_arrow(table)


def _of_pandas(table: Any, text: str) -> MemoryTable | None:
    import pandas as pd

    if isinstance(table, pd.Series):
        return _texts_of(table, text)
    return _PandasTable(table) if isinstance(table, pd.DataFrame) else None


def _of_polars(table: Any, text: str) -> MemoryTable | None:
    import polars as pl

    if isinstance(table, pl.Series):
        return _Alone(_PolarsTable(table.to_frame(text)), pl.from_arrow)
    if isinstance(table, pl.LazyFrame):
        try:
            return _PolarsTable(table.collect(), lazy=True)
        except Exception as error:
            raise _unreadable(table, error) from error
    return _PolarsTable(table) if isinstance(table, pl.DataFrame) else None


def _of_datasets(table: Any) -> MemoryTable | None:
    import datasets

    if isinstance(table, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise InputError(
            f"A {type(table).__name__} holds several tables: {', '.join(table)}.",
            "Pass one of them, such as dataset['train'].",
        )
    if isinstance(table, datasets.IterableDataset):
        raise InputError(
            "An IterableDataset is a stream of rows.", "Load it without streaming=True."
        )
    return _Dataset(table) if isinstance(table, datasets.Dataset) else None


def _of_list(table: Sequence[Any], text: str) -> MemoryTable:
    import pandas as pd

    if table and all(isinstance(row, dict) for row in table):
        return _Rows(table)
    for position, value in enumerate(table):
        if not (value is None or isinstance(value, str)):
            raise InputError(
                f"The list is no table: at position {position} is a {type(value).__name__}.",
                "Pass texts (None for a missing one), or dicts that are all rows.",
            )
    return _texts_of(pd.Series(list(table), dtype=object), text)


def _texts_of(series: Any, text: str) -> MemoryTable:
    def only(results: pa.Table) -> Any:
        return results.to_pandas().set_axis(series.index[: results.num_rows])

    return _Alone(_PandasTable(series.to_frame(text)), only)


def _of_arrow(table: Any) -> MemoryTable:
    try:
        found = pa.table(table)
    except Exception as error:  # noqa: BLE001  (a stream or a query may raise anything)
        offers = hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__")
        raise _unreadable(table, error) from (error if offers else None)
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
                f"The column {name!r} cannot be read as text: {reason(error)}.",
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


def _unreadable(table: Any, error: Exception) -> InputError:
    what = f"A {type(table).__name__} cannot be read as a table: {reason(error)}."
    return InputError(what, _advice(table))


def _advice(table: Any) -> str:
    if isinstance(table, str | bytes) or hasattr(table, "__fspath__"):
        return "For files, use run; for a single text, pass a list of it."
    return (
        "Pass a pandas or polars DataFrame, a pyarrow Table, a DuckDB relation, a list of texts, "
        "or anything else with the Arrow PyCapsule interface."
    )


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
    """A DataFrame, or a LazyFrame that was collected and comes back as one."""

    def __init__(self, frame: Any, *, lazy: bool = False) -> None:
        self._frame = frame
        self._lazy = lazy
        self.names: list[str] = frame.columns
        self.rows: int = frame.height

    def first(self, rows: int) -> MemoryTable:
        return _PolarsTable(self._frame.head(rows), lazy=self._lazy)

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        import polars as pl

        # Its own string views cannot be written to Parquet inside dictionaries.
        column = self._frame.to_series(position)
        return column.to_arrow(compat_level=pl.CompatLevel.oldest())

    def with_results(self, results: pa.Table) -> Any:
        import polars as pl

        added = pl.from_arrow(results)
        assert isinstance(added, pl.DataFrame)
        frame = self._frame.hstack(added)
        return frame.lazy() if self._lazy else frame


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


class _Dataset:
    """A datasets.Dataset; its rows may be a selection of those in its files."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self.names: list[str] = dataset.column_names
        self.rows: int = dataset.num_rows

    def first(self, rows: int) -> MemoryTable:
        return _Dataset(self._dataset.select(range(min(rows, self.rows))))

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        name = self.names[position]
        return self._dataset.select_columns([name]).with_format("arrow")[:].column(name)

    def with_results(self, results: pa.Table) -> Any:
        import datasets

        return datasets.concatenate_datasets([self._dataset, datasets.Dataset(results)], axis=1)


class _Rows:
    """A list of dicts; a key that one of them has not is a null."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self._keys = list(dict.fromkeys(key for row in rows for key in row))
        self.names = [str(key) for key in self._keys]
        self.rows = len(rows)

    def first(self, rows: int) -> MemoryTable:
        return _Rows(self._rows[:rows])

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        import pandas as pd

        key = self._keys[position]
        values = pd.Series([row.get(key) for row in self._rows], dtype=object)
        return _PandasTable(values.to_frame()).column(0)

    def with_results(self, results: pa.Table) -> Any:
        pairs = zip(self._rows, results.to_pylist(), strict=True)
        return [{**row, **result} for row, result in pairs]


class _Alone:
    """Texts without a table; `only` makes the kind of table that the results alone are."""

    def __init__(self, table: MemoryTable, only: Callable[[pa.Table], Any]) -> None:
        self._table, self._only = table, only
        self.names, self.rows = table.names, table.rows

    def first(self, rows: int) -> MemoryTable:
        table = self._table.first(rows)
        return _Alone(table, self._only)

    def column(self, position: int) -> pa.Array | pa.ChunkedArray:
        return self._table.column(position)

    def with_results(self, results: pa.Table) -> Any:
        return self._only(results)
