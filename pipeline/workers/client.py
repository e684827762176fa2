"""The client: one attempt of one request, from inputs to outcomes or to an error of the tree."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

from pipeline.errors import Cause, EndpointRefused, Retryable
from pipeline.workers.answers import read_answers, unreadable
from pipeline.workers.statuses import error_of
from pipeline.workers.token import find_token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.responses import Item, Outcome

ROUTER = "https://router.huggingface.co/hf-inference/models/"
OLD_HOST = "api-inference.huggingface.co"

# An answer of all labels to a large batch stays far below; what is larger is no answer.
MAX_ANSWER_BYTES = 64 << 20
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Target:
    """Where requests go, and the header that says who asks."""

    url: str
    token: str | None = field(default=None, repr=False)
    token_withheld: bool = False

    @classmethod
    def of(cls, config: RunConfig, embedded_url: str | None = None) -> Target:
        """Settle the target of a run; `embedded_url` is where the embedded endpoint listens.

        The token goes to https or to this machine only: elsewhere anyone could read it.
        """
        if embedded_url is not None:
            return cls(f"{embedded_url}/models/{quote(config.model_id or '')}")
        token = find_token()
        if config.endpoint == "hf":
            return cls(ROUTER + quote(config.model or ""), token)
        parts = urlsplit(config.endpoint)
        safe = parts.scheme == "https" or parts.hostname in _LOOPBACK
        return cls(
            config.endpoint, token if safe else None, token_withheld=bool(token) and not safe
        )

    @property
    def host(self) -> str:
        """The host with its port, for people and for metadata."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a good attempt gave: outcomes in the order of the inputs, and the model's revision."""

    outcomes: list[Outcome]
    status: int
    revision: str | None


class Client:
    """One aiohttp session for the run; `async with` opens and closes it."""

    def __init__(self, config: RunConfig, target: Target) -> None:
        self._url = target.url
        self._top_k = None if config.top_k == "all" else config.top_k
        parameters: dict[str, Any] = {"top_k": self._top_k}
        if config.function_to_apply is not None:
            parameters["function_to_apply"] = config.function_to_apply
        if config.truncate:
            parameters["truncation"] = True
        self._parameters = parameters
        # Exactly this content type: a charset in lower case gets a 400 from the toolkit.
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if target.token:
            self._headers["Authorization"] = f"Bearer {target.token}"
        if not config.server_cache:
            self._headers["x-use-cache"] = "false"
        self._waiting_headers = {**self._headers, "x-wait-for-model": "true"}
        self._timeout = aiohttp.ClientTimeout(total=config.timeout_s, sock_read=config.timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # The pool bounds the requests in flight. A limit here too would make an attempt wait for
        # a connection inside its own timeout.
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, items: Sequence[Item], *, wait_for_model: bool = False) -> Reply:
        """Send one request and read its answer.

        Always a list and always an explicit `top_k`: so every variant of the server answers one
        list of labels per input. Raises Retryable, RowsRejected or EndpointRefused.
        """
        assert self._session is not None
        body = orjson.dumps(
            {"inputs": [_input(item) for item in items], "parameters": self._parameters}
        )
        headers = self._waiting_headers if wait_for_model else self._headers
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                answer = await _read(response)
                if response.status == 200:  # noqa: PLR2004
                    outcomes = read_answers(answer, len(items), self._top_k)
                    return Reply(outcomes, 200, response.headers.get("x-sha"))
                raise error_of(response.status, response.headers, answer)
        except TimeoutError:
            raise Retryable(
                Cause.TIMEOUT, f"no answer within {self._timeout.total:g} s (timeout_s)"
            ) from None
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
            raise EndpointRefused(
                f"{self._url}: cannot connect safely: {error}. Check the address and its "
                "certificate."
            ) from None
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise Retryable(
                Cause.CONNECTION, f"{type(error).__name__}: {error}".rstrip(": ")
            ) from None


def _input(item: Item) -> Any:
    return item if type(item) is str else {"text": item[0], "text_pair": item[1]}


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read a body up to the size cap, so that a server gone wrong cannot fill the memory."""
    pieces, size_bytes = [], 0
    async for piece in response.content.iter_any():
        size_bytes += len(piece)
        if size_bytes > MAX_ANSWER_BYTES:
            response.close()
            raise unreadable(f"larger than {MAX_ANSWER_BYTES >> 20} MiB")
        pieces.append(piece)
    return b"".join(pieces)
