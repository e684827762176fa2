"""The drift guard: one output holds the labels of one revision of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import RevisionMoved, StoppedEarly
from pipeline.events import RevisionChanged

if TYPE_CHECKING:
    from pipeline.events import Observer


class Revision:
    """The model's revision (`x-sha`), as far as the endpoint or stored answers told it.

    `current` is what an earlier attempt recorded, to begin with. It is `confirmed` where the
    endpoint told it: until then it is only what stored answers say, and the first answer of the
    endpoint decides. Servers that tell none are not guarded.
    """

    def __init__(
        self, current: str | None, emit: Observer, *, allow_drift: bool, confirmed: bool = True
    ) -> None:
        self.current = current
        self.confirmed = confirmed and current is not None
        self._emit = emit
        self._allow_drift = allow_drift

    def observe(self, told: str | None) -> None:
        """Take what an answer told.

        Raises StoppedEarly where the revision changed, RevisionMoved where it is not that of the
        stored answers.
        """
        if told is None:
            return
        if self.current is not None and told != self.current:
            change = f"The model's revision is {told}, and was {self.current}"
            if self._allow_drift:
                self._emit(RevisionChanged(told, self.current))
            elif not self.confirmed:
                raise RevisionMoved(told, self.current)
            else:
                raise StoppedEarly(
                    f"{change}: the labels of two models would be mixed. Start over with "
                    "--restart (with --overwrite too, where there is an output), or accept the "
                    "mixture with --allow-drift."
                )
        self.current, self.confirmed = told, True

    def assume(self, stored: str) -> None:
        """Take the revision of the newest stored answer for the model's, where none is known.

        So a run whose answers are all known needs no request. With `allow_drift` it is the latest
        one of the mixture, as an answer of the endpoint is.
        """
        if self.current is None or self._allow_drift:
            self.current = stored

    def accepts(self, stored: str | None) -> bool:
        """Whether an answer that was stored under this revision may be used."""
        return stored is None or self._allow_drift or stored == self.current
