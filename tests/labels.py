"""The labels of both scripted servers: a pure function of the text, so any test knows them."""

from __future__ import annotations

import zlib
from typing import Any

LABELS = ("negative", "neutral", "positive")


def labels_of(text: str, pair: str | None = None) -> list[dict[str, Any]]:
    """Return the labels of a text or of a pair, best first."""
    digest = zlib.crc32((text if pair is None else f"{text}\0{pair}").encode())
    best = 0.5 + (digest >> 8) % 10_007 / 20_014
    scores = (best, (1 - best) * 2 / 3, (1 - best) / 3)
    return [{"label": LABELS[(digest + i) % 3], "score": score} for i, score in enumerate(scores)]
