"""`classify report`: a page on a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.evaluate import label_map_of, label_map_option
from pipeline.cli.output import failing, say
from pipeline.cli.settings import run_arguments
from pipeline.errors import SettingsError
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
@click.option(
    "--columns",
    metavar="NAME,...",
    multiple=True,
    help="Columns to show beside the text of rows; may be repeated.",
)
@click.option(
    "--gold", metavar="COLUMN", help="Measure the labels against the true ones of this column."
)
@label_map_option
@click.option(
    "--live",
    is_flag=True,
    help="Serve a page on this machine that follows the run, until Ctrl-C; no file is written.",
)
@click.option(
    "--port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Port on which --live serves it.  [default: any free port]",
)
def report(
    *,
    output: Place,
    run_dir: Place | None,
    page: Path | None,
    columns: tuple[str, ...],
    gold: str | None,
    label_map: tuple[str, ...],
    live: bool,
    port: int | None,
) -> None:
    """Write a page on the run of OUTPUT: labels, scores, rows to review, errors and speed.

    OUTPUT may be a run directory, such as the checkpoint of a notebook. The page is one HTML file
    that loads nothing. If the run is incomplete, it shows what is committed.

    \b
    Examples:
      classify report labelled.parquet -o monday.html
      classify report labelled.parquet --columns id,country
      classify report labelled.parquet --gold sentiment --label-map LABEL_0=negative
      classify report labelled.parquet --live

    \b
    Exit codes: 0 written, or --live was ended; 2 no run, or unreadable.
    """
    process.end_at_once()
    with failing():
        process.fit()
        from pipeline.report import serve_live, write_report

        if live and page is not None:
            raise SettingsError("--live and --page cannot be combined.", "Drop one of the two.")
        if port is not None and not live:
            raise SettingsError("--port needs --live.", "Add --live, or drop --port.")
        named = (name.strip() for each in columns for name in each.split(","))
        choice = (run_dir, [name for name in named if name], gold, label_map_of(label_map))
        if live:
            serve_live(output, *choice, port=port or 0, on_listening=_announce)
        else:
            say(f"The report is in {write_report(output, page, *choice)}")


def _announce(url: str) -> None:
    say(f"{url} follows the run; Ctrl-C ends it.")
