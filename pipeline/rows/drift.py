"""The drift guard: one output holds the labels of one revision of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import RevisionMoved, StoppedEarly
from pipeline.events import RevisionChanged
from pipeline.wording import setting

if TYPE_CHECKING:
    from pipeline.events import Observer


class Revision(NamedTuple):
    """The model's revision (`x-sha`), None if nobody told it.

    It was `told` by the endpoint, or else it is only what stored answers say.
    """

    name: str | None = None
    told: bool = False


NOBODY_TOLD = Revision()


class DriftGuard:
    """Knows the model's revision, as far as the endpoint or stored answers told it.

    `revision` is what an earlier attempt recorded, to begin with. If the endpoint has not told it,
    its first answer decides. Servers that tell none are not guarded.
    """

    def __init__(self, recorded: Revision, emit: Observer, *, allow_drift: bool) -> None:
        self.revision = recorded
        # True once answers of another revision were accepted.
        self.mixed = False
        self._emit = emit
        self._allow_drift = allow_drift

    def observe(self, told: str | None) -> None:
        """Take what an answer of the endpoint told.

        Raises StoppedEarly if the revision changed, RevisionMoved if it is not that of the stored
        answers.
        """
        if told is None:
            return
        was = self.revision
        if was.name is not None and told != was.name:
            change = f"The model's revision is {told}, and was {was.name}"
            if self._allow_drift:
                self.mixed = True
                self._emit(RevisionChanged(told, was.name))
            elif not was.told:
                raise RevisionMoved(told, was.name)
            else:
                raise StoppedEarly(
                    f"{change}: the labels of two models would be mixed.",
                    f"Start over with {setting('restart', 'True')} (with "
                    f"{setting('overwrite', 'True')} too if there is an output), or accept the "
                    f"mixture with {setting('allow_drift', 'True')}.",
                )
        self.revision = Revision(told, told=True)

    def assume(self, stored: str) -> None:
        """Take the revision of the newest stored answer for the model's if none is known.

        So a run whose answers are all known needs no request. With `allow_drift` it is the latest
        one of the mixture, as an answer of the endpoint is.
        """
        if self.revision.name is None or self._allow_drift:
            self.revision = self.revision._replace(name=stored)

    def accepts(self, stored: str | None) -> bool:
        """Return True if an answer that was stored under this revision may be used."""
        return stored is None or self._allow_drift or stored == self.revision.name
