"""The probe: a few requests to the endpoint, made as a run makes them, and what they mean.

`asking` sends them through the pool of a run and notes what comes of each, `measuring` sends more,
several at once, for a plan. `estimates` says what a run would do by that, `verdicts` words it all,
check by check, and `blame` finds the check that an error belongs to.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from pipeline.client import dialect_of, find_token
from pipeline.client.token import Token
from pipeline.engines.local import check_endpoint, open_targets
from pipeline.job import stream
from pipeline.probing.asking import MOST_REQUESTS, Findings, examine
from pipeline.probing.estimates import Estimate
from pipeline.probing.verdicts import Check, Probe, Verdict, judge
from pipeline.producer import MAX_CHUNK_BYTES, first_rows
from pipeline.rows import check_columns, keys_of, open_rows, prepare
from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Item

__all__ = [
    "LEAST_BATCHES",
    "MOST_REQUESTS",
    "Check",
    "Estimate",
    "Probe",
    "Verdict",
    "first_texts",
    "probe",
]

# A plan has so many batches of the largest size to choose those from that it measures with.
LEAST_BATCHES = 64
# Rows that are held to take texts from.
MOST_BYTES = 32 << 20
# Asked without an input; distinct, as a server may remember what it answered.
_PLAIN = tuple(f"This is plain text number {i}, and it is fine." for i in range(1, 13))


def probe(
    config: RunConfig,
    emit: Observer,
    texts: Sequence[Item],
    most_requests: int = MOST_REQUESTS,
) -> Probe:
    """Ask the endpoint of a run some of these texts, or plain ones if there are none.

    With more than MOST_REQUESTS, what several requests at once do is measured, too. `emit` gets
    what the pool tells, such as that the model is loading, which is waited for. Raises UsageError
    before anything is sent; what the endpoint refuses is a verdict. Of a list of addresses the
    first is asked.
    """
    check_endpoint(config)
    config = config.at(config.addresses[0])
    asked = list(dict.fromkeys(texts))
    plain = [(text, text) if config.text_pair else text for text in _PLAIN]
    return asyncio.run(_probe(config, asked or plain, emit, most_requests, from_input=bool(asked)))


def first_table(config: RunConfig, rows: int | None = None) -> pa.Table:
    """Return the first rows of the input: so many, or a chunk; fewer if there are no more.

    Raises UsageError for an input that cannot be read so far.
    """
    first = first_rows(
        config.input,
        max_rows=rows or stream.chunk_rows(config),
        max_bytes=MAX_CHUNK_BYTES if rows else stream.CHUNK_BYTES,
        delimiter=config.delimiter,
        encoding=config.encoding,
        escape=config.csv_escape,
        output=config.output_path,
    )
    check_columns(first.schema, config)
    return first


def first_texts(
    config: RunConfig, tables: Iterable[pa.Table] | None = None, enough: int = 1
) -> list[Item]:
    """Return the distinct texts of the first of these tables, until there are enough to ask for.

    Without tables, these are the first rows of the input, and nothing after them is read. Raises
    UsageError for an input that cannot be read so far.
    """
    if tables is None:
        tables = [first_table(config)]
    items: list[Item] = []
    held_bytes = 0
    for table in tables:
        rows, _ = open_rows(table, config)
        items += prepare(rows, config, keys_of(config), first_row=0).items
        held_bytes += table.nbytes
        if len(items) >= enough or (items and held_bytes > MOST_BYTES):
            break
    return items


async def _probe(
    config: RunConfig, texts: list[Item], emit: Observer, most_requests: int, *, from_input: bool
) -> Probe:
    async with AsyncExitStack() as stack:
        target, *_ = await open_targets(config, stack, emit)
        token = Token(None) if config.endpoint == "local" else find_token(config.token_file)
        dialect = dialect_of(target.dialect, config)
        found = Findings(config, target, token, from_input, dialect, most_requests)
        await examine(found, texts, Clock(), emit)
        return judge(found)
