"""What a dialect is: how a server wants to be asked, and how its answers are read.

The shape of an answer is decided by what was asked, never by looking at the answer alone: a text
list sent to TEI is one pair and comes back as a well-formed wrong answer (docs/protocol.md,
"Response").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pipeline.addresses import beside
from pipeline.client.answers import excerpt, read_answers, read_list, read_object, unreadable
from pipeline.errors import EndpointRefused, SettingsError
from pipeline.wording import listed, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from yarl import URL

    from pipeline.client.discovery import Site
    from pipeline.client.statuses import Sign
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

# What to do where a model is of another kind.
CLASSIFIER = "Serve a model for text classification there, then run again."


class Limit(NamedTuple):
    """Which values of a setting a dialect honours; others would be ignored, or fail every row.

    `why` ends the sentence "... cannot be asked of this server, which ...".
    """

    honoured: tuple[Any, ...]
    why: str


class Dialect(ABC):
    """One way to ask. Its name is that of its module.

    `server` names the servers that speak it. `route` is the path below the address of the endpoint,
    empty if the address is used as given. `limits` has what cannot be asked, by setting. `signs`
    are errors that mean something else than their status says, looked at before those of all
    servers.

    What is learned of one server: `most_texts` is how many texts a request may carry, None for any
    number, and `permits` how many texts the server works on at once, None if it does not say.
    `told_by` is the page that told that it speaks this dialect, None if none did.
    """

    name: ClassVar[str] = ""
    server: ClassVar[str]
    route: ClassVar[str] = ""
    limits: ClassVar[Mapping[str, Limit]] = {}
    signs: ClassVar[tuple[Sign, ...]] = ()
    most_texts: int | None = None
    permits: int | None = None
    told_by: str | None = None

    def __init_subclass__(cls) -> None:
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, config: RunConfig) -> None:
        """Raise SettingsError for what cannot be asked in this dialect."""
        for key, (honoured, why) in self.limits.items():
            value = getattr(config, key)
            if key in config.model_fields_set and value not in honoured:
                given = "" if key == "text_pair" or value is True else f" {value}".lower()
                others = [each for each in honoured if isinstance(each, str)]
                use = f", or use {' or '.join(others)}" if others else ""
                raise SettingsError(
                    f"{setting(key)}:{given} cannot be asked of {self.server} (dialect "
                    f"{self.name}), which {why}.",
                    f"Leave it out{use}, or serve the model by another server.",
                )
        self.settle(config)

    def settle(self, config: RunConfig) -> None:
        """Take over what requests depend on."""
        self._top_k = None if config.top_k == "all" else config.top_k

    def under(self, config: RunConfig) -> Self:
        """Return this dialect, with all that it learned of the server, under other settings."""
        other = copy(self)
        other.settle(config)
        return other

    @classmethod
    def lives_at(cls, url: URL) -> bool:  # noqa: ARG003
        """Return True if an address alone says that this dialect is spoken there."""
        return False

    @classmethod
    async def recognise(cls, site: Site, config: RunConfig) -> Self | None:  # noqa: ARG003
        """Return this dialect if the pages of a server say that it speaks it, else None.

        Raises SettingsError or EndpointRefused for what cannot be asked there.
        """
        return None

    def url(self, address: str) -> str:
        """Return where to POST, given the address of the endpoint."""
        return beside(address, self.route, [self.route]) if self.route else address

    def together(self) -> Self | None:
        """Return this dialect as it tells a server to work on the texts of a request as one batch.

        None if its servers do that anyway, or cannot be told to.
        """
        return None

    @abstractmethod
    def body(self, items: Sequence[Item]) -> bytes:
        """Return the request for these inputs."""

    def read(self, answer: bytes, count: int) -> list[Outcome]:
        """Return the outcomes of `count` inputs. Raises Retryable (unreadable answer)."""
        return read_answers(read_list(answer), count, self._top_k, answer)


def read_field(answer: bytes, name: str) -> list[Any]:
    """Read the list under a name of a JSON object. Raises Retryable (unreadable answer)."""
    found = read_object(answer).get(name)
    if type(found) is not list:
        raise unreadable(f"no object with a list of {name}: {excerpt(answer)}")
    return found


def objects(page: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the objects of a list on a server's page; none if it has no such list."""
    found = page.get(name)
    return [each for each in found if type(each) is dict] if type(found) is list else []


def only_id(models: Sequence[Mapping[str, Any]], site: Site, config: RunConfig) -> str | None:
    """Return the id of the one model that a server has, None if the settings name one.

    Raises EndpointRefused if there are several to choose from.
    """
    names = [each["id"] for each in models if type(each.get("id")) is str]
    if config.model is None and len(names) > 1:
        raise EndpointRefused(
            f"Several models are served at {site.address.host}: {listed(names)}.",
            f"Name one of them with {setting('model')}.",
            at_fault="model",
        )
    return names[0] if names and config.model is None else None


def count_of(value: Any) -> int | None:
    """Return a number that a server told of itself; None unless it is one from 1 up."""
    return value if type(value) is int and value > 0 else None
