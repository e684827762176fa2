"""The client: one attempt of one request, from inputs to outcomes or to an error of the tree."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Self

from yarl import URL

from pipeline.client.dialects import dialect_of
from pipeline.client.discovery import Site, recognised
from pipeline.client.statuses import binding_hint_s, error_of
from pipeline.client.target import ROUTER
from pipeline.client.token import find_token
from pipeline.client.wire import Wire, within
from pipeline.errors import Cause, Retryable, SettingsError
from pipeline.foreign import keep_secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipeline.client.dialects.base import Dialect
    from pipeline.client.target import Target
    from pipeline.client.wire import Exchanges, Told
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

# Asking what a server is must not take long: most have no such page.
INFO_TIMEOUT_S = 10.0
# Hugging Face's dedicated Inference Endpoints.
DEDICATED_HOST = ".endpoints.huggingface.cloud"
_WAIT_FOR_MODEL = (("x-wait-for-model", "true"),)
_parsed = lru_cache(8)(URL)


class Reply(NamedTuple):
    """What a good attempt gave: outcomes in the order of the inputs, and what the server told.

    `revision` is the model's (`x-sha`). `pause_s` is how long the server wants no more requests
    after this one (a RateLimit header with nothing remaining).
    """

    outcomes: list[Outcome]
    revision: str | None
    pause_s: float | None


class Client:
    """The connections of a run; `async with` opens and closes it.

    `wire` makes what exchanges requests for answers, of a target and headers. `dialect` may change
    while the server is being met: see `introduction`.
    """

    def __init__(
        self, config: RunConfig, target: Target, wire: Callable[..., Exchanges] = Wire
    ) -> None:
        self._config = config
        self._target = target
        self._make_wire = wire
        self.dialect: Dialect = dialect_of(target.dialect, config)
        # Exactly this content type: a charset in lower case gets a 400 from the toolkit.
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if config.bill_to:
            self._headers["X-HF-Bill-To"] = config.bill_to
        if (URL(target.url).host or "").endswith(DEDICATED_HOST):
            # So the proxy holds a request while the endpoint scales up from zero.
            self._headers["X-Scale-Up-Timeout"] = f"{math.floor(0.9 * config.timeout_s)}"
        if not config.server_cache:
            self._headers["x-use-cache"] = "false"
        self._headers |= target.headers
        self._token = target.token
        self._looked_for: str | None = None
        if target.token:
            keep_secret(target.token)
            self._headers["Authorization"] = f"Bearer {target.token}"
        self._renewing = asyncio.Lock()
        self._wire: Exchanges | None = None

    async def __aenter__(self) -> Self:
        self._wire = self._make_wire(self._target, self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._wire is not None
        await self._wire.close()

    @property
    def ready(self) -> bool:
        """True if a request can go out now."""
        return self._wire is not None and self._wire.ready

    async def until_ready(self) -> None:
        """Wait until a request can go out, or the run is to stop."""
        assert self._wire is not None
        await self._wire.until_ready()

    @property
    def address(self) -> str:
        """Where requests go."""
        return self._target.url

    @property
    def knows_dialect(self) -> bool:
        """True if the dialect is given; otherwise it has to be found out."""
        return self._target.dialect != "auto"

    @property
    def single(self) -> Dialect:
        """The dialect of one text a request, which every server takes."""
        return dialect_of("single", self._config)

    def use_single(self) -> None:
        """From now on, send one text a request."""
        self.dialect = self.single

    async def discover(self) -> int | None:
        """Ask the server what it is, and take the dialect that it says it speaks.

        Returns how many texts it works on at once, if it says so. Only servers of people's own are
        asked; one that says nothing is taken for hf. Raises Retryable if the server is not ready,
        EndpointRefused for a model that is no classifier, SettingsError for what cannot be asked.
        """
        if not self._target.url.startswith(ROUTER):
            site = Site(self._target.url, self._page)
            self.dialect = await recognised(site, self._config) or self.dialect
        return self.dialect.permits

    async def _page(self, url: str) -> tuple[int, bytes]:
        """GET a page that need not be there; status 0 stands for no answer. Raises Retryable."""
        timeout_s = min(INFO_TIMEOUT_S, self._config.timeout_s)
        try:
            status, headers, body = await self._exchange("GET", _parsed(url), timeout_s=timeout_s)
        except Retryable as failure:
            if failure.cause in (Cause.CONNECTION, Cause.WORKER_LOST):
                raise
            return 0, b""
        if status == 429 or status >= 500:  # noqa: PLR2004
            raise error_of(status, headers, body)
        return status, body

    async def ask(
        self, items: Sequence[Item], *, wait_for_model: bool = False, together: bool = False
    ) -> Reply:
        """Send one request and read its answer.

        `together` tells the server to work on the texts as one batch, if it can be told. It takes
        as long as it takes: the caller cancels an attempt that is overdue. Raises Retryable,
        RowsRejected or EndpointRefused.
        """
        dialect, token = self.dialect, self._token
        if together:
            dialect = dialect.together() or dialect
        status, headers, body = await self._exchange(
            "POST",
            _parsed(dialect.url(self._target.url)),
            dialect.body(items),
            headers=_WAIT_FOR_MODEL if wait_for_model else (),
        )
        if status == 401 and await self._has_new_token(token):  # noqa: PLR2004
            what = "401: the token has expired, and there is a new one"
            raise Retryable(Cause.SERVER_ERROR, what, status=status)
        if status != 200:  # noqa: PLR2004
            raise error_of(status, headers, body, dialect.signs)
        outcomes = dialect.read(body, len(items))
        return Reply(outcomes, headers.get("x-sha") or None, binding_hint_s(headers))

    def _exchange(
        self,
        method: str,
        url: URL,
        body: bytes = b"",
        *,
        headers: tuple[tuple[str, str], ...] = (),
        timeout_s: float | None = None,
    ) -> Awaitable[Told]:
        """Send and receive; see `Wire.exchange`."""
        assert self._wire is not None
        asking = self._wire.exchange(method, url, body, headers)
        return asking if timeout_s is None else within(timeout_s, asking)

    async def _has_new_token(self, refused: str | None) -> bool:
        """Return True if there is another token than the one that was refused.

        Logins are refreshed: a token that was good when the run began may have expired. It is
        looked for once, however many requests were sent with it.
        """
        async with self._renewing:
            if refused is not None and refused == self._token and refused != self._looked_for:
                self._looked_for = refused
                with suppress(SettingsError):
                    found = await asyncio.to_thread(find_token, self._config.token_file)
                    self._token = found.value or refused
                    self._headers["Authorization"] = f"Bearer {self._token}"
                    if self._wire is not None:
                        self._wire.set_headers(self._headers)
        return self._token != refused
