"""HTML as a tree: text and attributes are escaped where the tree is written, and nowhere else."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

# Control characters, those that turn the direction of text, half characters, and those that no
# document may hold. They are shown instead of obeyed: whoever has them in a table wants to know.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    r"\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Make characters visible that act on a page instead of standing on it; line feeds stay."""
    return _HIDDEN.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"  # noqa: PLR2004


def element(tag: str, *children: ET.Element | str | None, **attributes: object) -> ET.Element:
    """Make an element; text is made `visible`. `aria_label` is the attribute aria-label.

    An attribute of True stands without a value, one of None or False is left out.
    """
    made = ET.Element(tag)
    for name, value in attributes.items():
        if value is not None and value is not False:
            given = "" if value is True else visible(str(value))
            made.set(name.rstrip("_").replace("_", "-"), given)
    for child in children:
        if isinstance(child, str):
            _append_text(made, visible(child))
        elif child is not None:
            made.append(child)
    return made


def raw(tag: str, content: str, **attributes: str) -> ET.Element:
    """Make a script or a style of our own, which stands as it is."""
    made = ET.Element(tag, attributes)
    made.text = content
    return made


def document(root: ET.Element) -> bytes:
    """Write a page."""
    written: bytes = ET.tostring(root, encoding="utf-8", method="html")
    return b"<!doctype html>\n" + written + b"\n"


def _append_text(parent: ET.Element, text: str) -> None:
    if len(parent):
        parent[-1].tail = (parent[-1].tail or "") + text
    else:
        parent.text = (parent.text or "") + text
