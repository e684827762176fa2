"""How a dataclass says what the keys of `--json` mean: beside the type of the field.

`rows: Annotated[int, "rows of the input"]`; docs/reference is generated from it. The kind of a
value follows from its type; a number that counts nothing has one of the types below.
"""

from __future__ import annotations

from typing import Annotated


class Unit(str):
    """What a number measures."""

    __slots__ = ()


Seconds = Annotated[float, Unit("seconds")]
PerSecond = Annotated[float, Unit("per second")]
Money = Annotated[float, Unit("money")]
