"""The producer: settle what the whole input is, then stream its rows as chunks.

    open_source(inputs) ──► Source.input         schema, row count, identity; before any request
                            Source.chunks(n)     rows n, n + 1, ... with bounded memory

`files` finds and watches the input files, `folders` knows what their folders say, `csv_files` (over
`csv_bytes`) and `parquet_files` read them. `csv_types` settles what the columns of a CSV hold,
`parquet_types` what those of several files hold, `storable` whether the output can hold them.
`chunks` cuts the rows, `sources` ties these together.
"""

from pipeline.producer.files import SourceFile
from pipeline.producer.input_table import InputTable
from pipeline.producer.sources import FileSource, Source, TableSource, first_rows, open_source

__all__ = [
    "FileSource",
    "InputTable",
    "Source",
    "SourceFile",
    "TableSource",
    "first_rows",
    "open_source",
]
