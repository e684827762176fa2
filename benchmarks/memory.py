"""Measure the memory and the speed of `classify run` on a table of a million rows.

Writes a CSV of several columns, with line breaks inside some cells, into a temporary directory,
serves the embedded language model from one process and classifies the table with another. Only
the second is measured: its peak resident set as the kernel reports it when the process ends.

    python benchmarks/memory.py --rows 1000000

Ends with 1 where the run fails or its peak is over PEAK_LIMIT_MB.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import platform
import random
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import classify, measure

from pipeline.endpoint.process import EndpointProcess

PEAK_LIMIT_MB = 500

LINE_BREAK_EVERY = 20
REPEAT_EVERY = 10
SENTENCES = (
    "The parcel came two days early and nothing in it was broken.",
    "I asked twice for a refund, and nobody has answered so far.",
    "Das Zelt hält dem Regen stand, aber der Reißverschluss klemmt.",
    "La poêle attache dès la première semaine, je suis déçu.",
    'La guía dice "impermeable", pero el agua entra por la costura.',
    "Il coltello taglia bene; peccato per il manico.",
    "De lamp is licht, fel en gaat de hele nacht mee.",
    "Kurtka jest ciepła, jednak rękawy są za krótkie.",
    "軽くて丈夫なので、毎週末使っています。",
)


def write_table(file: Path, rows: int) -> None:
    """Write reviews that are all different, but for one in REPEAT_EVERY that repeats another."""
    draw = random.Random(0)
    with file.open("w", newline="", encoding="utf-8") as opened:
        table = csv.writer(opened)
        table.writerow(("id", "date", "rating", "price", "country", "text"))
        review = ""
        for row in range(rows):
            if row % REPEAT_EVERY or not row:
                sentences = draw.choices(SENTENCES, k=draw.randint(1, 4))
                space = "\r\n" if row % LINE_BREAK_EVERY == 1 else " "
                review = space.join((*sentences, f"({row})"))
            table.writerow(
                (
                    f"{row:09d}",
                    f"2026-{1 + row % 12:02d}-{1 + row % 28:02d}",
                    1 + row % 5,
                    f"{1 + row % 200}.5",
                    draw.choice(("DE", "FR", "NA", "NO", "US", "")),
                    review,
                )
            )


def benchmark(rows: int, directory: Path, *, dedup: bool) -> bool:
    """Run once in `directory` and print the figures; gives whether all is as it should be."""
    table = directory / "reviews.csv"
    write_table(table, rows)
    print(f"{table}: {rows:,} rows, {table.stat().st_size / 1e6:,.1f} MB", flush=True)
    with EndpointProcess(("language",)) as endpoint:
        output = directory / "labelled.parquet"
        run = measure(
            classify(
                "run", table, "--output", output, "--endpoint", endpoint.url,
                "--dedup" if dedup else "--no-dedup", "--json",
            )
        )  # fmt: skip
    if run.exit_code:
        print(f"classify run ended with {run.exit_code}: {run.stdout.decode()}")
        return False
    summary = run.json
    figures = {
        "dedup": dedup,
        "rows": summary["rows"],
        "labelled": summary["labelled"],
        "distinct_inputs": summary["distinct_inputs"],
        "requests": summary["requests"],
        "seconds": round(run.seconds, 1),
        "rows_per_second": round(rows / run.seconds),
        "peak_rss_mb": round(run.peak_mb, 1),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(figures, indent=2))
    if summary["labelled"] != rows:
        print(f"{rows:,} rows went in and {summary['labelled']:,} were labelled.")
        return False
    if run.peak_mb > PEAK_LIMIT_MB:
        print(f"The peak of {run.peak_mb:.1f} MB is over the limit of {PEAK_LIMIT_MB} MB.")
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: 1000000")
    parser.add_argument("--dedup", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--keep", action="store_true", help="keep the table and the output")
    options = parser.parse_args()
    if options.rows < 1:
        parser.error("--rows must be at least 1")
    directory = Path(tempfile.mkdtemp(prefix="classify-memory-"))
    with contextlib.ExitStack() as stack:
        if options.keep:
            stack.callback(print, f"Kept: {directory}")
        else:
            stack.callback(shutil.rmtree, directory)
        return 0 if benchmark(options.rows, directory, dedup=options.dedup) else 1


if __name__ == "__main__":
    sys.exit(main())
