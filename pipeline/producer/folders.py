"""Folders: which tables lie in them, and what their names say of the rows.

A folder `country=DE` below a directory or glob that is named as the input is a column, as Spark,
DuckDB and pyarrow have it: `country`, with the value `DE` in all rows of the files inside.
"""

from __future__ import annotations

import glob
import os
import re
from fnmatch import translate
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.system.arrays import strings
from pipeline.system.paths import expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    # The keys that the folders of a file give, in order, and their values.
    Keys = tuple[tuple[str, str | None], ...]

_NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
# What a table of another format keeps beside its files, which may hold rows that it has no more.
_FORMATS = (
    ("_delta_log", "Delta", "deltalake's DeltaTable"),
    ("metadata/*.metadata.json", "Iceberg", "pyiceberg's StaticTable"),
    (".hoodie", "Hudi", "hudi's HudiTable"),
)


def root_of(name: str) -> Path:
    """Return the directory that is named, or that in which a glob begins."""
    path = expanded(name)
    if path.exists():
        return path
    fixed: list[str] = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def keys_of(path: str, root: Path) -> Keys:
    """Return the keys that the folders between `root` and a file give."""
    found = []
    for part in Path(path).relative_to(root).parts[:-1]:
        key, is_key, value = part.partition("=")
        if is_key and key:
            found.append((unquote(key), None if value == _NULL else unquote(value)))
    return tuple(found)


def check_keys(paths: Sequence[str], keys: Sequence[Keys]) -> None:
    """Raise InputError unless the folders of all files give the same keys, each once."""
    first = [name for name, _ in keys[0]]
    for path, each in zip(paths, keys, strict=True):
        names = [name for name, _ in each]
        if names != first:
            raise InputError(
                f"The folders of {path} give the columns {names}, those of {paths[0]} {first}.",
                "Name the directory in which the folders with keys begin, and no other files.",
            )
        if len(set(names)) < len(names):
            raise InputError(f"The folders of {path} give a column twice: {names}.")


def key_fields(keys: Sequence[Keys]) -> list[pa.Field]:
    """Return the columns of all files' keys: of numbers only where nothing is lost."""
    fields = []
    for position, (name, _) in enumerate(keys[0]):
        values = [value for each in keys if (value := each[position][1]) is not None]
        whole = values and all(map(_INTEGER.fullmatch, values))
        fields.append(pa.field(name, pa.int64() if whole else pa.string()))
    return fields


def with_keys(batch: pa.RecordBatch, keys: Keys, schema: pa.Schema) -> pa.RecordBatch:
    """Append the columns of a file's keys; `schema` is that of the whole table."""
    if not keys:
        return batch
    columns = list(batch.columns)
    for (_, value), kind in zip(keys, schema.types[-len(keys) :], strict=True):
        column = strings([value] * batch.num_rows)
        columns.append(column if kind == pa.string() else column.cast(kind))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def check_format(folders: set[Path]) -> None:
    """Raise InputError for folders of a table whose files are not its rows."""
    for folder in sorted({above for each in folders for above in (each, *each.resolve().parents)}):
        for marks, format_name, reader in _FORMATS:
            if any(folder.glob(marks)):
                raise _of_format(folder, format_name, reader)


def check_marks(tables: Sequence[str], paths: Sequence[str]) -> None:
    """Do the same for tables in folders of which only the paths of all files are known."""
    for marks, format_name, reader in _FORMATS:
        inside = re.compile(rf"(.*/){translate(marks)[:-2]}(/|$)")
        for folder in {found[1] for found in map(inside.match, paths) if found}:
            if any(table.startswith(folder) for table in tables):
                raise _of_format(folder, format_name, reader)


def _of_format(folder: object, format_name: str, reader: str) -> InputError:
    return InputError(
        f"{folder} is a table of {format_name}, whose files also hold rows that it no longer has.",
        f"Read it by its own reader, such as {reader}, and label what that gives: write it to a "
        "Parquet file, or pass it to classify.",
    )


def walk(directory: Path, refuse: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield all files below a directory, through links too, but for hidden folders."""
    for folder, subfolders, names in os.walk(directory, onerror=refuse, followlinks=True):
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith((".", "_")) and not is_loop(Path(folder, name))
        ]
        yield from (Path(folder, name) for name in names)


def is_loop(folder: Path) -> bool:
    """Return True if a folder is a link to one that it lies in."""
    return folder.is_symlink() and folder.resolve() in {each.resolve() for each in folder.parents}
