"""Measure the batches of the pool: how much of them is padding, and what it costs to cut them.

Texts flow through the pool's own queue as in a run: chunks of 4,096 are put in while fewer inputs
are open than the pool wants, `concurrency` batches are out at once, and they come back in any
order. Prints for each concurrency and batch size: padded bytes over real bytes, as a server pays
that pads a batch to its longest text, in the order of the table and as they were cut; and the CPU
that queue and hand-out took.

    python benchmarks/padding.py

The texts are distinct; their words have a lognormal spread (median 37, sigma 0.9, at most 480).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from typing import TYPE_CHECKING

from pipeline.pool.batching import Batcher, BatchSize, Job, overtaking

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.outcomes import Outcome
    from pipeline.pool.batching import Batch

CHUNK = 4_096
CONCURRENCIES = (4, 32, 64)
BATCH_SIZES = (1, 8, 32, 128)
SEED = 5


def texts(count: int) -> list[str]:
    """Return texts of 6 bytes a word."""
    draw = random.Random(SEED)
    words = [min(480, round(draw.lognormvariate(math.log(37), 0.9))) for _ in range(count)]
    return [f"{i:05d} " + "abcde " * (each - 1) for i, each in enumerate(words)]


def flow(given: Sequence[str], concurrency: int, batch_size: int) -> Iterator[Batch]:
    """Yield batches as a run takes them."""
    batcher, size = Batcher(overtaking(concurrency)), BatchSize(batch_size)
    enough = (overtaking(concurrency) + concurrency) * batch_size
    draw, out = random.Random(SEED), []
    unread, open_items = 0, 0
    while True:
        while open_items < enough and unread < len(given):
            chunk = given[unread : unread + CHUNK]
            batcher.put(_job(chunk))
            unread += len(chunk)
            open_items += len(chunk)
        if unread == len(given):
            batcher.close()
        while len(out) < concurrency and (batch := batcher.take_now(size)) is not None:
            out.append(batch)
            yield batch
        if not out:
            return
        done = out.pop(draw.randrange(len(out)))
        done.settle([(("label", 0.5),)] * len(done), None)
        batcher.finished()
        open_items -= len(done)


def _job(chunk: Sequence[str]) -> Job:
    """Return a job that takes its outcomes as a run does, by place."""
    outcomes: list[Outcome | None] = [None] * len(chunk)

    def arrived(places: Sequence[int], some: Sequence[Outcome], _revision: str | None) -> bool:
        for place, outcome in zip(places, some, strict=True):
            outcomes[place] = outcome
        return True

    return Job(chunk, arrived)


def padding(batches: list[list[str]]) -> float:
    """Return padded bytes over real bytes."""
    lengths = [list(map(len, batch)) for batch in batches]
    return sum(max(each) * len(each) for each in lengths) / sum(map(sum, lengths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=120_000)
    given = texts(parser.parse_args().texts)
    print(
        f"{'concurrency':>11} {'batch size':>10} {'in order':>8} {'cut':>8} {'CPU us a text':>13}"
    )
    for concurrency in CONCURRENCIES:
        for batch_size in BATCH_SIZES:
            started = time.process_time()
            batches = [batch.items for batch in flow(given, concurrency, batch_size)]
            micros = (time.process_time() - started) / len(given) * 1e6
            in_order = padding(
                [list(given[at : at + batch_size]) for at in range(0, len(given), batch_size)]
            )
            print(
                f"{concurrency:11} {batch_size:10} {in_order:8.2f} {padding(batches):8.3f} "
                f"{micros:13.2f}"
            )


if __name__ == "__main__":
    main()
