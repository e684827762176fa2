"""The file of answers that a user names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import SettingsError, StoppedEarly
from pipeline.responses.store import check_store
from pipeline.wording import setting

if TYPE_CHECKING:
    from pathlib import Path


def check_cache(cache: Path | None) -> None:
    """Refuse what is no file of answers. Raises SettingsError."""
    if cache is None:
        return
    if cache.is_dir() or not cache.parent.is_dir():
        wrong = "is a directory" if cache.is_dir() else f"lies in {cache.parent}, no directory"
        raise SettingsError(
            f"{setting('cache')}: {cache} {wrong}.",
            "Give the path of a file, new or old.",
        )
    try:
        check_store(cache)
    except StoppedEarly as error:
        raise SettingsError(f"{setting('cache')}: {error.what}", error.fix) from error
