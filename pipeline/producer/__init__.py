"""The producer: settle what the whole input is, then stream its rows as chunks.

    open_source(inputs) ──► Source.input         schema, row count, identity; before any request
                            Source.chunks(n)     rows n, n + 1, ... with bounded memory

`files` finds and watches the input files, `folders` knows what their folders say, `stdin` stores
what comes through a pipe. `readers`
chooses what reads a kind: `csv_files` and `jsonl_files` (over `text_bytes`), which settle types by
`csv_types` and `json_types`, or `parquet_files` and `arrow_files`, whose schemas `columnar` joins
by `parquet_types`. `storable` tells whether the output can hold them. `chunks` cuts the rows,
`sources` ties these together.
"""

from pipeline.producer.chunks import MAX_CHUNK_BYTES
from pipeline.producer.files import SourceFile
from pipeline.producer.input_table import InputTable
from pipeline.producer.sources import FileSource, Source, first_rows, open_source
from pipeline.producer.table_source import TableSource

__all__ = [
    "MAX_CHUNK_BYTES",
    "FileSource",
    "InputTable",
    "Source",
    "SourceFile",
    "TableSource",
    "first_rows",
    "open_source",
]
