"""The token: never a setting of its own, so that it ends up in no config, log or process list."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import SettingsError
from pipeline.events import TokenFileIsOpen
from pipeline.wording import setting


class Token(NamedTuple):
    """The token, None if there is none; a warning about where it was found; and where."""

    value: str | None
    warning: TokenFileIsOpen | None = None
    where: str | None = None


def find_token(token_file: Path | None = None) -> Token:
    """Find the token: HF_TOKEN, then `token_file`, then that of a Hugging Face login.

    Raises SettingsError if `token_file` cannot be read or holds none.
    """
    if token := os.environ.get("HF_TOKEN", "").strip():
        return _found(token, "the environment variable HF_TOKEN")
    if token_file is not None:
        return _from_file(token_file)
    if "google.colab" in sys.modules:
        # There a login is a secret of the notebook, which only this library can ask for.
        with suppress(ImportError):
            from huggingface_hub import get_token

            if token := (get_token() or "").strip():
                return _found(token, "the secrets of this notebook")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    login = Path(os.environ.get("HF_TOKEN_PATH", home / "token")).expanduser()
    try:
        token = login.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return Token(None)
    return _found(token, str(login)) if token else Token(None)


def _found(token: str, where: str, warning: TokenFileIsOpen | None = None) -> Token:
    """Return a token. Refuses what no header can carry; the message must not repeat it."""
    if not (token.isascii() and token.isprintable() and len(token.split()) == 1):
        raise SettingsError(
            f"The token in {where} is none: it holds blanks or characters that no request can "
            "carry.",
            "Copy it again.",
        )
    return Token(token, warning, where)


def _from_file(file: Path) -> Token:
    try:
        token = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{setting('token_file')}: {file} cannot be read: {error}.") from None
    if not token:
        raise SettingsError(f"{setting('token_file')}: {file} is empty.", "It must hold the token.")
    is_open = mode & (stat.S_IRGRP | stat.S_IROTH)
    return _found(token, str(file), TokenFileIsOpen(str(file)) if is_open else None)
