"""The allowance: how many rows may fail (`max_errors`) before the run stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import TooManyErrors
from pipeline.wording import counted, sentence, setting

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class Allowance:
    """Counts rows that failed: `committed` by earlier attempts, and those of this pass.

    An input that failed is a row at least, and is counted as soon as its answer comes; how many
    rows have it is known when they are committed.
    """

    def __init__(self, config: RunConfig, rows: int, committed: int) -> None:
        self._allowed = config.allowed_errors(rows)
        self._stated = config.max_errors
        self._before = committed
        self._inputs = self._rows = 0
        self._last = ""

    def input_failed(self, message: str) -> None:
        """Count an input that failed. Raises TooManyErrors."""
        self._inputs += 1
        self._last = f" The last one: {sentence(message)}"
        self.check()

    def rows_failed(self, rows: int) -> None:
        """Count committed rows. Raises TooManyErrors."""
        self._rows += rows
        self.check()

    def check(self) -> None:
        """Raise TooManyErrors if more rows failed than may."""
        failed = self._before + max(self._inputs, self._rows)
        if self._allowed is not None and failed > self._allowed:
            raise TooManyErrors(
                f"{counted(failed, 'row')} failed, more than max_errors allows "
                f"({self._stated}).{self._last} What was answered is kept.",
                f"Fix the cause or raise {setting('max_errors')}, then run again.",
            )
