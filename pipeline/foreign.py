"""Text from elsewhere (servers, files, headers), as it may be written and shown.

Secrets are taken out of it, in whatever form it repeats them, and control characters are made
visible, so that they do nothing to a terminal or a page.
"""

from __future__ import annotations

import re

# Control characters, those that change the direction of text, surrogates and noncharacters. They
# are shown instead of obeyed: whoever has them in a table wants to know.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069"
    r"\ufeff\ufffe\uffff\ud800-\udfff]"
)
# What stands where a secret stood.
REDACTED = "***"
# A shorter one would be found in words that repeat nothing.
SHORTEST_SECRET = 6
# How text begins that holds a character in an escaped form.
_ESCAPES = (b"\\", b"%", b"&#")

_secrets: set[str] = set()
# One of these is in all text that repeats a secret, in lower case.
_signs: tuple[bytes, ...] = ()
_found = re.compile(r"(?!)")


def keep_secret(value: str) -> None:
    """Take a value out of all that this process writes from now on.

    One of fewer than 6 characters is not looked for.
    """
    global _found, _signs  # noqa: PLW0603 - one process has one set of secrets
    if len(value) >= SHORTEST_SECRET and value not in _secrets:
        _secrets.add(value)
        _signs = (*_ESCAPES, *(each.lower().encode("utf-8", "replace") for each in _secrets))
        # The longest first: one may be the beginning of another.
        flags = re.IGNORECASE  # the host of an address is in lower case, whatever was written
        longest_first = sorted(_secrets, key=len, reverse=True)
        _found = re.compile("|".join("".join(map(_forms, each)) for each in longest_first), flags)


def secrets() -> list[str]:
    """Return what was kept, for a process that works for this one."""
    return list(_secrets)


def redacted(text: str) -> str:
    """Return `text` without secrets, those included that are escaped or in another case."""
    if not _secrets or not _may_hold_one(text.encode("utf-8", "replace")):
        return text
    return _found.sub(REDACTED, text)


def redacted_bytes(content: bytes) -> bytes:
    """Return UTF-8 without secrets. JSON stays JSON: of an escape all is taken, or nothing."""
    if not _secrets or not _may_hold_one(content):
        return content
    text = content.decode("utf-8", "surrogateescape")
    return _found.sub(REDACTED, text).encode("utf-8", "surrogateescape")


def visible(text: str) -> str:
    """Return `text` with invisible and control characters spelled out; line feeds stay."""
    return _HIDDEN.sub(_shown, text)


def safe(text: str) -> str:
    """Return `text` as it may be printed: no secret in it, and nothing that a terminal obeys."""
    return visible(redacted(text))


def safe_json(content: bytes) -> str:
    """Return JSON as it may be printed: no secret, and what a terminal obeys is escaped."""
    text = redacted_bytes(content).decode()
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _may_hold_one(content: bytes) -> bool:
    """Tell quickly of nearly all texts that they hold no secret."""
    lower = content.lower()
    for sign in _signs:  # noqa: SIM110  (a generator takes three times as long, at each answer)
        if sign in lower:
            return True
    return False


def _forms(character: str) -> str:
    """Return the pattern of a character: itself, or as JSON, Python, an address or HTML has it."""
    code = ord(character)
    # Bounded, or a long run of backslashes would take a time in its square.
    escaped = (
        f"\\\\{{1,8}}(?:u00|x){code:02x}|%(?:25){{0,8}}{code:02x}"
        f"|&#(?:0{{0,8}}{code}|x0{{0,8}}{code:x});"
    )
    return f"(?:\\\\{{0,8}}{re.escape(character)}|{escaped})"


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"[U+{code:04X}]"  # noqa: PLR2004
