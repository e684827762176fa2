"""`header_from`: headers that a gateway wants, and where the value of each is kept."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import SettingsError
from pipeline.foreign import keep_secret
from pipeline.system.paths import expanded
from pipeline.wording import setting

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Set by the client itself, or by what carries the request.
_RESERVED = {
    *("accept", "accept-encoding", "authorization", "connection", "content-encoding"),
    *("content-length", "content-type", "cookie", "expect", "host", "keep-alive"),
    *("proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"),
    *("x-hf-bill-to", "x-scale-up-timeout", "x-use-cache", "x-wait-for-model"),
}
_FIX = f"Write {setting('header_from', 'x-api-key=env:VARIABLE')}, or file:PATH."


def parsed(given: Any) -> dict[str, str] | None:
    """Read the setting: a mapping of names to places, or texts such as `NAME=env:VARIABLE`.

    A single text may hold several, with commas between them; in a list each is one.

    Raises SettingsError, which never repeats what stands where a place should: it may be the secret
    itself.
    """
    if given is None:
        return None
    places: dict[str, str] = {}
    for name, place in _pairs(given):
        kind, _, where = place.partition(":")
        if not _NAME.fullmatch(name) or not place:
            raise SettingsError(
                f"{setting('header_from')}: no name of a header with a place.", _FIX
            )
        what = f"{setting('header_from')}: {name!r}"
        if name.lower() in _RESERVED:
            fix = "Leave it out."
            if name.lower() == "authorization":
                fix = f"Put the token into HF_TOKEN, or into {setting('token_file')}."
            raise SettingsError(f"{what} is a header that each request has already.", fix)
        if name.lower() in map(str.lower, places):
            raise SettingsError(f"{what} is given twice.", "Give each header once.")
        if kind not in ("env", "file") or not where:
            raise SettingsError(
                f"{what} has no place of its value: a value is no setting, so that it cannot end "
                "up in a file or a process list.",
                _FIX,
            )
        places[name] = place
    return places or None


def _pairs(given: Any) -> Iterable[tuple[str, str]]:
    if isinstance(given, Mapping):
        return [(str(name).strip(), str(place).strip()) for name, place in given.items()]
    texts = given.split(",") if isinstance(given, str) else given
    if not isinstance(texts, Iterable) or not all(isinstance(text, str) for text in texts):
        raise SettingsError(f"{setting('header_from')}: neither names nor places.", _FIX)
    found = [text.partition("=") for text in texts]
    return [(name.strip(), place.strip()) for name, _, place in found]


def values_of(places: Mapping[str, str] | None) -> dict[str, str]:
    """Read the values of headers from their places; each is a secret from now on.

    Raises SettingsError for a variable or a file that is missing, or that holds what no header can
    carry.
    """
    return {name: _value(name, place) for name, place in (places or {}).items()}


def _value(name: str, place: str) -> str:
    kind, _, where = place.partition(":")
    what = f"{setting('header_from')}: the value of {name} is missing: "
    if kind == "env":
        value = os.environ.get(where, "").strip()
        source = f"the environment variable {where}"
    else:
        source = where
        try:
            value = expanded(where).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise SettingsError(f"{what}{where} cannot be read: {why}.") from None
    if not value:
        raise SettingsError(f"{what}{source} is not set, or empty.", "Put the value there.")
    if not (value.isascii() and value.isprintable()):
        raise SettingsError(
            f"{setting('header_from')}: the value of {name} in {source} holds characters that no "
            "header can carry.",
            "Copy it again.",
        )
    keep_secret(value)
    return value
