"""What stands for a wire in a client whose requests the workers of a crew send."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from yarl import URL

    from pipeline.client.target import Target
    from pipeline.client.wire import Told
    from pipeline.engines.crew import Crew


class RemoteWire:
    """Stands for a `Wire`, whose connections the workers of a crew have."""

    def __init__(self, crew: Crew, target: Target, headers: Mapping[str, str]) -> None:
        self._crew = crew
        self._target = target
        self._line = crew.set_line(None, target, headers)

    @property
    def ready(self) -> bool:
        """True if there is a worker that requests can go to."""
        return self._crew.ready

    async def until_ready(self) -> None:
        """Wait for such a worker."""
        await self._crew.until_ready()

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Send these headers from now on."""
        self._crew.set_line(self._line, self._target, headers)

    async def exchange(
        self, method: str, url: URL, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()
    ) -> Told:
        """Send and receive; see `Wire.exchange`. Raises Retryable if the worker is lost."""
        return await self._crew.exchange(self._line, method, url, body, headers)

    async def close(self) -> None:
        """Do nothing: the crew closes the connections."""
