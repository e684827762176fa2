"""`classify report`: a page on a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import failing, say
from pipeline.cli.settings import run_arguments
from pipeline.system import process

if TYPE_CHECKING:
    from pipeline.config_values import Place


@click.command()
@run_arguments
@click.option(
    "-o",
    "--page",
    metavar="PAGE.html",
    type=click.Path(path_type=Path),
    help="Where to write it.  [default: OUTPUT.html]",
)
def report(output: Place, run_dir: Place | None, page: Path | None) -> None:
    """Write a page on the run of OUTPUT: labels, scores, rows to review, errors and speed.

    OUTPUT may be a run directory, such as the checkpoint of a notebook. The page is one HTML file
    that loads nothing. If the run is incomplete, it shows what is committed.

    \b
    Examples:
      classify report labelled.parquet -o monday.html

    \b
    Exit codes: 0 written; 2 no run, or unreadable.
    """
    process.end_at_once()
    with failing():
        process.fit()
        from pipeline.report import write_report

        written = write_report(output, page, run_dir)
    say(f"The report is in {written}")
