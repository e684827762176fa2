"""The target: where requests go, settled from the settings alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from yarl import URL

from pipeline.errors import SettingsError
from pipeline.events import OldHost, TokenNotSent
from pipeline.wording import setting

if TYPE_CHECKING:
    from pipeline.config import RunConfig

ROUTER = "https://router.huggingface.co/hf-inference/models/"
OLD_HOST = "api-inference.huggingface.co"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Target:
    """Where requests go, the header that says who asks, and what is known of the server.

    `dialect` is `auto` if nothing is known. `notice` is something to tell the user.
    """

    url: str
    dialect: str
    token: str | None = field(default=None, repr=False)
    notice: OldHost | TokenNotSent | None = None

    def __post_init__(self) -> None:
        try:
            URL(self.url)
        except ValueError as error:
            raise SettingsError(
                f"{setting('endpoint')}: {self.url!r} is no address: {error}."
            ) from None

    @classmethod
    def of(cls, config: RunConfig, token: str | None, embedded_url: str | None = None) -> Target:
        """Settle the target of a run; `embedded_url` is where the embedded endpoint listens.

        The token goes to https or to this machine only: elsewhere anyone could read it.
        """
        if embedded_url is not None:
            # At its root is the one model that it was started with, whatever path that has.
            return cls(embedded_url, stated_dialect(config))
        if config.endpoint == "hf":
            return cls(ROUTER + quote(config.model or ""), config.dialect, token)
        parts = urlsplit(config.endpoint)
        if parts.hostname == OLD_HOST:
            model = parts.path.removeprefix("/models/").strip("/") or config.model or ""
            if not model:
                raise SettingsError(
                    f"{setting('endpoint')}: {OLD_HOST} is no longer served, and names no model "
                    "here.",
                    f"Set {setting('endpoint', 'hf')} and {setting('model', 'org/name')}.",
                )
            return cls(ROUTER + model, config.dialect, token, OldHost(model))
        if token and parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            notice = TokenNotSent(parts.hostname or "")
            return cls(config.endpoint, config.dialect, None, notice)
        return cls(config.endpoint, config.dialect, token)


def stated_dialect(config: RunConfig) -> str:
    """Return the dialect, as far as it is known before anything is sent: `auto` if it is not."""
    embedded = config.endpoint == "local" and config.dialect == "auto"
    return "hf" if embedded else config.dialect
