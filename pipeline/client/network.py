"""The way to the endpoint: proxies and certificates, as the environment names them."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from socket import gethostname
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from pipeline.addresses import without_query
from pipeline.errors import SettingsError
from pipeline.foreign import keep_secret

# The first is OpenSSL's own, the others are those of requests and curl.
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# What to do about a certificate that nobody here trusts.
CERTIFICATE_FIX = (
    "Check the address and its certificate. If your company or proxy uses its own certificate "
    "authority, set SSL_CERT_FILE to that authority's certificate file."
)

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the environment variable that names it; as a text it shows no password."""

    url: URL = field(repr=False)
    variable: str

    def __str__(self) -> str:
        return f"{self.url.host}:{self.url.port} ({self.variable})"


@dataclass(frozen=True)
class Way:
    """How an address is reached from this machine.

    `certificates` is None for those that every program trusts here.
    """

    url: str
    proxy: Proxy | None
    certificates: ssl.SSLContext | None = field(repr=False)

    @classmethod
    def to(cls, address: str) -> Way:
        """Return the way to an address. Raises SettingsError for a proxy or certificates."""
        proxy = proxy_for(address)
        encrypted = "https" in (urlsplit(address).scheme, proxy and proxy.url.scheme)
        return cls(address, proxy, certificates() if encrypted else None)

    @property
    def is_private(self) -> bool:
        """True if nobody in between can read what is sent."""
        parts = urlsplit(self.url)
        # Through a proxy, not even this machine is reached without leaving it.
        return parts.scheme == "https" or (parts.hostname in _LOOPBACK and self.proxy is None)

    def check_private(self) -> None:
        """Raise SettingsError if anyone in between could read a token."""
        if not self.is_private:
            raise SettingsError(
                f"{without_query(self.url)} is reached through the proxy {self.proxy} on "
                f"{gethostname()}, and anyone in between could read the token.",
                "Use an https address, or set NO_PROXY there.",
            )


def proxy_for(address: str) -> Proxy | None:
    """Return the proxy for an address, None if `NO_PROXY` names its host or there is none.

    It is that of `HTTPS_PROXY` or `HTTP_PROXY`, else of `ALL_PROXY`; the names may be in lower
    case. Raises SettingsError for a proxy that cannot be used.
    """
    url = URL(address)
    found = getproxies()
    kind = url.scheme if url.scheme in found else "all"
    if kind not in found or proxy_bypass(f"{url.host}:{url.port}"):
        return None
    given, variable = found[kind], f"{kind.upper()}_PROXY"
    if "://" not in given:
        given = f"http://{given}"
    fix = f"Set {variable} to an address such as http://host:port, or NO_PROXY to {url.host}."
    try:
        proxy = URL(given)
    except ValueError:
        raise SettingsError(f"{variable}: the proxy is not a valid address.", fix) from None
    if proxy.scheme not in ("http", "https") or proxy.host is None:
        raise SettingsError(f"{variable}: no proxy of the kind {proxy.scheme} can be used.", fix)
    for secret in filter(None, (proxy.password, proxy.raw_password)):
        keep_secret(secret)
    return Proxy(proxy, variable)


def certificates() -> ssl.SSLContext | None:
    """Return what trusts the certificates of this system, and those that the environment names.

    None if it names none. Raises SettingsError for a file or directory that holds none.
    """
    for variable in CERTIFICATE_VARIABLES:
        if place := os.environ.get(variable):
            return _trusting(variable, place)
    return None


@cache
def _trusting(variable: str, place: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    is_directory = Path(place).is_dir()
    try:
        if is_directory:
            context.load_verify_locations(capath=place)
        else:
            context.load_verify_locations(cafile=place)
    except OSError as error:  # among them ssl.SSLError
        raise SettingsError(
            f"{variable}: {place} holds no certificates: {error.strerror or error}.",
            "Set it to a file of certificates in PEM form, or take it away.",
        ) from None
    return context
