"""The writer stage: commits resolved chunks as parts and assembles the parts into the output."""

from pipeline.writer.assembly import assemble
from pipeline.writer.parts import is_stream, read_part, write_part

__all__ = ["assemble", "is_stream", "read_part", "write_part"]
