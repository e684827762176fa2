"""Dialects: how servers want to be asked, one module each (docs/how-to/write-a-dialect.md).

Every module here but `base` is a dialect, with one class of it. Its file name is the value of the
setting `dialect`: nothing else has to be told of a new one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.client.dialects.base import Dialect
from pipeline.config_values import DIALECTS

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def _class_in(name: str) -> type[Dialect]:
    module = import_module(f"{__name__}.{name}")
    (found,) = (
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Dialect) and each.name == name
    )
    return found


REGISTRY: dict[str, type[Dialect]] = {name: _class_in(name) for name in DIALECTS}


def dialect_of(name: str, config: RunConfig) -> Dialect:
    """Return the dialect of this name; `auto` begins as hf.

    Raises SettingsError for what cannot be asked in it.
    """
    return REGISTRY["hf" if name == "auto" else name](config)
