"""`classify run`: the job."""

from __future__ import annotations

import gc
import shlex
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import counts, failing, print_json, say, shares
from pipeline.cli.settings import (
    SettingsCommand,
    earlier_run,
    load_config,
    setting_options,
    table_arguments,
)
from pipeline.cli.trying import KEPT, MOST_ROWS, show_first
from pipeline.config import takes
from pipeline.errors import SettingsError
from pipeline.observers.progress import progress_for
from pipeline.observers.words import against_plan
from pipeline.system import process
from pipeline.wording import counted, setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.config import RunConfig
    from pipeline.result import RunResult

# Of what failed, so many causes.
MOST_CAUSES = 3
# What stands for the output if rows are only shown.
_SHOWN = {"output": "(shown)"}


@click.command(cls=SettingsCommand, context_settings={"max_content_width": 100})
@table_arguments()
@click.option("--restart", is_flag=True, help="Discard an unfinished run, but keep its answers.")
@click.option("--ask-again", is_flag=True, help="Discard an unfinished run and its answers.")
@click.option("--overwrite", is_flag=True, help="Replace a complete output.")
@click.option(
    "--update",
    is_flag=True,
    help="Replace a complete output whose input has changed; send only new texts.",
)
@click.option("--retry-failed", is_flag=True, help="Send rows with an error again.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, nothing else.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Format of stderr; json: one object a line.",
)
@setting_options
def run(*, as_json: bool, log_format: str, **given: Any) -> None:
    """Label the rows of INPUT (.csv, .jsonl, .parquet, .arrow: files, globs, directories, or -).

    \b
    Examples:
      classify run 'exports/*.parquet' --text review --model org/name -o labelled.parquet
      classify run --config nightly.yaml --deadline 6h --json

    Appends the columns `label`, `score` and `error`. The same command continues a stopped run, and
    does nothing once it is complete. With --limit and no -o, shows the labels of the first rows.
    Each flag is also a YAML key and an environment variable (batch_size, CLASSIFY_BATCH_SIZE).

    \b
    Exit codes: 0 complete; 2 wrong usage, settings or input; 3 errors, more than --max-errors;
    4 refused by the endpoint; 5 output in use; 75, 130 and 143 stopped, resumable.
    """
    process.end_at_once()
    progress = progress_for(sys.stderr, log_format)
    with failing(as_json=as_json, progress=progress), closing(progress):
        again = earlier_run(given)
        config = load_config(given, _SHOWN if given["limit"] else None)
        process.fit(config.concurrency)
        if str(config.output) == _SHOWN["output"]:
            flags = {"json": as_json, **again, **{name: given[name] is not None for name in KEPT}}
            _check_shown(config, [flag for flag, is_given in flags.items() if is_given])
            sys.exit(show_first(config))
        # Loaded only now: wrong settings need no Arrow.
        from pipeline import api

        gc.freeze()
        process.ignore_outside_of_the_run()
        result = api.run(config, observers=[progress], **again)
    if as_json:
        print_json(result.summary)
    else:
        say("\n".join(_outcome(result, config)))
    sys.exit(result.exit_code)


def _check_shown(config: RunConfig, flags: Sequence[str]) -> None:
    """Refuse to show more rows than anybody reads, and what only a run with an output does."""
    if flags:
        raise SettingsError(
            f"{setting('output')}: required with {setting(flags[0])}.",
            f"Give {takes('output').words}.",
        )
    if config.limit is None or config.limit > MOST_ROWS:
        raise SettingsError(
            f"{setting('output')}: required with more than {MOST_ROWS:,} rows, which are not "
            "shown.",
            f"Give {takes('output').words}.",
        )


def _outcome(result: RunResult, config: RunConfig) -> Iterator[str]:
    """Yield the lines that a run ends with: what came of it, and what to look at next."""
    found = result.summary
    yield str(result)
    if found["plan"] is not None:
        yield from _side_by_side(found)
    if found["labels"]:
        yield f"Labels: {shares(found['labels'])}"
    if found["errors"]:
        with suppress(OSError, ValueError, KeyError):  # it may have been moved by now
            causes = list(result.errors_by_cause().items())
            yield f"Errors: {counts(dict(causes[:MOST_CAUSES]))}"
        from pipeline.store.forms import CSV, JSONL, form_of

        again = "; --retry-failed asks again for these rows"
        if form_of(found["output"]) in (CSV, JSONL):  # which cannot be retried
            again = ""
        yield f"  The column {config.error_column!r} says why, row by row{again}."
    if result.exit_code:
        allowed = config.allowed_errors(found["rows"]) or 0
        yield (
            f"The exit code is {result.exit_code}: {counted(found['errors'], 'row')} with an "
            f"error, and --max-errors allows {allowed:,}."
        )
    next_steps = [f"classify report {shlex.quote(found['output'])}"]
    if found["evaluation"] is not None:
        yield from _measured(result, config)
        next_steps.insert(0, _evaluate(found["output"], config))
    yield from (f"Next: {command}" for command in next_steps)


def _measured(result: RunResult, config: RunConfig) -> Iterator[str]:
    """Yield how good the labels are, or why nobody can tell."""
    if config.label_column == f"predicted_{config.gold}":
        yield (
            f"The labels are in the column {config.label_column!r}, since {config.gold!r} has the "
            "true ones."
        )
    if result.evaluation is None:
        yield f"Not measured: {result.summary['evaluation']['message']}"
    else:
        yield from result.evaluation.summary()


def _evaluate(output: str, config: RunConfig) -> str:
    """Return the command that shows all figures."""
    words = ["classify", "evaluate", output, "--gold", config.gold or ""]
    words += [] if config.run_dir is None else ["--run-dir", str(config.run_dir)]
    return shlex.join(words)


def _side_by_side(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: what was planned and what it took."""
    rows = [("", "planned", "actual"), *against_plan(summary)]
    width = max(len(planned) for _, planned, _ in rows)
    for name, planned, actual in rows:
        yield f"  {name:<17} {planned:<{width}}  {actual}".rstrip()
