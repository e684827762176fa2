"""`classify probe`: checks whether the endpoint is ready for a run."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import WaitPrinter, failing, print_json
from pipeline.cli.settings import SettingsCommand, load_config, setting_options, table_arguments
from pipeline.foreign import safe
from pipeline.system import process
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.probing import Check, Probe

_NO_INPUT = "(no input)"
_WIDEST = 110
_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "bright_black"}
_SUMS = {
    "ok": "All is well: a run can begin.",
    "warning": "A run can begin; look at the warnings first.",
}


@click.command(cls=SettingsCommand, context_settings={"max_content_width": 100})
@table_arguments(output="As for `classify run`; not touched.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, nothing else.")
@setting_options
def probe(*, as_json: bool, **given: Any) -> None:
    """Try the endpoint with a few requests, and suggest a fix for each problem.

    \b
    Examples:
      classify probe reviews.csv --text review --endpoint https://my-endpoint.example

    Sends at most 8 requests, as `classify run` would, with texts of INPUT if it is given; answers
    are not kept. Waits up to --max-loading-s for a loading model, which does not count. Tries each
    of several addresses.

    \b
    Exit codes: 0 a run can begin (one address is enough); 2 wrong settings or input; 4 refused by
    the endpoint; 75 endpoint down or still loading.
    """
    process.end_at_once()
    with failing(as_json=as_json):
        config = load_config(given, {"input": _NO_INPUT, "output": "probe.parquet"})
        process.fit(config.concurrency)
        from pipeline import probing

        texts = probing.first_texts(config) if config.input != (_NO_INPUT,) else ()
        found = [probing.probe(config.at(each), WaitPrinter(), texts) for each in config.addresses]
    # A run goes on with the addresses that work.
    ends = 0 if any(each.exit_code == 0 for each in found) else found[0].exit_code
    if not as_json:
        click.echo("\n\n".join("\n".join(_lines(each)) for each in found))
    elif config.is_list:
        print_json({"addresses": [each.to_json() for each in found], "exit_code": ends})
    else:
        print_json(found[0].to_json())
    sys.exit(ends)


def _lines(found: Probe) -> Iterator[str]:
    model = f", model {found.model}" if found.model else ""
    yield safe(f"{found.url}{model}")
    indent = " " * 22
    room = min(shutil.get_terminal_size().columns, _WIDEST) - len(indent)
    for verdict, name, seen, fix in _grouped(found.checks):
        words = [
            line
            for text in (seen, fix or "")
            for line in textwrap.wrap(text, max(room, 30), break_long_words=False)
        ]
        styled = click.style(f"{verdict:<8}", fg=_COLOURS[verdict])
        yield f"  {styled} {name:<10} " + f"\n{indent}".join(words)
    loading = f", {found.loading_requests} of them while it loaded" * bool(found.loading_requests)
    sent, texts = counted(found.requests, "request"), counted(found.texts, "text")
    yield f"Sent {sent}{loading}, with {texts} in all."
    yield _SUMS.get(found.state) or f"A run would end with exit code {found.exit_code}."


def _grouped(checks: Sequence[Check]) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield verdict, name, what was seen and the fix; checks that saw nothing are one line."""
    unseen = [check for check in checks if check.seen == checks[-1].seen]
    for check in checks if len(unseen) == 1 else [c for c in checks if c not in unseen]:
        yield check.verdict.value, check.name, check.seen, check.mend
    if len(unseen) > 1:
        names = ", ".join(check.name for check in unseen)
        yield unseen[0].verdict.value, "the rest", f"{names}. {unseen[0].seen}", None
