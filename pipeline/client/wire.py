"""The wire: requests go out as bytes, and what comes back becomes typed values or a typed error.

The one place where anything of a server enters: status, headers and body are text without secrets
and without broken characters from here on, and whatever else happens is an error of the tree.
"""

from __future__ import annotations

import asyncio
import errno
import select
import ssl
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from pipeline.addresses import without_query
from pipeline.client.answers import unreadable
from pipeline.client.network import CERTIFICATE_FIX
from pipeline.errors import Cause, EndpointRefused, Retryable, Unreachable
from pipeline.foreign import redacted, redacted_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from aiohttp import StreamReader
    from aiohttp.connector import Connection

    from pipeline.client.network import Proxy, Way
    from pipeline.client.target import Target

# An answer of all labels to a large batch stays far below; what is larger is no answer.
MAX_ANSWER_BYTES = 64 << 20
# A connection that was idle for longer may be one that the server is just closing.
KEPT_IDLE_S = 15.0
# The pool watches over the time of all attempts.
NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
# What code that reads bytes raises where nobody thought of them.
_UNFORESEEN = (
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    LookupError,
    RecursionError,
    EOFError,
)
_PROXY_DENIES = (401, 403, 407)
# The headers of an answer that anything here reads: those that a worker sends back to its run.
_READ = (
    "x-sha",
    "retry-after",
    "ratelimit",
    "location",
    "ms-azureml-model-error-statuscode",
)
# Interim answers: the answer itself is still to come. A 101 is none, and nobody asked for one.
_INFORMATION = frozenset(range(100, 200)) - {101}


class Headers:
    """The headers of an answer, their values without secrets and broken characters."""

    def __init__(self, received: Mapping[str, str]) -> None:
        self._received = received

    def get(self, name: str, default: str = "") -> str:
        """Return the value of a header, whatever the case of its name; `_READ` must have it."""
        assert name.lower() in _READ, name
        value = self._received.get(name)
        if value is None:
            return default
        return redacted(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))

    def read(self) -> dict[str, str]:
        """Return those that anything here reads."""
        return {name: self.get(name) for name in _READ if name in self._received}


class Told(NamedTuple):
    """What a server answered, as text without secrets; the body is bytes."""

    status: int
    headers: Headers
    body: bytes


class Exchanges(Protocol):
    """What a client needs of a wire; that of an engine with workers is another one."""

    @property
    def ready(self) -> bool:
        """True if requests can go out; here they always can."""

    async def until_ready(self) -> None:
        """Wait for that."""

    def exchange(
        self, method: str, url: URL, body: bytes, headers: tuple[tuple[str, str], ...]
    ) -> Awaitable[Told]:
        """Send and receive."""

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Send these headers from now on."""

    async def close(self) -> None:
        """Close all connections."""


class _Link:
    """A connection to the server, for one request after the other."""

    __slots__ = ("_connection", "_unread", "idle_since", "protocol", "transport")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        assert connection.protocol is not None
        self.protocol = connection.protocol
        assert self.protocol.transport is not None
        self.transport = self.protocol.transport
        unread = select.poll()
        unread.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._unread = unread.poll
        self.idle_since = 0.0

    def is_usable(self, now: float) -> bool:
        """Return False if it is closed or old, or if bytes have come: they would be an answer."""
        return not (
            self.transport.is_closing()
            or self.protocol.should_close
            or now - self.idle_since > KEPT_IDLE_S
            # Those that the event loop has not seen yet.
            or self._unread(0)
        )

    def close(self) -> None:
        self._connection.close()


class Wire:
    """The connections to one server, and the exchange of requests and answers on them.

    It stands on the connector and the parser of aiohttp, not on its session, whose cookies,
    redirects, logins and traces nobody wants here, and which takes two thirds of the time of a
    request (docs/decisions.md). `headers` go with each request.
    """

    ready = True

    def __init__(self, target: Target | Way, headers: Mapping[str, str]) -> None:
        self._target = target
        # The pool bounds the requests in flight. A limit here too would make an attempt wait for
        # a connection inside its own timeout.
        self._connector = aiohttp.TCPConnector(
            limit=0, ttl_dns_cache=60, ssl=target.certificates or True
        )
        self._idle: list[_Link] = []
        self._heads: dict[Any, bytes] = {}
        self.set_headers(headers)

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Send these headers from now on."""
        self._heads.clear()
        # With its first connection a request learns what a proxy asks for.
        self._close_idle()
        self._request = aiohttp.ClientRequest(
            "POST",
            URL(self._target.url),
            headers=headers,
            # Not by aiohttp's `trust_env`, which would take a token out of .netrc, too.
            proxy=self._target.proxy.url if self._target.proxy else None,
            loop=asyncio.get_running_loop(),
        )

    async def until_ready(self) -> None:
        """Wait until requests can go out."""

    @property
    def headers(self) -> Mapping[str, str]:
        """What goes with each request."""
        return self._request.headers

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._connector.closed

    async def close(self) -> None:
        """Close all connections."""
        self._close_idle()
        await self._connector.close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def exchange(
        self, method: str, url: URL, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()
    ) -> Told:
        """Send and receive. Raises Retryable or EndpointRefused if no answer came."""
        target = self._target
        try:
            link = self._take_idle() or _Link(
                await self._connector.connect(self._request, traces=[], timeout=NO_TIMEOUT)
            )
            try:
                told = await self._speak(link, self._head(method, url, headers), body)
            except BaseException:
                link.close()
                raise
            self._give_back(link)
        except TimeoutError:
            raise Retryable(Cause.TIMEOUT, "no answer in time") from None
        except aiohttp.ClientHttpProxyError as error:
            assert target.proxy is not None
            raise _refused(target.proxy, error.status, error.message) from None
        except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
            raise EndpointRefused(
                f"{without_query(target.url)}: cannot connect safely: {_words_of(error)}.",
                CERTIFICATE_FIX,
            ) from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise _lost(error, url, target.proxy) from None
        except _UNFORESEEN as error:
            raise unreadable(f"not readable ({type(error).__name__}: {_words_of(error)})") from None
        if told.status == 407 and target.proxy is not None:  # noqa: PLR2004
            raise _refused(target.proxy, told.status, "Proxy Authentication Required")
        return told

    def _take_idle(self) -> _Link | None:
        now = monotonic()
        while self._idle:
            link = self._idle.pop()
            if link.is_usable(now):
                return link
            link.close()
        return None

    def _give_back(self, link: _Link) -> None:
        # What is not all sent yet, though it is answered, would go before the next request.
        if link.protocol.should_close or link.transport.get_write_buffer_size():
            link.close()
        else:
            link.idle_since = monotonic()
            self._idle.append(link)

    def _head(self, method: str, url: URL, headers: tuple[tuple[str, str], ...]) -> bytes:
        """Return a request up to the value of its Content-Length, which is the last header.

        Called while there is a connection: with the first one, aiohttp adds what a proxy asks for.
        """
        key = method, url, headers
        if (head := self._heads.get(key)) is None:
            through = self._target.proxy is not None and url.scheme == "http"
            lines = [f"{method} {url.with_fragment(None) if through else url.raw_path_qs} HTTP/1.1"]
            for name, value in (*self._request.headers.items(), *headers):
                if name.lower() != "content-length":
                    lines.append(f"{name}: {value}")
            head = self._heads[key] = "\r\n".join([*lines, "Content-Length: "]).encode()
        return head

    async def _speak(self, link: _Link, head: bytes, body: bytes) -> Told:
        protocol = link.protocol
        protocol.set_response_params(read_until_eof=True)
        link.transport.write(b"%b%d\r\n\r\n%b" % (head, len(body), body))
        message, payload = await protocol.read()
        while message.code in _INFORMATION:
            message, payload = await protocol.read()
        content = await _read(payload)
        return Told(message.code, Headers(message.headers), redacted_bytes(content))


