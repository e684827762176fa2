"""The target: where requests go, settled from the settings alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from yarl import URL

from pipeline.addresses import check_address, check_model_id, plain_model_id
from pipeline.client.dialects import REGISTRY
from pipeline.client.network import Way
from pipeline.errors import SettingsError
from pipeline.events import NoToken, OldHost, TokenNotSent
from pipeline.headers import values_of
from pipeline.wording import setting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from pipeline.client.network import Proxy
    from pipeline.config import RunConfig

ROUTER = "https://router.huggingface.co/hf-inference/models/"
OLD_HOST = "api-inference.huggingface.co"


@dataclass(frozen=True)
class Target:
    """Where requests go and by which way, what says who asks, and what is known of the server.

    `dialect` is `auto` if nothing is known. `notice` is something to tell the user. `headers` go
    with each request; their values are secrets. `certificates` is None for those that every program
    trusts here.
    """

    url: str
    dialect: str
    token: str | None = field(default=None, repr=False)
    notice: NoToken | OldHost | TokenNotSent | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: Proxy | None = None
    certificates: ssl.SSLContext | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_address(self.url)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        token: str | None,
        embedded_url: str | None = None,
        *,
        address: str | None = None,
    ) -> Target:
        """Settle the target of an address of the run, the first if none is given.

        `embedded_url` is where the embedded endpoint listens. The token goes to https or to this
        machine only: elsewhere anyone could read it. Raises SettingsError for an address, a proxy,
        a header or a certificate that cannot be.
        """
        if embedded_url is not None:
            # At its root is the one model that it was started with, whatever path that has.
            return cls(embedded_url, stated_dialect(config, address))
        notice: NoToken | OldHost | TokenNotSent | None
        url, notice = _url_of(address or config.addresses[0], config.model or "")
        way, host = Way.to(url), urlsplit(url).hostname
        headers = values_of(config.header_from)
        if headers and not way.is_private:
            raise SettingsError(
                f"{setting('header_from')}: {host} is neither https nor this machine, "
                f"and anyone in between could read {', '.join(headers)}.",
                "Use an https address.",
            )
        if token and not way.is_private:
            token, notice = None, TokenNotSent(host or "")
        if not token and config.endpoint == "hf" and not headers:
            notice = NoToken()
        dialect = stated_dialect(config, address)
        return cls(url, dialect, token, notice, headers, way.proxy, way.certificates)


def _url_of(address: str, model: str) -> tuple[str, OldHost | None]:
    """Return where an address leads; the serverless API is reached by its router."""
    parts = urlsplit(address)
    if address == "hf":
        return _routed(model), None
    if parts.hostname != OLD_HOST:
        return address, None
    given = parts.path.removeprefix("/models/").strip("/") or model
    if not given:
        raise SettingsError(
            f"{setting('endpoint')}: {OLD_HOST} is no longer served, and names no model here.",
            f"Set {setting('endpoint', 'hf')} and {setting('model', 'org/name')}.",
        )
    model = plain_model_id(given)
    check_model_id(model)
    return _routed(model), OldHost(model)


def _routed(model: str) -> str:
    return str(URL(ROUTER) / model)


def stated_dialect(config: RunConfig, address: str | None = None) -> str:
    """Return the dialect, as far as settings and address tell it; `auto` if the server has to."""
    if config.dialect != "auto":
        return config.dialect
    if config.endpoint == "local":
        return "hf"
    url = URL(address or config.addresses[0])
    return next((each.name for each in REGISTRY.values() if each.lives_at(url)), "auto")
