"""`classify try`, and `classify run` without an output: labels on the screen, nothing kept."""

from __future__ import annotations

import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import failing, say
from pipeline.cli.settings import SettingsCommand, load_config, setting_options
from pipeline.errors import EXIT_COMPLETE, EXIT_ROWS_FAILED, ClassifyError, SettingsError
from pipeline.system import process
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from pipeline.config import RunConfig

# What is shown and not kept is for people to read.
MOST_ROWS = 1_000
# What only a table, or what is kept, has a use for.
_USELESS = ("limit", "gold", "delimiter", "encoding", "csv_escape")
KEPT = ("run_dir", "cache", "metrics_file")
_NOWHERE = {"input": "(no input)", "output": "try.parquet"}
_LEAST_TEXT = 20


@click.command("try", cls=SettingsCommand, context_settings={"max_content_width": 100})
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@setting_options
def try_(texts: tuple[str, ...], **given: Any) -> None:
    """Label each TEXT and show the result. Nothing is kept.

    \b
    Examples:
      classify try "I love it" "It broke" --model org/name --top-k all

    \b
    Exit codes: those of `classify run`.
    """
    process.end_at_once()
    with failing():
        for name in (*_USELESS, *KEPT):
            if given[name] is not None:
                raise SettingsError(
                    f"{setting(name)}: `classify try` reads no table and keeps nothing.",
                    "Leave it out.",
                )
        config = load_config(given, _NOWHERE)
        if config.text_pair is not None:
            raise SettingsError(
                f"{setting('text_pair')}: a TEXT of `classify try` has no pair.",
                "Use `classify run --limit` with a table of pairs.",
            )
        import pyarrow as pa

        code = _show(config, pa.table({config.text: pa.array(texts, pa.string())}))
    sys.exit(code)


def show_first(config: RunConfig) -> int:
    """Label the first rows of the input, `limit` of them, and show the result."""
    assert config.limit is not None
    from pipeline.probing import first_table

    return _show(config, first_table(config, config.limit), config.gold)


def _show(config: RunConfig, table: pa.Table, gold: str | None = None) -> int:
    """Label a table, show the result, and measure it if `gold` says what is true.

    Return the exit code.
    """
    from pipeline import api

    names = [name for name in (config.text, config.text_pair, gold) if name is not None]
    names = [name for name in dict.fromkeys(names) if name in table.column_names]
    settings = {
        name: getattr(config, name)
        for name in type(config).model_fields
        # Nothing is kept, and nobody watches by numbers.
        if name not in ("input", "output", "limit", "max_errors", *KEPT)
    }
    settings["gold"] = gold
    with tempfile.TemporaryDirectory(prefix="classify-") as scratch:
        labelled = api.classify(table.select(names), settings, checkpoint=scratch, progress=False)
    rows = labelled.to_pylist()
    say("\n".join(_lines(rows, config)))
    if gold is not None:
        try:
            say("\n".join(api.measured(labelled, gold, config).summary()))
        except ClassifyError as error:
            say(f"Not measured: {error}")
    failed = sum(row[config.error_column] is not None for row in rows)
    return EXIT_ROWS_FAILED if failed > (config.allowed_errors(len(rows)) or 0) else EXIT_COMPLETE


def _lines(rows: list[dict[str, Any]], config: RunConfig) -> Iterator[str]:
    """Yield a line a row: label, score and text; with several labels, a line a label."""
    found = []
    for row in rows:
        texts = [row[name] for name in (config.text, config.text_pair) if name is not None]
        text = " | ".join(" ".join(str(text).split()) for text in texts)
        if row[config.error_column] is not None:
            reason = row[config.error_column]
            found.append(("error", "", f"{reason}: {text}" if None not in texts else reason))
            continue
        decided = {"label": row[config.label_column], "score": row[config.score_column]}
        predictions = row[config.predictions_column] if config.wants_predictions else []
        # Below a threshold the label is none of them.
        unsure = [] if decided in predictions[:1] else [decided]
        for label in [*unsure, *predictions]:
            found.append((label["label"], f"{label['score']:.3f}", text))
            text = ""
    width = max(len(label) for label, _, _ in found) if found else 0
    room = max(_LEAST_TEXT, shutil.get_terminal_size().columns - width - 9)
    for label, score, text in found:
        short = text if len(text) <= room else f"{text[: room - 1]}…"
        yield f"{label:<{width}}  {score:>5}  {short}".rstrip()
