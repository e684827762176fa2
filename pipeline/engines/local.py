"""A pool in this process, whose requests are sent from here or by the workers of a crew."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from pipeline.client import Client, Target, dialect_of, find_token, stated_dialect
from pipeline.client.wire import Wire
from pipeline.pool import Pool
from pipeline.system.clock import Clock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pipeline.config import RunConfig
    from pipeline.engines.places import Staff
    from pipeline.engines.remote_wire import RemoteWire
    from pipeline.events import Observer
    from pipeline.system.threads import Stop


def check_endpoint(config: RunConfig) -> None:
    """Raise SettingsError for what will fail.

    That is a missing embedded model, a bad token file, or what the stated dialect cannot ask.
    """
    for address in config.addresses:
        dialect_of(stated_dialect(config, address), config)
    if config.endpoint == "local":
        # Only this endpoint needs the code of a server, so nothing else loads it.
        from pipeline.endpoint.models import check_model

        check_model(config.model_id or "")
    else:
        token = find_token(config.token_file).value
        for address in config.addresses:
            Target.of(config, token, address=address)


async def open_targets(config: RunConfig, stack: AsyncExitStack, emit: Observer) -> list[Target]:
    """Settle where requests go; `stack` ends the embedded endpoint if that is started.

    Raises SettingsError or ClassifyError if it cannot be.
    """
    if config.endpoint != "local":
        token = find_token(config.token_file)
        targets = [Target.of(config, token.value, address=each) for each in config.addresses]
        for notice in filter(None, (token.warning, *(target.notice for target in targets))):
            emit(notice)
        return targets
    from pipeline.endpoint.process import EndpointProcess

    assert config.model_id is not None
    process = await stack.enter_async_context(EndpointProcess((config.model_id,)))
    return [Target.of(config, None, process.url)]


@asynccontextmanager
async def pool_engine(
    config: RunConfig, emit: Observer, stop: Stop, requests_sent: int, staff: Staff | None = None
) -> AsyncIterator[Pool]:
    """Run a pool here, with its client and, for the endpoint `local`, the embedded endpoint.

    With `staff`, which starts workers, these send its requests. Raises SettingsError or
    ClassifyError if the endpoint cannot be asked at all, or no worker started.
    """
    async with AsyncExitStack() as stack:
        targets = await open_targets(config, stack, emit)
        wire: Callable[..., Wire | RemoteWire] = Wire
        if staff is not None:
            from pipeline.engines.crew import Crew

            crew = Crew(config, staff, emit, stop, requests_sent)
            wire = (await stack.enter_async_context(crew)).wire
        clients = [await stack.enter_async_context(Client(config, each, wire)) for each in targets]
        pool = Pool(config, clients, Clock(), emit, stop, requests_sent=requests_sent)
        yield await stack.enter_async_context(pool)
