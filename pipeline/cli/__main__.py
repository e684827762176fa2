"""`python -m pipeline.cli` is `classify`."""

from pipeline.cli import console

console("python -m pipeline.cli")
