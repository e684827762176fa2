"""How the page words what it shows."""

from __future__ import annotations

import re

# Control characters, those that change the direction of text, surrogates and noncharacters. They
# are shown instead of obeyed: whoever has them in a table wants to know.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    r"\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return `text` with invisible and control characters spelled out; line feeds stay."""
    return _HIDDEN.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"  # noqa: PLR2004


def number(value: float | None, form: str = ",") -> str:
    """Return `value` in the given format, by default with commas; empty for None."""
    return "" if value is None else format(value, form)
