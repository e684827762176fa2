"""`python -m pipeline.cli` is `classify`."""

from pipeline.cli import main

main(prog_name="python -m pipeline.cli")