async def within(seconds: float, exchange: Awaitable[Told]) -> Told:
    """Have an exchange end in time. Raises Retryable (timeout) if it does not."""
    try:
        async with asyncio.timeout(seconds):
            return await exchange
    except TimeoutError as error:
        raise overdue(error.__cause__, f"no answer within {seconds:g} s") from None


def overdue(cancelled: BaseException | None, what: str) -> Retryable:
    """Return what an exchange came to that was cancelled because its time was up.

    That is a timeout, unless its wire has given the cancellation another reason.
    """
    match cancelled:
        case asyncio.CancelledError(args=(Retryable() as reason,)):
            return reason
        case _:
            return Retryable(Cause.TIMEOUT, what)


def _lost(error: Exception, url: URL, proxy: Proxy | None) -> Retryable:
    """Return the error of a connection that could not be made, or broke."""
    by = "" if proxy is None else f"by the proxy {proxy}: "
    what = f"{by}{type(error).__name__}: {_words_of(error)}".rstrip(": ")
    unreachable = None if proxy else _unreachable(error)
    if unreachable is Unreachable.UNKNOWN_HOST:
        what = f"the name {url.host} cannot be resolved"
    elif unreachable is Unreachable.REFUSED:
        what = f"nothing listens at {url.host}:{url.port}"
    return Retryable(Cause.CONNECTION, what, unreachable=unreachable)


def _refused(proxy: Proxy, status: int, said: str) -> EndpointRefused | Retryable:
    what = f"The proxy {proxy} refuses: {status} {redacted(said)}"
    if status not in _PROXY_DENIES:
        return Retryable(Cause.CONNECTION, what)
    fix = f"Check user and password in {proxy.variable}, or name the host in NO_PROXY."
    return EndpointRefused(f"{what}.", fix, status=status)


def _words_of(error: BaseException) -> str:
    """Return the words of an error; those of aiohttp repeat the address, which may hold a key."""
    match error:
        case aiohttp.ClientResponseError() | HttpProcessingError():
            return redacted(error.message)
        case aiohttp.InvalidURL():
            return "no address"
        case _:
            return redacted(str(error))


def _unreachable(error: Exception) -> Unreachable | None:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unreachable.UNKNOWN_HOST
    refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
    return Unreachable.REFUSED if refused else None


async def _read(payload: StreamReader) -> bytes:
    """Read a body up to the size cap, so that a server gone wrong cannot fill the memory."""
    pieces, size_bytes = [], 0
    while piece := await payload.readany():
        size_bytes += len(piece)
        if size_bytes > MAX_ANSWER_BYTES:
            raise unreadable(f"larger than {MAX_ANSWER_BYTES >> 20} MiB")
        pieces.append(piece)
        if payload.at_eof():
            break
    return b"".join(pieces)
