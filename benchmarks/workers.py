"""Measure what workers and storage cost: processes against each other, and S3 against local disk.

    python workers.py [--repeats 5]

An S3 server (moto) and the endpoint run on the same machine. Prints its results, and writes its
part of RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import boto3
from bench import Bench
from botocore.exceptions import BotoCoreError
from endpoints import free_port
from measuring import serving, write_results

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "benchmark"
# The state of a run on S3, with an endpoint that takes so long. Of 32 texts each, 16 requests leave
# room for the S3 server on this machine; with 64 the client alone takes a whole core.
STORAGE_LATENCY_MS, STORAGE_ROWS = 50, {16: 300_000, 64: 600_000}
WORKER_LATENCY_MS, WORKER_CONCURRENCY, WORKER_ROWS = 300, 8, 4_800
PROCESSES = ("--engine", "processes", "--workers")


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """Start moto; yield the address of an empty bucket, with what a user has in the environment."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
                "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ALLOW_HTTP": "true",
            }  # fmt: skip
            for _ in range(200):
                with contextlib.suppress(BotoCoreError):
                    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=BUCKET)
                    break
                time.sleep(0.1)
            yield f"s3://{BUCKET}"
        finally:
            server.kill()


def workers(bench: Bench, repeats: int) -> list[str]:
    """Twice the workers with twice the requests in flight, on a server bound by latency."""
    table, rows = bench.table(WORKER_ROWS)
    spans: dict[int, list[float]] = {1: [], 2: []}
    with serving(latency_ms=WORKER_LATENCY_MS) as server:
        for _ in range(repeats):
            for count, seen in spans.items():
                concurrency = ("--concurrency", WORKER_CONCURRENCY * count, "--batch-size", 4)
                bench.ours(table, server, *concurrency, *PROCESSES, count)
                stats = server.stats()
                seen.append((stats["last_at"] - stats["first_at"]) / 1000)
    ratio = median(one / two for one, two in zip(spans[1], spans[2], strict=True))
    name = f"2 processes against 1, {WORKER_LATENCY_MS} ms a request, {rows:,} rows"
    return [name, "at least 1.9 times", f"{ratio:.2f} times", "yes" if ratio >= 1.9 else "no"]


def storage(bench: Bench, bucket: str, repeats: int) -> list[list[str]]:
    """The same run with its state on S3 and on the local disk, in turn."""
    lines = []
    for concurrency, wanted in STORAGE_ROWS.items():
        table, rows = bench.table(wanted)
        ratios, speeds = [], []
        with serving(latency_ms=STORAGE_LATENCY_MS) as server:
            settings = ("--batch-size", 32, "--concurrency", concurrency)
            ours = partial(bench.ours, table, server, *settings)
            for number in range(repeats):
                local = ours().seconds
                place = f"{bucket}/{concurrency}/{number}.run"
                ratios.append(local / ours("--run-dir", place).seconds)
                speeds.append(rows / local)
        limit = 32 * concurrency * 1000 / STORAGE_LATENCY_MS
        name = (
            f"run directory on moto against local disk, {STORAGE_LATENCY_MS} ms, {concurrency} in "
            f"flight, {rows:,} rows ({median(speeds) / limit:.0%} of the endpoint's limit locally)"
        )
        ratio = median(ratios)
        told = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append([name, "at least 0.95", told, "yes" if ratio >= 0.95 else "no"])
    return lines


def rates(bench: Bench) -> list[list[str]]:
    """The worst second at the server, whatever the number of workers."""
    lines = []
    with serving() as server:
        for rate in (40, 200):
            table, _ = bench.table(15 * rate)
            for count in (2, 4, 8):
                bench.ours(table, server, "--batch-size", 1, "--rate", rate, *PROCESSES, count)
                most, allowed = server.stats()["most_in_one_second"], int(1.05 * rate + 2)
                name = f"rate {rate} over {count} workers, the worst second"
                met = "yes" if most <= allowed else "no"
                lines.append([name, f"at most {allowed}", str(most), met])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="classify-workers-") as directory:
        bench = Bench(Path(directory), 1.0, repeats)
        rows = [workers(bench, repeats), *rates(bench)]
        with s3() as bucket:
            rows += storage(bench, bucket, repeats)
    lines = [
        "## Workers and storage",
        "",
        f"Written by workers.py; medians of {repeats} pairs.",
        "",
    ]
    head = ["what", "target", "measured", "reached"]
    lines += [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    print("\n".join(lines))
    write_results("workers.py", "\n".join(lines))


if __name__ == "__main__":
    main()
