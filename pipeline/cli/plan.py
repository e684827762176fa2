"""`classify plan`: the requests, duration and cost of a run."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.output import WaitPrinter, counts, failing, print_json, say
from pipeline.cli.settings import (
    SettingsCommand,
    earlier_run,
    load_config,
    setting_options,
    table_arguments,
)
from pipeline.errors import SettingsError
from pipeline.observers.words import duration, size, span
from pipeline.system import process
from pipeline.wording import counted, setting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.config import RunConfig
    from pipeline.outcomes import Item
    from pipeline.plan.forecast import Forecast, Price
    from pipeline.probing import Probe

# The most that --probe sends, unless it is told otherwise.
PROBE_REQUESTS = 30


@click.command(cls=SettingsCommand, context_settings={"max_content_width": 100})
@table_arguments()
@click.option("--restart", is_flag=True, help="As for `classify run`.")
@click.option("--ask-again", is_flag=True, help="As for `classify run`.")
@click.option("--overwrite", is_flag=True, help="As for `classify run`.")
@click.option("--update", is_flag=True, help="As for `classify run`.")
@click.option("--retry-failed", is_flag=True, help="As for `classify run`.")
@click.option("--price-per-request", metavar="X", type=float, help="Price of one request.")
@click.option(
    "--price-per-thousand", metavar="X", type=float, help="Price of a thousand texts sent."
)
@click.option(
    "--probe",
    "probes",
    is_flag=True,
    help="Measure the endpoint, with at most --probe-requests requests.",
)
@click.option(
    "--probe-requests",
    metavar="N",
    type=click.IntRange(min=8),
    help="Most requests of --probe, 8 or more; 30 by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, nothing else.")
@setting_options
def plan(
    *,
    price_per_request: float | None,
    price_per_thousand: float | None,
    probes: bool,
    probe_requests: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Estimate what `classify run` with the same arguments would send, take and cost.

    \b
    Examples:
      classify plan reviews.csv --text review --model org/name -o labelled.parquet --probe
      classify plan --config nightly.yaml --price-per-request 0.0005

    Reads the whole input, counts distinct texts and looks up known answers. Sends nothing without
    --probe, which measures several requests at once and, if --batch-size is auto, larger batches.
    The summary of the run compares the plan with the actual figures.

    \b
    Exit codes: 0 the run would begin; 2 settings or input refused; 5 output in use; with --probe
    also 4 refused by the endpoint; 75 endpoint down.
    """
    process.end_at_once()
    with failing(as_json=as_json):
        most_requests = _most_requests(probe_requests, probes=probes)
        again = earlier_run(given)
        config = load_config(given)
        process.fit(config.concurrency)
        from pipeline.job import kept
        from pipeline.plan import forecast as planning
        from pipeline.store import open_store

        found = planning.forecast(
            config,
            price=_price(price_per_request, price_per_thousand),
            measure=partial(_measure, config, most_requests) if probes else None,
            **again,
        )
        if found.resumed_rows < found.rows:
            store = open_store(config.output, config.run_dir)
            notice = kept.keep(store, found.made_for, found.to_json())
            if notice is not None:
                say(notice, err=True)
                if as_json:
                    found = replace(found, notices=(*found.notices, notice))
    if as_json:
        print_json(found.to_json())
    else:
        say("\n".join(_lines(found)))


def _most_requests(stated: int | None, *, probes: bool) -> int:
    if stated is not None and not probes:
        raise SettingsError(
            f"{setting('probe_requests')}: nothing is sent without {setting('probe')}.",
            f"Add {setting('probe')}, or leave it out.",
        )
    return stated or PROBE_REQUESTS


def _measure(config: RunConfig, most_requests: int, texts: list[Item]) -> Probe:
    from pipeline import probing

    several = len(config.addresses)
    where = f" the first of {several} addresses" if several > 1 else ""
    say(
        f"Measuring{where} with at most {most_requests} requests (--probe-requests); no answer is "
        "kept.",
        err=True,
    )
    return probing.probe(config, WaitPrinter(), texts, most_requests)


def _price(per_request: float | None, per_thousand: float | None) -> Price | None:
    from pipeline.plan.forecast import Price

    for kind, price in (("request", per_request), ("thousand", per_thousand)):
        if price is not None and not 0 <= price < math.inf:
            raise SettingsError(
                f"{setting(f'price_per_{kind}')}: {price:g} is no price.", "Give a number from 0."
            )
    if per_request is not None and per_thousand is not None:
        raise SettingsError(
            f"{setting('price_per_request')} and {setting('price_per_thousand')} are both given.",
            "Give one of the two, as the endpoint charges for requests or for texts.",
        )
    if per_request is None and per_thousand is None:
        return None
    return Price(per_request or 0.0, (per_thousand or 0.0) / 1000)


def _lines(found: Forecast) -> Iterator[str]:
    model = f", model {found.model}" if found.model else ""
    yield f"{found.output}: endpoint {found.endpoint}{model}"
    for name, words in _facts(found):
        yield f"  {name:<17} {words}"
    yield from found.notices
    if found.state == "complete":
        yield "The output is complete: `classify run` with the same arguments does nothing."
    else:
        sent = "Nothing was sent."
        if found.probe is not None:
            sent = (
                f"To measure, {counted(found.probe['requests'], 'request was', 'requests were')} "
                f"sent, of at most {found.probe['most_requests']}, with "
                f"{counted(found.probe['texts'], 'text')}; no answer is kept."
            )
        yield f"{sent} `classify run` with the same arguments does the work."


def _facts(found: Forecast) -> Iterator[tuple[str, str]]:
    done = f", {found.resumed_rows:,} of them done" if found.resumed_rows else ""
    yield "rows", f"{found.rows:,}{done}"
    if found.retried_rows is not None:
        yield "with an error", f"{found.retried_rows:,}"
    yield "distinct inputs", f"{found.distinct_inputs:,}"
    yield "duplicates", f"{found.duplicates:,}"
    yield "cannot be sent", counts(found.unsendable) or "0"
    yield "known already", f"{found.cache_hits:,}"
    yield "to be sent", f"{found.asked:,}"
    find_out = ", one of them to find out how the endpoint wants to be asked"
    canary = find_out if found.canaries else ""
    texts, exact = counted(found.texts_per_request, "text"), found.requests_are == "exact"
    requests = f"{found.requests:,}, with {texts} {'at most' if exact else 'each'}{canary}"
    yield "requests", requests if exact else f"{requests} ({found.requests_are})"
    estimate = found.probe["estimate"] if found.probe is not None else None
    known = estimate is None or estimate.most is not None
    lasts = span(found.seconds) if known else f"at most {duration(found.seconds[1])}"
    yield "duration", f"{lasts} ({found.seconds_are})"
    if estimate is not None:
        yield "measured", estimate.words
    if found.disk_bytes is not None:
        free = "" if found.disk_free_bytes is None else f", {size(found.disk_free_bytes)} free"
        yield "disk", f"about {size(found.disk_bytes)} at its worst{free}"
    if found.cost is not None:
        most = "" if exact else " at most"
        yield "cost", f"{found.cost:,.2f}{most}, without retries"
