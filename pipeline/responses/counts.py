"""What a journal holds, counted frame by frame; none of it is looked up."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import orjson

from pipeline.responses.store import BLOCK, BLOCK_ANSWERS, COUNTS, HEADER, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from pipeline.store.objects import GrowingFile


def count_answers(file: GrowingFile) -> int:
    """Count the answers of a journal by the heads of its frames, up to a damaged or torn one.

    None of the answers is read, nor a head if the storage tells. Raises OSError.
    """
    if (known := file.items()) is not None:
        return known
    with file.reader() as opened:
        return sum(COUNTS.unpack(opened.read(COUNTS.size))[0] for _ in _frames(opened))


def count_labels(file: GrowingFile) -> Counter[str]:
    """Count the answers of a journal by their first label, likewise. Raises OSError."""
    found: Counter[str] = Counter()
    with file.reader() as opened:
        for length, crc in _frames(opened):
            payload = opened.read(length)
            if zlib.crc32(payload) != crc:
                break
            count, name_bytes = COUNTS.unpack_from(payload)
            at = COUNTS.size + name_bytes + 8 * count
            lengths = np.frombuffer(payload, "<u4", -(-count // BLOCK_ANSWERS), at)
            begin = at + lengths.nbytes
            for end in (begin + np.cumsum(lengths)).tolist():
                _, answers, _ = BLOCK.unpack_from(payload, begin)
                text = memoryview(payload)[begin + BLOCK.size + 8 * answers : end]
                found.update(answer[0][0] for answer in orjson.loads(text))
                begin = end
    return found


def _frames(opened: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield length and checksum of each payload, with the file at its beginning."""
    start, size = 0, opened.seek(0, os.SEEK_END)
    while True:
        opened.seek(start)
        header = read_header(opened.read(HEADER.size))
        if header is None or (end := start + HEADER.size + header[0]) > size:
            return
        yield header
        start = end
