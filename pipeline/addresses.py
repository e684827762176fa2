"""Addresses and model ids, as people paste them.

yarl is imported where it is needed: `classify --help` does without.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import SettingsError
from pipeline.foreign import keep_secret
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterable

# A parameter of an address that is named so holds a key.
_SECRET = re.compile(r"code|sig|auth|.*(?:key|token|secret|passw(?:or)?d|pwd|signature|credential)")
_MODEL = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
# The page of a model, where its address was copied instead of its id.
_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/", re.IGNORECASE)


def public(address: str) -> str:
    """Return an address without the keys in its query, which are secrets from now on.

    What is no address of HTTP, such as `local`, stays as it is.
    """
    if "?" not in address or not address.startswith("http"):
        return address
    from yarl import URL

    url = URL(address)
    kept = [(name, value) for name, value in url.query.items() if not _is_secret(name)]
    for name, value in url.query.items():
        if _is_secret(name):
            keep_secret(value)
    return address if len(kept) == len(url.query) else str(url.with_query(kept))


def names_secret(query: str) -> bool:
    """Return True if a part of a query has the name of a key, as in a link that is signed."""
    return any("=" in part and _is_secret(part.partition("=")[0]) for part in query.split("&"))


def without_query(address: str) -> str:
    """Return what is before the query of something that may be no address at all."""
    return address.partition("?")[0]


def without_secrets(address: str) -> str:
    """Return what no user, password or key can be in, of something that may be no address."""
    scheme, _, rest = address.partition(":")
    return f"{scheme}://..." if "@" in rest or ":" in rest else without_query(address)


def beside(address: str, page: str, routes: Iterable[str]) -> str:
    """Return the address of a page below that of an endpoint, which may end with one of `routes`.

    The query stays: it may hold the key.
    """
    from yarl import URL

    url = URL(address)
    path = url.raw_path.removesuffix("/")
    for route in routes:
        path = path.removesuffix(f"/{route}")
    return str(url.with_path(f"{path}/{page}", encoded=True, keep_query=True))


def plain_model_id(given: str) -> str:
    """Return a model id without the blanks, slashes and the address that were copied with it."""
    model = given.strip()
    if page := _PAGE.match(model):
        model = without_query(model[page.end() :]).partition("#")[0]
        model = model.strip("/").removesuffix("/tree/main")
    return model.strip("/")


def check_model_id(model: str) -> None:
    """Raise SettingsError for what is no id of a model on the Hugging Face Hub."""
    if _MODEL.fullmatch(model) and ".." not in model:
        return
    fix = f"Give the model's id: {setting('model', 'org/name')}."
    plain, colon, provider = model.partition(":")
    if colon and _MODEL.fullmatch(plain):
        fix = (
            f"Leave out {':' + provider!r}: requests go to hf-inference, and to no other provider. "
            f"Set {setting('model', plain)}."
        )
    raise SettingsError(f"{setting('model')}: {model!r} is no model id.", fix)


def check_address(address: str) -> None:
    """Raise SettingsError for what no request can be sent to."""
    from yarl import URL

    try:
        parts = urlsplit(address)
        _ = parts.port
        if parts.scheme:
            URL(address)
            # As the resolver will; it knows neither empty labels nor those of more than 63 bytes.
            (parts.hostname or "").encode("idna")
    except ValueError as error:
        why = (
            "a part of its host is empty or too long" if isinstance(error, UnicodeError) else error
        )
        raise SettingsError(
            f"{setting('endpoint')}: {without_query(address)!r} is no address: {why}."
        ) from None
    if "@" in parts.netloc:
        raise SettingsError(
            f"{setting('endpoint')}: the address holds a user or a password, which would end up in "
            "logs and in the output.",
            "Put a token into HF_TOKEN instead.",
        )


def _is_secret(name: str) -> bool:
    return _SECRET.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())) is not None
