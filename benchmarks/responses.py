"""Measure the response store: memory and time at tens of millions of answers.

Puts answers in groups as a run does, looks up as many strangers and as many of the known, opens
the file again, and prints one line a step: what the process holds in memory (resident, without
the pages of files, which the kernel may drop) and microseconds a row.

    python benchmarks/responses.py --answers 50000000

Needs about 100 bytes of disk an answer in the temporary directory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.responses import ResponseStore

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = 8_192


def key(number: int) -> bytes:
    return hashlib.blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


def memory_mb() -> float:
    """Anonymous memory of this process, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1e3


def timed(what: str, rows: int, work: Callable[[], None]) -> None:
    started = time.perf_counter()
    work()
    micros = (time.perf_counter() - started) / max(rows, 1) * 1e6
    print(f"{what:32} {memory_mb():8,.0f} MB {micros:8.2f} us a row", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=10_000_000)
    parser.add_argument("--step", type=int, default=10_000_000, help="print after so many")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="classify-responses-") as directory:
        path = Path(directory, "responses.journal")
        store = ResponseStore(path)
        print(f"{'empty':32} {memory_mb():8,.0f} MB")

        def put(start: int, stop: int) -> None:
            for at in range(start, stop, GROUP):
                asked = range(at, min(at + GROUP, stop))
                answers = [(("positive", 0.25 + i % 7 / 10),) for i in asked]
                store.put([([key(i) for i in asked], answers, "revision")])

        def get(start: int, stop: int, known: int) -> None:
            for at in range(start, stop, GROUP):
                asked = range(at, min(at + GROUP, stop))
                assert len(store.get([key(i) for i in asked])) == known * len(asked)

        for start in range(0, options.answers, options.step):
            stop = min(start + options.step, options.answers)
            timed(f"put up to {stop:,}", stop - start, lambda a=start, b=stop: put(a, b))
        sample = min(1_000_000, options.answers)
        timed(f"look up {sample:,} strangers", sample, lambda: get(1 << 40, (1 << 40) + sample, 0))
        timed(f"look up {sample:,} known", sample, lambda: get(0, sample, 1))
        store.close()
        print(f"{path.stat().st_size / 1e9:,.2f} GB on disk")
        opened = []
        timed("open again", options.answers, lambda: opened.append(ResponseStore(path)))
        opened[0].close()


if __name__ == "__main__":
    os.nice(5)
    main()
