"""The drift guard: one output holds the labels of one revision of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import StoppedEarly
from pipeline.events import Notice

if TYPE_CHECKING:
    from pipeline.events import Observer


class Revision:
    """The model's revision (`x-sha`), as far as the endpoint or stored answers told it.

    `expected` is what an earlier attempt recorded. Servers that tell none are not guarded.
    """

    def __init__(self, expected: str | None, emit: Observer, *, allow_drift: bool) -> None:
        self.current = expected
        self._emit = emit
        self._allow_drift = allow_drift

    def observe(self, told: str | None) -> None:
        """Take what an answer told. Raises StoppedEarly where the revision changed."""
        if told is None or told == self.current:
            return
        if self.current is not None:
            change = f"The model's revision is {told}, and was {self.current}"
            if not self._allow_drift:
                raise StoppedEarly(
                    f"{change}: the labels of two models would be mixed. Start over with "
                    "--restart (with --overwrite too, where there is an output, and with a new "
                    "`cache`, if there is one), or accept the mixture with --allow-drift."
                )
            self._emit(Notice(f"{change}; going on, as allow_drift says."))
        self.current = told

    def accepts(self, stored: str | None) -> bool:
        """Whether an answer that was stored under this revision may be used.

        The first stored answer counts as told by the endpoint, so that a run whose answers are
        all known needs no request.
        """
        if stored is None or self._allow_drift:
            return True
        if self.current is None:
            self.current = stored
        return stored == self.current
