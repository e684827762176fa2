"""How long inputs are, in bytes and as a model counts them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pool.batching import Batch, Job
from pipeline.pool.lengths import lengths_of, size_bytes, sizes_of

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def one_by_one(text):
    """Return the length of a text in eighths of a token, byte by byte."""
    return sum(of_byte(byte) for byte in text.encode())


def of_byte(byte):
    if byte >= 0x80:
        return 2 if byte < 0xC0 else 1 if byte < 0xE0 else 4
    character = chr(byte)
    if character.isdigit():
        return 3
    return (1 if character.islower() else 2) if character.isalpha() else 6


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=20), st.integers(1, 30))
def test_lengths_are_the_sums_of_their_bytes(texts, times):
    items = texts * times  # also more than are worked on at a time
    found = lengths_of(items, sizes_of(items))
    assert found.tolist() == [one_by_one(text) + 6 for text in items]


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20))
def test_a_pair_is_as_long_as_both(pairs):
    sizes = sizes_of(pairs)
    assert sizes.tolist() == [size_bytes(text) + size_bytes(other) for text, other in pairs]
    found = lengths_of(pairs, sizes)
    assert found.tolist() == [sum(map(one_by_one, pair)) + 12 for pair in pairs]


def test_a_batch_tells_its_load():
    one, other = Job(["a b", "ééé"]), Job(["", "word" * 9, "x"])
    batch = Batch([(one, [1]), (other, range(1, 3))])
    longest = one_by_one("word" * 9) + 6
    length = longest + one_by_one("ééé") + one_by_one("x") + 12
    assert batch.load == (3, 6 + 36 + 1, length, longest)


def padding(tokens, lengths):
    """Return padded over real tokens of batches of 16 that are sorted by a length."""
    ordered = tokens[np.argsort(lengths, kind="stable")]
    ordered = ordered[: len(ordered) // 16 * 16].reshape(-1, 16)
    return float(ordered.max(axis=1).sum() * 16 / ordered.sum())


def test_batches_by_it_are_padded_less_than_by_bytes():
    """By tokens that are signs, and stretches of up to six letters."""
    path = Path(__file__).parents[2] / "data" / "sample" / "reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        texts = [row["review"] for row in csv.DictReader(file) if row["review"]]
    tokens = np.array([len(re.findall(r"\w{1,6}|[^\w\s]", text)) for text in texts])
    sizes = sizes_of(texts)
    by_bytes, by_length = padding(tokens, sizes), padding(tokens, lengths_of(texts, sizes))
    assert by_length - 1 < 0.85 * (by_bytes - 1)
