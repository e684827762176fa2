"""Engines decide where chunks are resolved, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.engines.local import LocalEngine, check_endpoint, open_target

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.rows import Resolved, Revision

__all__ = ["Engine", "LocalEngine", "check_endpoint", "open_target"]


class Engine(Protocol):
    """What a run needs of an engine; used inside `async with`, which drains it at the end."""

    async def resolve(self, first_row: int, table: pa.Table) -> Resolved:
        """Give the chunk with its results. Raises whatever stopped the engine."""
        ...

    async def hungry(self) -> None:
        """Wait until another chunk is worth reading, since there may soon be too little to ask."""
        ...

    def input_blocked(self, blocked: bool) -> None:
        """Hear whether new chunks must wait for the oldest one to be resolved."""
        ...

    def no_more_input(self) -> None:
        """Hear that the last chunk has come."""
        ...

    def stop(self, reason: BaseException) -> None:
        """Send nothing more, keep what is in flight, and fail open chunks with `reason`."""
        ...

    @property
    def revision(self) -> Revision:
        """The model's revision, as far as it is known."""
        ...
