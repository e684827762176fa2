"""Demand: how much input is wanted, and when a batch goes out that is not full.

What is known of the input changes in several places; what follows from it is worked out in one,
`_weigh`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.pool.batching import Batcher
    from pipeline.system.threads import Stop

# So many chunks may be on their way to the pool: read, and their inputs being looked up.
MOST_EXPECTED = 3


class Demand:
    """What the pool knows of the input to come; `enough` inputs keep all requests full."""

    def __init__(self, batcher: Batcher, enough: Callable[[], int], stop: Stop) -> None:
        self._batcher = batcher
        self._enough = enough
        self._stop = stop
        # All that changes: chunks that were announced and have not come, inputs without an
        # outcome, whether reading waits for these, and whether it is at its end.
        self._expected = self._open_inputs = 0
        self._blocked = self._ended = False
        self._hungry = asyncio.Event()
        self._hungry.set()

    def expect(self) -> None:
        """Hear that one more chunk will come, so that it is worth waiting for to fill a batch."""
        self._expected += 1
        self._weigh()

    def came(self, inputs: int) -> None:
        """Hear that a chunk that was expected has come, with so many inputs to ask."""
        self._expected -= 1
        self._open_inputs += inputs
        self._weigh()

    def settled(self, inputs: int) -> None:
        """Hear that so many inputs have their outcome."""
        self._open_inputs -= inputs  # weighed when their batch is finished

    def batch_finished(self) -> None:
        """Hear that a batch has all its outcomes."""
        self._batcher.finished()
        self._weigh()

    def block(self, blocked: bool) -> None:
        """Hear whether new input must wait until the oldest is answered."""
        self._blocked = blocked
        self._weigh()

    def end(self) -> None:
        """Hear that nothing more will be expected."""
        self._ended = True
        self._weigh()

    def stop(self) -> None:
        """Keep nobody waiting: the pool has stopped."""
        self._weigh()

    async def hungry(self) -> None:
        """Wait until more input is worth having: enough to keep `concurrency` requests full."""
        await self._hungry.wait()

    @property
    def more_to_come(self) -> bool:
        """True if inputs wait or are still to come, beside those that batches took."""
        return not self._ended or self._expected > 0 or self._batcher.waiting

    def _weigh(self) -> None:
        wanted = self._expected < MOST_EXPECTED and self._open_inputs < self._enough()
        if wanted or self._stop.reason is not None:
            self._hungry.set()
        else:
            self._hungry.clear()
        # A batch that is not full goes out if no input can come to fill it: at the end, and if the
        # reader waits for what waits here.
        stalled = self._blocked and not self._batcher.outstanding
        if not self._expected and (self._ended or stalled):
            self._batcher.flush()
