"""What reads a kind of file: the one place where the kinds of input come together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipeline.producer import arrow_files, columnar, csv_files, files, jsonl_files, parquet_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pyarrow as pa

    from pipeline.producer.files import SourceFile
    from pipeline.producer.footprint import Footprint
    from pipeline.producer.input_table import CsvFormat, InputFile


@dataclass(frozen=True)
class Reader:
    """How files of one kind are read; all three raise InputError.

    `settle` reads all files once, and returns the schema that holds over all of them. `schema` is
    what the beginning of one file tells. `batches` streams the rows of one file from a row on.
    """

    settle: Callable[[Sequence[SourceFile], Footprint], tuple[pa.Schema, tuple[InputFile, ...]]]
    schema: Callable[[SourceFile], pa.Schema]
    batches: Callable[[SourceFile, pa.Schema, int], Iterator[pa.RecordBatch]]


def reader_of(path: str, csv_format: CsvFormat) -> Reader:
    """Return what reads a file of this name; `csv_format` is how, if it is CSV."""
    kind = files.kind_of(path)
    if kind == "CSV":
        return Reader(
            partial(csv_files.settle_files, csv_format=csv_format),
            partial(csv_files.read_schema, csv_format=csv_format),
            partial(csv_files.read_batches, csv_format=csv_format),
        )
    if kind == "JSON Lines":
        return Reader(jsonl_files.settle_files, jsonl_files.read_schema, jsonl_files.read_batches)
    module = parquet_files if kind == "Parquet" else arrow_files
    settle = partial(
        columnar.settle_files, read_schema=module.read_schema, read_batches=module.read_batches
    )
    return Reader(settle, module.read_schema, module.read_batches)
