"""`classify status`: how far a run is."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from pipeline.cli.output import counts, failing, print_json, say
from pipeline.cli.settings import run_arguments
from pipeline.errors import OutputError
from pipeline.observers.words import duration, stored
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config_values import Place
    from pipeline.job.status import Status


@click.command()
@run_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def status(output: Place, run_dir: Place | None, *, as_json: bool) -> None:
    """Show how far the run of OUTPUT is: running, stopped or complete.

    \b
    Examples:
      classify status labelled.parquet --json

    OUTPUT may be a run directory, such as the checkpoint of a notebook. Nothing is
    changed, and running jobs are unaffected.

    \b
    Exit codes: 0 there is a run; 2 no run, or unreadable.
    """
    with failing(as_json=as_json):
        from pipeline.job.status import status_of

        found = status_of(output, run_dir)
        if found is None:
            raise _nothing(output, run_dir or f"{output}.run")
    if as_json:
        print_json(asdict(found))
    else:
        say("\n".join(_lines(found, time.time())))


def _nothing(output: Place, run_dir: Place) -> OutputError:
    nothing = OutputError(
        f"No run is recorded in {run_dir}.", "Give the path that `classify run` has as -o."
    )
    nothing.summary = {
        "state": "none",
        "exit_code": nothing.exit_code,
        "message": str(nothing),
        "output": str(output),
    }
    return nothing


def _lines(found: Status, now: float) -> Iterator[str]:
    yield f"{found.output}: {_state(found, now)}"
    again = " of a retry" if found.retry else ""
    if found.rows is not None:
        share = f" ({found.committed_rows / max(found.rows, 1):.0%})"
        yield (
            f"{found.committed_rows:,} of {counted(found.rows, 'row')} committed{share}{again}, "
            f"{found.labelled:,} labelled, {found.errors:,} with errors"
        )
    if found.answers:
        yield stored(found.answers)
    if found.labels:
        yield f"labels: {counts(found.labels)}"
    if found.rows_per_second is not None:
        left = "" if found.seconds_left is None else f", {duration(found.seconds_left)} left"
        yield (
            f"{found.requests_per_second:,.1f} requests/s, {found.rows_per_second:,.0f} rows/s "
            f"of late{left}"
        )
    if found.workers is not None:
        lost = f", {found.workers_lost:,} lost so far" if found.workers_lost else ""
        yield f"{counted(len(found.workers), 'worker')}{lost}"
        for each in found.workers:
            per_s = each["answers_per_second"]
            yield f"  {each['name']}: {each['in_flight']} in flight, {per_s:,.1f} answers/s"
    if found.waits is not None:
        about = found.waits.seconds
        hint = "" if about is None else f", which is to take about {duration(about)}"
        yield f"waiting for {duration(now - found.waits.since)} ({found.waits.reason}){hint}"
    if found.message:
        yield f"why: {found.message}"
    if not (found.message or "").endswith(found.next):
        yield f"next: {found.next}"


def _state(found: Status, now: float) -> str:
    if found.state != "running":
        return found.state
    who = f"by process {found.pid} on {found.host}" if found.pid else "by an unknown process"
    since = "" if found.since is None else f", for {duration(now - found.since)}"
    return f"running {who}{since}: {found.doing}"
