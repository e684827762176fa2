"""The token: never a setting of its own, so that it ends up in no config, log or process list."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import SettingsError


class Token(NamedTuple):
    """The token, None where there is none, and a warning about where it was found."""

    value: str | None
    warning: str | None = None


def find_token(token_file: Path | None = None) -> Token:
    """Find the token: HF_TOKEN, then `token_file`, then the file of a Hugging Face login.

    Raises SettingsError where `token_file` cannot be read or holds none.
    """
    if token := os.environ.get("HF_TOKEN", "").strip():
        return Token(token)
    if token_file is not None:
        return _from_file(token_file)
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    login = Path(os.environ.get("HF_TOKEN_PATH", home / "token")).expanduser()
    try:
        return Token(login.read_text(encoding="utf-8").strip() or None)
    except (OSError, UnicodeDecodeError):
        return Token(None)


def _from_file(file: Path) -> Token:
    try:
        token = file.read_text(encoding="utf-8").strip()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"token_file: {file} cannot be read: {error}.") from None
    if not token or len(token.split()) > 1:
        raise SettingsError(
            f"token_file: {file} holds no token. It must hold the token and nothing else."
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        return Token(token, f"{file}: others can read the token in it; run: chmod 600 {file}")
    return Token(token)
