"""The writer stage: commits resolved chunks as parts and assembles the parts into the output."""

from pipeline.writer.assembly import assemble
from pipeline.writer.parts import is_stream, read_part, write_empty_part, write_part
from pipeline.writer.text_tables import check_writable, nested

__all__ = [
    "assemble",
    "check_writable",
    "is_stream",
    "nested",
    "read_part",
    "write_empty_part",
    "write_part",
]
