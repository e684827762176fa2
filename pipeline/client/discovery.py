"""Discovery: which dialect a server speaks, by its own pages; no text is sent.

The first page asked is `/info`, which TEI has. Another one is asked only if the server, or its
address, hints at more; a server of the Inference API has seen two pages at most by then. The pages
of a dialect itself are asked once all else speaks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from yarl import URL

from pipeline.addresses import beside
from pipeline.client.answers import read_object
from pipeline.client.dialects import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pipeline.client.dialects.base import Dialect
    from pipeline.config import RunConfig

_OK, _NOT_FOUND = 200, 404
# What an address ends with where a server of another kind is likely, and the page that tells more.
_HINTS = {"v1": "models", "invocations": "version"}
# FastAPI's own page: every route of a server that is built with it, as most are.
_ROUTES_PAGE = "openapi.json"


class Page(NamedTuple):
    """What a page held; status 0 where there was no answer."""

    status: int
    body: bytes


class Site:
    """A server of unknown kind, and its pages, each asked once.

    `address` is the one that was given, `path` its path without the route that texts go to. `last`
    is the page that was asked last.
    """

    def __init__(self, address: str, get: Callable[[str], Awaitable[tuple[int, bytes]]]) -> None:
        self.address = URL(address)
        self._get = get
        self._routes = [each.route for each in REGISTRY.values() if each.route]
        self.path = URL(beside(address, "", self._routes)).path.rstrip("/")
        ends = (self.address.path.rstrip("/"), self.path)
        hints = (_HINTS.get(path.rpartition("/")[2]) for path in ends)
        self._hint = next(filter(None, hints), None)
        self._pages: dict[str, Page] = {}
        self.last = ""

    async def page(self, name: str) -> Page:
        """Return a page below the address. Raises Retryable if the server is not ready."""
        if name not in self._pages:
            self.last = name
            where = beside(str(self.address), name, self._routes)
            self._pages[name] = Page(*await self._get(where))
        return self._pages[name]

    async def content(self, name: str) -> dict[str, Any]:
        """Return the object that a page is, empty if it is none. Raises Retryable."""
        status, body = await self.page(name)
        return read_object(body) if status == _OK else {}

    async def hints_at(self, name: str) -> bool:
        """Return True if the address hints at a page, and the server is not known by `/info`."""
        return self._hint == name and (await self.page("info")).status != _OK

    async def offers(self, *routes: str) -> bool:
        """Return True if the server tells that it has all of these routes.

        It is asked only where it has no `/info` and says so in JSON, as those built with FastAPI
        do and the inference toolkit does not.
        """
        status, body = await self.page("info")
        if self._hint is not None or status != _NOT_FOUND or not read_object(body):
            return False
        told = (await self.content(_ROUTES_PAGE)).get("paths")
        # A proxy may have added the path of the address, which the server then does not know.
        return isinstance(told, dict) and all(
            route in told or self.path + route in told for route in routes
        )


async def recognised(site: Site, config: RunConfig) -> Dialect | None:
    """Return the dialect that a server speaks, with what told it; None if nothing tells.

    Raises Retryable if the server is not ready, SettingsError or EndpointRefused for what cannot be
    asked of it.
    """
    for dialect in REGISTRY.values():
        if (found := await dialect.recognise(site, config)) is not None:
            found.told_by = f"the page /{site.last}"
            return found
    return None
