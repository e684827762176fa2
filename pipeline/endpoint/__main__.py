"""`python -m pipeline.endpoint` is `classify serve`."""

from pipeline.cli.serve import serve

serve(prog_name="python -m pipeline.endpoint")
