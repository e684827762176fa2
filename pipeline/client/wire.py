"""The wire: requests go out as bytes, and what comes back becomes typed values or a typed error.

The one place where anything of a server enters: status, headers and body are text without secrets
and without broken characters from here on, and whatever else happens is an error of the tree.
"""

from __future__ import annotations

import errno
import select
import ssl
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.payload import BytesPayload

from pipeline.addresses import without_query
from pipeline.client.answers import unreadable
from pipeline.client.network import CERTIFICATE_FIX
from pipeline.errors import Cause, EndpointRefused, Retryable, Unreachable
from pipeline.foreign import redacted, redacted_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.connector import Connection
    from yarl import URL

    from pipeline.client.network import Proxy
    from pipeline.client.target import Target

# An answer of all labels to a large batch stays far below; what is larger is no answer.
MAX_ANSWER_BYTES = 64 << 20
# What aiohttp writes in one go; what is larger it writes in pieces, and the loop goes on between.
AT_ONCE_BYTES = 1 << 20
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


class Headers:
    """The headers of an answer, their values without secrets and broken characters."""

    def __init__(self, received: Mapping[str, str]) -> None:
        self._received = received

    def get(self, name: str, default: str = "") -> str:
        """Return the value of a header, whatever the case of its name."""
        value = self._received.get(name)
        if value is None:
            return default
        return redacted(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


class Told(NamedTuple):
    """What a server answered, as text without secrets; the body is bytes."""

    status: int
    headers: Headers
    body: bytes


class _Connector(aiohttp.TCPConnector):
    """Takes no idle connection on which bytes have arrived: they would be the next answer."""

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if not _has_unread(connection):
                return connection
            connection.close()
        return None


def _has_unread(connection: Connection) -> bool:
    protocol = connection.protocol
    if protocol is None or protocol.transport is None or protocol.should_close:
        return True
    # Those that the event loop has not seen yet.
    poll = select.poll()
    poll.register(protocol.transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def open_session(target: Target, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """Open the one session of a run; these headers go with each request."""
    return aiohttp.ClientSession(
        # The pool bounds the requests in flight. A limit here too would make an attempt wait for
        # a connection inside its own timeout.
        connector=_Connector(limit=0, ttl_dns_cache=60, ssl=target.certificates or True),
        # No cookies: what one answer sets must not change the next request.
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        # Not by aiohttp's `trust_env`, which would take a token out of .netrc, too.
        proxy=target.proxy.url if target.proxy else None,
        # The pool watches over the time of all attempts.
        timeout=NO_TIMEOUT,
    )


async def exchange(
    session: aiohttp.ClientSession,
    target: Target,
    method: str,
    url: URL,
    body: bytes | None,
    *,
    headers: Mapping[str, str] | None,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  (aiohttp enforces it)
) -> Told:
    """Send and receive. Raises Retryable or EndpointRefused if no answer came."""
    try:
        async with session.request(
            method,
            url,
            data=body and _payload(body),
            headers=headers,
            timeout=timeout,
            # A redirect could carry the token to another host.
            allow_redirects=False,
        ) as response:
            content = await _read(response)
            told = Told(response.status, Headers(response.headers), redacted_bytes(content))
    except TimeoutError:
        within = "in time" if timeout.total is None else f"within {timeout.total:g} s"
        raise Retryable(Cause.TIMEOUT, f"no answer {within}") from None
    except aiohttp.ClientHttpProxyError as error:
        assert target.proxy is not None
        raise _refused(target.proxy, error.status, error.message) from None
    except (aiohttp.InvalidURL, aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
        raise EndpointRefused(
            f"{without_query(target.url)}: cannot connect safely: {_words_of(error)}.",
            CERTIFICATE_FIX,
        ) from None
    except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
        by = "" if target.proxy is None else f"by the proxy {target.proxy}: "
        what = f"{by}{type(error).__name__}: {_words_of(error)}".rstrip(": ")
        unreachable = None if target.proxy else _unreachable(error)
        if unreachable is Unreachable.UNKNOWN_HOST:
            what = f"the name {url.host} cannot be resolved"
        elif unreachable is Unreachable.REFUSED:
            what = f"nothing listens at {url.host}:{url.port}"
        raise Retryable(Cause.CONNECTION, what, unreachable=unreachable) from None
    except _UNFORESEEN as error:
        raise unreadable(f"not readable ({type(error).__name__}: {_words_of(error)})") from None
    if told.status == 407 and target.proxy is not None:  # noqa: PLR2004
        raise _refused(target.proxy, told.status, "Proxy Authentication Required")
    return told


def _refused(proxy: Proxy, status: int, said: str) -> EndpointRefused | Retryable:
    what = f"The proxy {proxy} refuses: {status} {redacted(said)}"
    if status not in _PROXY_DENIES:
        return Retryable(Cause.CONNECTION, what)
    fix = f"Check user and password in {proxy.variable}, or name the host in NO_PROXY."
    return EndpointRefused(f"{what}.", fix, status=status)


def _words_of(error: BaseException) -> str:
    """Return the words of an error; those of aiohttp repeat the address, which may hold a key."""
    match error:
        case aiohttp.ClientResponseError():
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
