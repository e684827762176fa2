"""Keys: digests of inputs, 128 bits of BLAKE2b.

Two different inputs share one with a probability below 1e-22, even at 50 million of them.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.outcomes import Item

KEY_BYTES = 16


class Keys:
    """Makes the key of an input: a digest over the input and all that decides its answer."""

    def __init__(self, decides: dict[str, Any]) -> None:
        scope = orjson.dumps(decides, option=orjson.OPT_SORT_KEYS)
        # Its digest goes in front of every input. As BLAKE2's own key it would be a block by
        # itself, and most inputs would take twice as long.
        self._scope = _digest(_digest(scope).digest())

    def of(self, items: Iterable[Item]) -> list[bytes]:
        """Return one key of 16 bytes per item."""
        begin, keys = self._scope.copy, []
        for item in items:
            digest = begin()
            digest.update(item.encode() if type(item) is str else _framed(item))
            keys.append(digest.digest())
        return keys


def provisional(keys: Iterable[bytes]) -> list[bytes]:
    """Return the keys under which answers are kept that are not believed yet."""
    return [_digest(b"provisional" + key).digest() for key in keys]


_digest = partial(hashlib.blake2b, digest_size=KEY_BYTES)


def _framed(pair: Item) -> bytes:
    # The length in front keeps ("a", "bc") and ("ab", "c") apart, and 0xFF (which UTF-8 never
    # holds) keeps every pair apart from every single text.
    text = pair[0].encode()
    return b"\xff%d:%b%b" % (len(text), text, pair[1].encode())
