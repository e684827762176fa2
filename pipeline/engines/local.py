"""The local engine: a pool in this process."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

from pipeline.client import Client, Target, find_token
from pipeline.events import Notice
from pipeline.pool import Pool
from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.outcomes import Arrived, Item
    from pipeline.system.threads import Stop


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
            emit(Notice(notice))
        return target
    from pipeline.endpoint.process import EndpointProcess

    assert config.model_id is not None
    process = await stack.enter_async_context(EndpointProcess((config.model_id,)))
    return Target.of(config, None, process.url)


class LocalEngine:
    """A pool in this process, with its client and, for the endpoint `local`, the embedded endpoint.

    See `Engine` for what it does, `engine_for` for what it takes.
    """

    def __init__(
        self, config: RunConfig, emit: Observer, stop: Stop, *, requests_sent: int = 0
    ) -> None:
        self._config = config
        self._emit = emit
        self._stop = stop
        self._requests_sent = requests_sent
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            target = await open_target(self._config, stack, self._emit)
            client = await stack.enter_async_context(Client(self._config, target))
            pool = Pool(
                self._config,
                client,
                Clock(),
                self._emit,
                self._stop,
                requests_sent=self._requests_sent,
            )
            self._pool = await stack.enter_async_context(pool)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(*error)  # type: ignore[arg-type]

    async def ask(self, items: Sequence[Item], arrived: Arrived) -> None:
        """Have inputs answered by the pool."""
        await self._pool.ask(items, arrived)

    def expect(self) -> None:
        """Announce a call of `ask`."""
        self._pool.demand.expect()

    async def hungry(self) -> None:
        """Wait until more input is worth reading."""
        await self._pool.demand.hungry()

    def input_blocked(self, blocked: bool) -> None:
        """Pass on whether new input must wait for the oldest."""
        self._pool.demand.block(blocked)

    def no_more_input(self) -> None:
        """Pass on that nothing more will be expected."""
        self._pool.demand.end()
