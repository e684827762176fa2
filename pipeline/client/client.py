"""The client: one attempt of one request, from inputs to outcomes or to an error of the tree."""

from __future__ import annotations

import errno
import math
import ssl
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp.payload import BytesPayload
from yarl import URL

from pipeline.client.answers import read_object, unreadable
from pipeline.client.dialects import Single, Tei, dialect_of
from pipeline.client.statuses import binding_hint_s, error_of
from pipeline.client.target import ROUTER
from pipeline.errors import Cause, EndpointRefused, Retryable, SettingsError, Unreachable
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.client.dialects import Dialect
    from pipeline.client.target import Target
    from pipeline.config import RunConfig
    from pipeline.outcomes import Item, Outcome

# An answer of all labels to a large batch stays far below; what is larger is no answer.
MAX_ANSWER_BYTES = 64 << 20
# What aiohttp writes in one go; what is larger it writes in pieces, and the loop goes on between.
AT_ONCE_BYTES = 1 << 20
# Asking what a server is must not take long: most have no such page.
INFO_TIMEOUT_S = 10.0
# Hugging Face's dedicated Inference Endpoints.
DEDICATED_HOST = ".endpoints.huggingface.cloud"
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
_WAIT_FOR_MODEL = {"x-wait-for-model": "true"}
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
    """One aiohttp session for the run; `async with` opens and closes it.

    `dialect` may change while the server is being met: see `introduction`.
    """

    def __init__(self, config: RunConfig, target: Target) -> None:
        self._config = config
        self._target = target
        self.dialect: Dialect = dialect_of(target.dialect, config)
        # Exactly this content type: a charset in lower case gets a 400 from the toolkit.
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if target.token:
            self._headers["Authorization"] = f"Bearer {target.token}"
        if config.bill_to:
            self._headers["X-HF-Bill-To"] = config.bill_to
        if (URL(target.url).host or "").endswith(DEDICATED_HOST):
            # So the proxy holds a request while the endpoint scales up from zero.
            self._headers["X-Scale-Up-Timeout"] = f"{math.floor(0.9 * config.timeout_s)}"
        if not config.server_cache:
            self._headers["x-use-cache"] = "false"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # The pool bounds the requests in flight. A limit here too would make an attempt wait for
        # a connection inside its own timeout.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            # No cookies: what one answer sets must not change the next request.
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            # The pool watches over the time of all attempts.
            timeout=_NO_TIMEOUT,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    @property
    def knows_dialect(self) -> bool:
        """True if the dialect is given; otherwise it has to be found out."""
        return self._target.dialect != "auto"

    @property
    def single(self) -> Dialect:
        """The dialect of one text a request, which every server takes."""
        return Single(self._config)

    def use_single(self) -> None:
        """From now on, send one text a request."""
        self.dialect = self.single

    async def discover(self) -> int | None:
        """Ask the server what it is, and take TEI's dialect if it says so.

        Returns how many texts it works on at once, if it says so. Only servers of people's own are
        asked (`GET /info` is TEI's page); a server that has no such page is taken for hf. Raises
        Retryable if the server is not ready, EndpointRefused for a model that is no classifier,
        SettingsError for what TEI cannot do.
        """
        if self._target.url.startswith(ROUTER):
            return None
        parts = urlsplit(self._target.url)
        path = parts.path.removesuffix("/").removesuffix("/predict") + "/info"
        url = urlunsplit((parts.scheme, parts.netloc, path, "", ""))
        timeout = aiohttp.ClientTimeout(total=min(INFO_TIMEOUT_S, self._config.timeout_s))
        try:
            status, headers, body = await self._exchange("GET", _parsed(url), timeout=timeout)
        except Retryable as failure:
            if failure.cause is Cause.CONNECTION:
                raise
            return None
        if status == 429 or status >= 500:  # noqa: PLR2004
            raise error_of(status, headers, body)
        info = read_object(body) if status == 200 else {}  # noqa: PLR2004
        if "max_client_batch_size" not in info:
            return None
        kind = info.get("model_type")
        if isinstance(kind, dict) and "embedding" in kind:
            raise EndpointRefused(
                f"{info.get('model_id', 'The model')} at {parts.hostname} is a model for "
                "embeddings, not a classifier.",
                "Serve a model for text classification there, then run again.",
                at_fault="model",
            )
        if self._config.function_to_apply in ("sigmoid", "softmax"):
            raise SettingsError(
                f"{setting('function_to_apply')}: {self._config.function_to_apply} cannot be asked "
                "of Text Embeddings Inference, which picks it by the model.",
                "Leave it out, or use none.",
            )
        self.dialect = Tei(self._config, _count(info.get("max_client_batch_size")))
        return _count(info.get("max_concurrent_requests"))

    async def ask(self, items: Sequence[Item], *, wait_for_model: bool = False) -> Reply:
        """Send one request and read its answer.

        It takes as long as it takes: the caller cancels an attempt that is overdue. Raises
        Retryable, RowsRejected or EndpointRefused.
        """
        dialect = self.dialect
        status, headers, body = await self._exchange(
            "POST",
            _parsed(dialect.url(self._target.url)),
            dialect.body(items),
            headers=_WAIT_FOR_MODEL if wait_for_model else None,
        )
        if status != 200:  # noqa: PLR2004
            raise error_of(status, headers, body)
        outcomes = dialect.read(body, len(items))
        return Reply(outcomes, headers.get("x-sha"), binding_hint_s(headers))

    async def _exchange(
        self,
        method: str,
        url: URL,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        timeout: aiohttp.ClientTimeout = _NO_TIMEOUT,  # noqa: ASYNC109  (aiohttp enforces it)
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send and receive; the one place where aiohttp's errors become ours."""
        assert self._session is not None
        try:
            async with self._session.request(
                method,
                url,
                data=body and _payload(body),
                headers=headers,
                timeout=timeout,
                # A redirect could carry the token to another host.
                allow_redirects=False,
            ) as response:
                answer = await _read(response)
                if self._target.token:
                    # Some servers repeat the header that they refuse; messages quote the answer.
                    answer = answer.replace(self._target.token.encode(), b"[token]")
                return response.status, response.headers, answer
        except TimeoutError:
            raise Retryable(
                Cause.TIMEOUT,
                f"no answer within {timeout.total or self._config.timeout_s:g} s (timeout_s)",
            ) from None
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
            raise EndpointRefused(
                f"{self._target.url}: cannot connect safely: {error}.",
                "Check the address and its certificate.",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            unreachable = _unreachable(error)
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            if unreachable is Unreachable.UNKNOWN_HOST:
                what = f"the name {url.host} cannot be resolved"
            elif unreachable is Unreachable.REFUSED:
                what = f"nothing listens at {url.host}:{url.port}"
            raise Retryable(Cause.CONNECTION, what, unreachable=unreachable) from None


def _unreachable(error: Exception) -> Unreachable | None:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unreachable.UNKNOWN_HOST
    refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
    return Unreachable.REFUSED if refused else None


def _count(value: Any) -> int | None:
    """Return a number that a server told of itself; None unless it is one from 1 up."""
    return value if type(value) is int and value > 0 else None


def _payload(body: bytes) -> BytesPayload | BytesIO:
    """Return a body as what aiohttp would make of it, without its search among all kinds."""
    return BytesPayload(body) if len(body) <= AT_ONCE_BYTES else BytesIO(body)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read a body up to the size cap, so that a server gone wrong cannot fill the memory."""
    pieces, size_bytes = [], 0
    while piece := await response.content.readany():
        size_bytes += len(piece)
        if size_bytes > MAX_ANSWER_BYTES:
            response.close()
            raise unreadable(f"larger than {MAX_ANSWER_BYTES >> 20} MiB")
        pieces.append(piece)
    return b"".join(pieces)
