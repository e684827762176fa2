"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(name: str) -> Path:
    """Return a path whose `~` is the home directory, or stays where nobody knows that.

    In a container, neither HOME nor an entry of the user may be there.
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 - the other raises RuntimeError
