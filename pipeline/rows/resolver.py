"""The resolver: one code path that turns a chunk of rows into the same rows with results."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.rows.inputs import keys_of, open_rows, prepare
from pipeline.rows.results import finish, patch
from pipeline.system.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    import pyarrow as pa

    from pipeline.config import RunConfig
    from pipeline.engines import Engine
    from pipeline.rows.dedup import Dedup
    from pipeline.rows.drift import DriftGuard
    from pipeline.rows.results import Resolved
    from pipeline.system.threads import Stop

T = TypeVar("T")


@dataclass(eq=False)
class Resolver:
    """Resolves chunks, several at a time.

    A chunk that has the result columns already is of a retry: its rows with an error are resolved.
    """

    _config: RunConfig
    _engine: Engine
    _dedup: Dedup
    _drift: DriftGuard
    _threads: Executor
    _stop: Stop

    def __post_init__(self) -> None:
        self._in_order = asyncio.Lock()
        self._keys = keys_of(self._config)

    @property
    def answer_bytes(self) -> int:
        """About how much memory the largest answers so far take."""
        return self._dedup.answer_bytes

    async def resolve(self, first_row: int, table: pa.Table) -> Resolved:
        """Return the chunk with its results. Raises whatever stopped the engine."""
        self._engine.demand.expect()
        try:
            resolved = await self._resolve(first_row, table)
        except BaseException as failure:
            # The engine waits for what was announced; nothing else would tell it.
            self._stop.ask(failure)
            raise
        return replace(resolved, revision=self._drift.revision)

    async def _resolve(self, first_row: int, table: pa.Table) -> Resolved:
        config = self._config
        rows, places = open_rows(table, config)
        # One after the other, so that earlier rows are asked for first: they are committed first.
        async with self._in_order:
            prepared = await self._in_thread(prepare, rows, config, self._keys, first_row)
        outcomes = await self._dedup.outcomes(
            prepared.items, prepared.keys, self._engine.ask, rows=rows.num_rows
        )
        found = await self._in_thread(finish, first_row, rows, prepared, outcomes, config)
        if places is None:
            return found
        at = places.to_pylist()
        return await self._in_thread(patch, first_row, table, at, found.table, config)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await in_thread(partial(call, *arguments), executor=self._threads)
