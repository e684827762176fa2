"""The writer stage: commits resolved chunks as parts and assembles the parts into the output."""

from pipeline.writer.assembly import assemble
from pipeline.writer.manifest import Manifest, PartRecord, RunRecord
from pipeline.writer.parts import identify, verified_parts, write_part

__all__ = [
    "Manifest",
    "PartRecord",
    "RunRecord",
    "assemble",
    "identify",
    "verified_parts",
    "write_part",
]
