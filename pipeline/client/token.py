"""The token: never a setting of its own, so that it ends up in no config, log or process list."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import SettingsError
from pipeline.events import TokenFileIsOpen
from pipeline.foreign import keep_secret
from pipeline.wording import reason, sentence, setting

if TYPE_CHECKING:
    from pathlib import Path


class Token(NamedTuple):
    """The token, None if there is none; a warning about where it was found; and where."""

    value: str | None
    warning: TokenFileIsOpen | None = None
    where: str | None = None


def find_token(token_file: Path | None = None) -> Token:
    """Find the token: HF_TOKEN, then `token_file`, then that of a Hugging Face login.

    A login is refreshed if it is about to expire, which takes a request to the Hub. Raises
    SettingsError if `token_file` cannot be read or holds none.
    """
    if token := _plain(os.environ.get("HF_TOKEN")):
        return _found(token, "the environment variable HF_TOKEN")
    if token_file is not None:
        return _from_file(token_file)
    if not _may_be_logged_in():
        return Token(None)
    try:
        # Imported only here, where it is needed: it takes longer than all else that a run begins
        # with.
        from huggingface_hub import get_token

        token = _plain(get_token())
    except (OSError, UnicodeDecodeError):
        return Token(None)
    except Exception as error:  # noqa: BLE001  (whatever ended a login that was asked for)
        raise SettingsError(
            f"The Hugging Face login gives no token: {sentence(str(error))}",
            "Run `hf auth login` again.",
        ) from None
    return _found(token, "the Hugging Face login") if token else Token(None)


def _may_be_logged_in() -> bool:
    """Tell quickly that there is no login at all, of any of the kinds that the Hub knows."""
    from huggingface_hub import constants

    variables = ("HF_OIDC_RESOURCE", "HUGGING_FACE_HUB_TOKEN")
    return (
        any(name in os.environ for name in variables)
        or os.path.lexists(constants.HF_TOKEN_PATH)
        or "google.colab" in sys.modules
    )


def _plain(token: str | None) -> str:
    """Return a token without the blanks and quotes that were copied with it."""
    return (token or "").strip().strip("\"'").strip()


def _found(token: str, where: str, warning: TokenFileIsOpen | None = None) -> Token:
    """Return a token. Refuses what no header can carry; the message must not repeat it."""
    keep_secret(token)
    if not (token.isascii() and token.isprintable() and len(token.split()) == 1):
        raise SettingsError(
            f"The token in {where} is not valid: it holds blanks or characters that no request "
            "can carry.",
            "Copy it again.",
        )
    return Token(token, warning, where)


def _from_file(file: Path) -> Token:
    try:
        token = _plain(file.read_text(encoding="utf-8"))
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{setting('token_file')}: {file} cannot be read: {reason(error)}."
        ) from None
    if not token:
        raise SettingsError(f"{setting('token_file')}: {file} is empty.", "It must hold the token.")
    is_open = mode & (stat.S_IRGRP | stat.S_IROTH)
    return _found(token, str(file), TokenFileIsOpen(str(file)) if is_open else None)
