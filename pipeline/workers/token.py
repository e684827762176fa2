"""The token: never a setting, so that it ends up in no file, log or process list of ours."""

from __future__ import annotations

import os
from pathlib import Path


def find_token() -> str | None:
    """Find the token as the Hugging Face tools do: HF_TOKEN, else the file of their login."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token")).expanduser()
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
