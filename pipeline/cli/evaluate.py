"""`classify evaluate`: how good the labels of an output are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline.cli.output import failing, print_json, say
from pipeline.cli.settings import run_arguments
from pipeline.errors import SettingsError
from pipeline.label_map import parsed
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config_values import Place


label_map_option = click.option(
    "--label-map",
    metavar="LABEL=NAME",
    multiple=True,
    help="True name of a label that the model calls otherwise; repeatable.",
)


@click.command()
@run_arguments
@click.option("--gold", metavar="COLUMN", help="Column of true labels.  [default: the run's]")
@label_map_option
@click.option("--label-column", metavar="COLUMN", help="Column of labels.  [default: the run's]")
@click.option("--score-column", metavar="COLUMN", help="Column of scores.  [default: the run's]")
@click.option(
    "--unsure-label",
    metavar="LABEL",
    help="Label of rows that were not decided.  [default: the run's, if it has a threshold]",
)
@click.option("--text", metavar="COLUMN", help="Column shown of mistakes.  [default: the run's]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
def evaluate(
    output: Place,
    run_dir: Place | None,
    gold: str | None,
    label_map: tuple[str, ...],
    *,
    as_json: bool,
    label_column: str | None,
    score_column: str | None,
    unsure_label: str | None,
    text: str | None,
) -> None:
    """Measure the labels of OUTPUT against a column of true ones.

    Shows accuracy; precision, recall and F1 by label with 95% intervals; confusions; accuracy by
    threshold; and the most confident mistakes. Nothing is sent or changed.

    \b
    Examples:
      classify evaluate labelled.parquet --gold sentiment --label-map LABEL_0=negative

    \b
    Exit codes: 0 measured; 2 no such column or table, or the run is not complete.
    """
    with failing(as_json=as_json):
        from pipeline.evaluation import evaluate as measure

        found = measure(
            output,
            gold,
            run_dir=run_dir,
            label_map=label_map_of(label_map),
            label_column=label_column,
            score_column=score_column,
            unsure_label=unsure_label,
            text=text,
        )
    if as_json:
        print_json(found.to_json())
    else:
        say(str(found))


def label_map_of(given: Sequence[str]) -> dict[str, str] | None:
    """Return the true names of labels. Raises SettingsError."""
    try:
        return parsed(",".join(given) if given else None)
    except ValueError:
        raise SettingsError(
            f"{setting('label_map')}: {' '.join(given)!r} is not allowed.",
            "It takes LABEL=NAME, such as LABEL_0=negative, once a label.",
        ) from None
