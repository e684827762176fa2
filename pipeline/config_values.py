"""What a setting may be: the kinds of values, each read from Python, YAML, a flag or a variable."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pipeline import headers, label_map
from pipeline.system.remote import is_address

# Each is a module of this directory, known here by its name alone.
DIALECTS = tuple(
    module.name
    for module in pkgutil.iter_modules([str(Path(__file__).parent / "client" / "dialects")])
    if module.name != "base"
)
if TYPE_CHECKING:
    DialectName = str
else:
    DialectName = Literal["auto", *DIALECTS]

# Beyond these, no sum or wait can be counted in 64 bits; no run is as large or as long.
_MOST, _MOST_S, _LEAST_RATE = 10**12, 10**9, 1e-6

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Takes(NamedTuple):
    """Which values a setting takes, in words; `metavar` is one of them in the help of a command."""

    words: str
    metavar: str = "VALUE"


def described(meaning: str, takes: Takes | str, default: Any = ..., **constraints: Any) -> Any:
    """Declare a setting: what it means and which values it takes."""
    extra: Any = {"takes": Takes(takes) if isinstance(takes, str) else takes}
    return Field(default, description=meaning, json_schema_extra=extra, **constraints)


def _place(value: Any) -> Any:
    """Keep an address as it is: as a path it would lose a slash."""
    return value if isinstance(value, str) and is_address(value) else Path(value)


def _no_bool(value: Any) -> Any:
    """Refuse `true` for a number: YAML makes it easy to write and Python would read 1."""
    if isinstance(value, bool):
        raise PydanticCustomError("bool", "a boolean is no number")
    return value


def one_or_many(value: Any) -> Any:
    """Make a list of one path."""
    return (str(value),) if isinstance(value, str | Path) else value


def _one_or_several(value: Any) -> Any:
    """Read one address, or several: a list, or a text with white space between them."""
    if isinstance(value, str) and len(value.split()) > 1:
        value = value.split()
    # Twice the same is the same; so a flag that is given twice makes a list of one.
    return tuple(dict.fromkeys(map(str, value))) if isinstance(value, list | tuple) else value


def _duration(value: Any) -> Any:
    """Read seconds from a number or from `90s`, `30m`, `7h`, `1d`."""
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd]?)\s*", value)
        if not found:
            raise PydanticCustomError("duration", "not a duration")
        return float(found[1]) * _UNITS_S[found[2]]
    return _no_bool(value)


def _rows_or_share(value: Any) -> Any:
    """Read a number of rows, or a share of them such as `1%`, which is kept as text."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            percent = float(value.strip()[:-1])
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:  # noqa: PLR2004
            raise PydanticCustomError("share", "not a share between 0% and 100%")
        return f"{percent:g}%"
    return _no_bool(value)


def _prom_file(path: Path) -> Path:
    """Refuse what the collector would not read; the name of a table is not replaced either."""
    if path.suffix != ".prom":
        raise PydanticCustomError("prom_file", "no .prom file")
    return path


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1, le=_MOST)]
Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=_MOST_S, allow_inf_nan=False)]
PerSecond = Annotated[
    float, BeforeValidator(_no_bool), Field(ge=_LEAST_RATE, le=_MOST, allow_inf_nan=False)
]
Name = Annotated[str, Field(min_length=1)]
Endpoint = Annotated[str, Field(pattern=r"^(local|hf|https?://[^\s/]+\S*)$")]
Address = Annotated[str, Field(pattern=r"^https?://[^\s/]+\S*$")]
Endpoints = Annotated[
    Endpoint | Annotated[tuple[Address, ...], Field(min_length=1)],
    BeforeValidator(_one_or_several),
]
HeaderPlaces = Annotated[dict[str, str] | None, BeforeValidator(headers.parsed)]
LabelMap = Annotated[dict[str, str] | None, BeforeValidator(label_map.parsed)]
Labels = Annotated[tuple[str, ...] | None, BeforeValidator(label_map.labels)]
Share = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1, allow_inf_nan=False)]
Place = Annotated[Path | str, BeforeValidator(_place)]
PromFile = Annotated[Path, AfterValidator(_prom_file)]
MaxErrors = Annotated[
    Annotated[int, Field(ge=0, le=_MOST)] | Annotated[str, Field(pattern="%$")],
    BeforeValidator(_rows_or_share),
]

COUNT = Takes("a whole number from 1 to 10^12", "N")
DURATION = Takes("seconds above 0, 10^9 at most, or a duration such as 90s, 30m, 7h", "SECONDS")
COLUMN = Takes("a column name", "COLUMN")
PATH = Takes("a path", "PATH")
PLACE = Takes("a path or an address", "PATH")
SWITCH = "true or false"
