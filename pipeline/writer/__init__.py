"""The writer stage: commits resolved chunks as parts and assembles the parts into the output."""

from pipeline.writer.assembly import assemble
from pipeline.writer.parts import write_part

__all__ = ["assemble", "write_part"]
