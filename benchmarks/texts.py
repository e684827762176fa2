"""Texts whose lengths spread as those of real tables do, and what a simulated server answers.

Lengths are lognormal with a median of 37 words and at most 480; in random batches of 32, padded
words over real ones are 4.6. All texts are distinct, and the same numbers give the same texts.

    python texts.py TABLE.parquet ROWS
"""

from __future__ import annotations

import sys
from math import gcd
from pathlib import Path
from zlib import crc32

import numpy as np

MEDIAN_WORDS = 37
MOST_WORDS = 480
SIGMA = 0.9
MEAN_WORDS = 55.0
SEED = 18
VOCABULARY = 2_000
AT_ONCE = 20_480
LABELS = ("NEGATIVE", "NEUTRAL", "POSITIVE")


def lengths(rows: int) -> np.ndarray:
    """Return how many words each text has; the first rows are the same for any number of rows."""
    normal = np.random.default_rng(SEED).standard_normal(rows)
    return np.clip(np.rint(MEDIAN_WORDS * np.exp(SIGMA * normal)), 1, MOST_WORDS).astype(int)


def vocabulary() -> list[str]:
    """Return words of 1 to 12 letters, so that bytes tell the number of words only roughly."""
    random = np.random.default_rng(SEED)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype="S1").astype("U1")
    sizes = np.clip(random.poisson(4.2, VOCABULARY), 1, 12)
    return ["".join(random.choice(letters, size)) for size in sizes]


def texts(first: int, counts: np.ndarray) -> list[str]:
    """Return a text of each number of words; the first word is the row's number."""
    words = vocabulary()
    random = np.random.default_rng((SEED, first))
    # Common words are short ones in no language that matters here; a few words make up the most.
    picked = (random.random(int(counts.sum())) ** 3 * VOCABULARY).astype(int)
    bounds = np.cumsum(counts)[:-1]
    return [
        " ".join([f"r{first + i}", *[words[at] for at in row[1:].tolist()]])
        for i, row in enumerate(np.split(picked, bounds))
    ]


def mixed(order: np.ndarray, batch: int) -> np.ndarray:
    """Cut a sorted order into batches and mix them by a stride of about the golden ratio."""
    batches = [order[at : at + batch] for at in range(0, len(order), batch)]
    stride = round(0.382 * len(batches)) or 1
    while gcd(stride, len(batches)) > 1:
        stride += 1
    return np.concatenate([batches[i * stride % len(batches)] for i in range(len(batches))])


def write_texts(path: Path, rows: int, *, batch: int | None = None) -> None:
    """Write a table of `id` and `text`; with `batch`, in batches of so many of similar length.

    The texts of each block of 20,480 are sorted by their length and cut into batches, which are so
    mixed that any stretch of a few has short texts and long ones.
    """
    # The environments of real servers have no pyarrow, and need the words alone.
    import pyarrow as pa
    import pyarrow.parquet as pq

    counts = lengths(rows)
    schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, rows, AT_ONCE):
            block = counts[first : first + AT_ONCE]
            found = texts(first, block)
            order = np.arange(len(block))
            if batch is not None:
                order = mixed(np.argsort(block, kind="stable"), batch)
            ids = pa.array(first + order, pa.int64())
            writer.write_table(pa.table({"id": ids, "text": [found[at] for at in order]}, schema))


def expected(text: str) -> tuple[str, float]:
    """Return the label that simulated.mjs gives a text, and its score without padding."""
    number = crc32(text.encode())
    return LABELS[number % 3], 0.5 + (number >> 8) % 400_000 / 1e6


if __name__ == "__main__":
    write_texts(Path(sys.argv[1]), int(sys.argv[2]))
