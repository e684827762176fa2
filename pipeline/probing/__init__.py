"""The probe: a few requests to the endpoint, made as a run makes them, and what they mean.

`asking` sends them through the pool of a run and notes what comes of each, `verdicts` words it,
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
from pipeline.probing.asking import MOST_REQUESTS, ROUNDS, Findings, examine
from pipeline.probing.verdicts import Check, Probe, Verdict, judge
from pipeline.producer import first_rows
from pipeline.rows import check_columns, keys_of, open_rows, prepare
from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Item

__all__ = ["MOST_REQUESTS", "Check", "Probe", "Verdict", "first_texts", "probe"]

# Asked without an input; distinct, as a server may remember what it answered.
_PLAIN = tuple(f"This is plain text number {i}, and it is fine." for i in range(1, 13))


def probe(config: RunConfig, emit: Observer, texts: Sequence[Item]) -> Probe:
    """Ask the endpoint of a run some of these texts, or plain ones if there are none.

    `emit` gets what the pool tells, such as that the model is loading, which is waited for. Raises
    UsageError before anything is sent; what the endpoint refuses is a verdict.
    """
    check_endpoint(config)
    asked = list(dict.fromkeys(texts))[: ROUNDS * config.texts_per_request]
    plain = [(text, text) if config.text_pair else text for text in _PLAIN]
    return asyncio.run(_probe(config, asked or plain, emit, from_input=bool(asked)))


def first_texts(config: RunConfig, tables: Iterable[pa.Table] | None = None) -> list[Item]:
    """Return the distinct texts of the first of these tables that has any to ask for.

    Without tables, these are the first rows of the input, and nothing after them is read. Raises
    UsageError for an input that cannot be read so far.
    """
    if tables is None:
        first = first_rows(
            config.input,
            max_rows=stream.chunk_rows(config),
            max_bytes=stream.CHUNK_BYTES,
            delimiter=config.delimiter,
            encoding=config.encoding,
            escape=config.csv_escape,
            output=config.output,
        )
        check_columns(first.schema, config)
        tables = [first]
    for table in tables:
        rows, _ = open_rows(table, config)
        if items := prepare(rows, config, keys_of(config), first_row=0).items:
            return items
    return []


async def _probe(
    config: RunConfig, texts: list[Item], emit: Observer, *, from_input: bool
) -> Probe:
    async with AsyncExitStack() as stack:
        target, *_ = await open_targets(config, stack, emit)
        token = Token(None) if config.endpoint == "local" else find_token(config.token_file)
        found = Findings(config, target, token, from_input, dialect_of(target.dialect, config))
        await examine(found, texts, Clock(), emit)
        return judge(found)
