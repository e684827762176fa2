"""The local engine: chunks are resolved in this process."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

from pipeline.client import Client, Target, find_token
from pipeline.pool import Pool
from pipeline.rows import Dedup, Resolver
from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.responses import ResponseStores
    from pipeline.rows import Resolved, Revision


def check_endpoint(config: RunConfig) -> None:
    """Refuse what can be known to fail: an embedded model that is missing, a token file.

    Raises SettingsError.
    """
    if config.endpoint == "local":
        # Only this endpoint needs the code of a server, so nothing else loads it.
        from pipeline.endpoint.models import check_model

        check_model(config.model_id or "")
    else:
        Target.of(config, find_token(config.token_file).value)


async def open_target(config: RunConfig, stack: AsyncExitStack, emit: Observer) -> Target:
    """Settle where requests go; `stack` ends the embedded endpoint, where that is started.

    Raises SettingsError or ClassifyError where it cannot be.
    """
    if config.endpoint != "local":
        token = find_token(config.token_file)
        target = Target.of(config, token.value)
        for notice in filter(None, (token.warning, target.notice)):
            emit(notice)
        return target
    from pipeline.endpoint.process import EndpointProcess

    assert config.model_id is not None
    process = await stack.enter_async_context(EndpointProcess((config.model_id,)))
    return Target.of(config, None, process.url)


class LocalEngine:
    """A pool, its response store and, for the endpoint `local`, the embedded endpoint.

    `threads` does the work on rows. `requests_sent` is how many were sent before, which count
    towards `max_requests`.

    Entering raises SettingsError or ClassifyError where the endpoint cannot be started, and
    StoppedEarly where the store cannot be used.
    """

    def __init__(
        self,
        config: RunConfig,
        open_store: Callable[[], ResponseStores],
        revision: Revision,
        emit: Observer,
        *,
        allowed_errors: int | None,
        threads: Executor,
        requests_sent: int = 0,
    ) -> None:
        self._config = config
        self._open_store = open_store
        self._emit = emit
        self._allowed_errors = allowed_errors
        self._threads = threads
        self._requests_sent = requests_sent
        self.revision = revision
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            target = await open_target(self._config, stack, self._emit)
            client = await stack.enter_async_context(Client(self._config, target))
            self._pool = Pool(
                self._config,
                client,
                self.revision,
                Clock(),
                self._emit,
                allowed_errors=self._allowed_errors,
                requests_sent=self._requests_sent,
            )
            # The pool is left first, so that its last answers still reach the store.
            dedup = await stack.enter_async_context(
                Dedup(self._open_store, self._emit, self.revision, self._pool.stop)
            )
            self._pool.save = dedup.save
            await stack.enter_async_context(self._pool)
            self._resolver = Resolver(self._config, self._pool, dedup, self._threads)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(*error)  # type: ignore[arg-type]

    async def resolve(self, first_row: int, table: Any) -> Resolved:
        """Give the chunk with its results. Raises whatever stopped the pool."""
        return await self._resolver.resolve(first_row, table)

    async def hungry(self) -> None:
        """Wait until another chunk is worth reading."""
        await self._pool.hungry()

    def input_blocked(self, blocked: bool) -> None:
        """Pass on whether new chunks must wait for the oldest one."""
        self._pool.input_blocked(blocked)

    def no_more_input(self) -> None:
        """Pass on that the last chunk has come."""
        self._pool.no_more_input()

    def stop(self, reason: BaseException) -> None:
        """End early; see `Pool.stop`."""
        self._pool.stop(reason)
