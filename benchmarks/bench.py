"""Measure `classify run` with everything on against the endpoint's limit and against its peers.

Each figure is a ratio against a reference run on the same machine, over the same table, in turn
with it, several times; medians are shown. Every contender is measured as a whole process, from
start to end. Prints its results and writes RESULTS.md and results.svg beside this file.

    python bench.py                  # all, about an hour
    python bench.py --only batches --repeats 3 --scale 0.2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import HERE, Measured, Server, classify, measure, serving

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = 64
PEERS = {
    "huggingface_hub": "hub.py",
    "datasets.map": "datasets_map.py",
    "Daft": "daft_udf.py",
    "Ray Data": "ray_data.py",
}
# The targets of this project; `at least` where the sign is >=.
TARGETS = {
    "1 text a request": (">=", 0.95),
    "32 texts a request": (">=", 0.80),
    "128 texts a request": (">=", 0.70),
}


@dataclass
class Results:
    """What is printed and written: one table a question, a line a contender."""

    sections: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    bars: list[tuple[str, float]] = field(default_factory=list)

    def add(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        self.sections.append((title, header, rows))
        print(f"\n{title}\n  " + " | ".join(header))
        for row in rows:
            print("  " + " | ".join(row), flush=True)

    def markdown(self) -> str:
        """Give RESULTS.md."""
        lines = [
            "# Results",
            "",
            "Written by bench.py; see [README](README.md) for what is measured and how. "
            f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python "
            f"{platform.python_version()}, "
            + ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop", "pyarrow"))
            + ".",
            "",
            "![rows a second against the bare loop](results.svg)",
        ]
        for title, header, rows in self.sections:
            lines += ["", f"## {title}", "", "| " + " | ".join(header) + " |"]
            lines += ["|" + "---|" * len(header)]
            lines += ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join(lines) + "\n"


def write_table(path: Path, rows: int) -> Path:
    """Write a Parquet table of distinct texts of about 90 characters."""
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, rows, 100_000):
            ids = range(start, min(start + 100_000, rows))
            texts = [f"{i:09d} came two days early, and nothing in the parcel was broken; I would "
                     "buy it again." for i in ids]  # fmt: skip
            writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "text": texts}))
    return path


class Bench:
    """One measuring session in a temporary directory."""

    def __init__(self, directory: Path, scale: float, repeats: int) -> None:
        self.directory = directory
        self.scale = scale
        self.repeats = repeats
        self.results = Results()

    def table(self, rows: int) -> tuple[Path, int]:
        rows = max(1_000, int(rows * self.scale))
        path = self.directory / f"{rows}.parquet"
        if not path.exists():
            # In a process of its own: what this one holds would count as a child's peak memory.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:
                writer.submit(write_table, path, rows).result()
        return path, rows

    def ours(
        self, table: Path, server: Server, *settings: object, command: list[str] | None = None
    ) -> Measured:
        """Label the table with everything on; checks that every row has its label."""
        output = self.directory / "labelled.parquet"
        for old in (output, output.with_name(output.name + ".run")):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        server.reset()
        run = measure(
            [
                *(command or classify()), "run", str(table), "-o", str(output), "--json",
                "--endpoint", server.url, "--dialect", "hf", "--concurrency", str(CONCURRENCY),
                *map(str, settings),
            ]
        )  # fmt: skip
        rows = pq.read_metadata(table).num_rows
        if run.exit_code or run.json["labelled"] != rows:
            sys.exit(f"classify run ended with {run.exit_code}: {run.stdout.decode()}")
        return run

    def bare(self, table: Path, server: Server, batch: int) -> Measured:
        server.reset()
        run = measure(
            [sys.executable, str(HERE / "bare.py"), str(table), server.url, str(batch),
             str(CONCURRENCY)]
        )  # fmt: skip
        if run.exit_code:
            sys.exit("The bare loop failed.")
        return run

    def alternating(
        self, contenders: dict[str, Callable[[], Measured]]
    ) -> dict[str, list[Measured]]:
        """Run all in turn, several times."""
        found: dict[str, list[Measured]] = {name: [] for name in contenders}
        for _ in range(self.repeats):
            for name, run in contenders.items():
                found[name].append(run())
        return found

    def lines(self, found: dict[str, list[Measured]], rows: int, reference: str) -> list[list[str]]:
        """Give a line a contender: rows a second, the ratio to the reference, CPU and memory."""
        lines = []
        for name, runs in found.items():
            ratio = median(
                theirs.seconds / ours.seconds
                for ours, theirs in zip(runs, found[reference], strict=True)
            )
            lines.append(
                [
                    name,
                    f"{median(rows / run.seconds for run in runs):,.0f}",
                    f"{ratio:.3f}",
                    f"{median(run.cpu_seconds for run in runs) / rows * 1e6:,.0f}",
                    f"{max(run.peak_mb for run in runs):,.0f}",
                ]
            )
        return lines

    def batches(self) -> None:
        """One, 32 and 128 texts a request, against the bare loop."""
        header = ["", "rows/s", "of the bare loop", "CPU s a million rows", "peak MB"]
        with serving() as server:
            for batch, wanted in ((1, 60_000), (32, 1_000_000), (128, 2_000_000)):
                table, rows = self.table(wanted)
                found = self.alternating(
                    {
                        "bare loop": partial(self.bare, table, server, batch),
                        "classify run": partial(
                            self.ours,
                            table,
                            server,
                            "--batch-size",
                            batch,
                        ),
                    }
                )
                name = f"{batch} text{'s' * (batch > 1)} a request"
                lines = self.lines(found, rows, "bare loop")
                self.results.bars.append((name, float(lines[1][2])))
                self.results.add(
                    f"{name}, {rows:,} rows (target {TARGETS[name][1]:.2f})", header, lines
                )

    def physical(self) -> None:
        """What the endpoint gives to wrk, which does nothing with the answers."""
        if shutil.which("wrk") is None:
            print("wrk is not installed: skipped")
            return
        script = self.directory / "post.lua"
        rows = []
        with serving() as server:
            for batch in (1, 32, 128):
                texts = ["a text of ninety characters, as the table's are, " * 2] * batch
                body = json.dumps({"inputs": texts, "parameters": {"top_k": 1}})
                script.write_text(
                    f"wrk.method = 'POST'\nwrk.body = [==[{body}]==]\n"
                    "wrk.headers['Content-Type'] = 'application/json'\n"
                )
                out = subprocess.run(
                    ["wrk", "-t1", f"-c{CONCURRENCY}", "-d5s", "-s", script, server.url],
                    capture_output=True, text=True, check=True,
                ).stdout  # fmt: skip
                found = re.search(r"Requests/sec:\s+([\d.]+)", out)
                assert found is not None
                a_second = float(found[1])
                rows.append([str(batch), f"{a_second:,.0f}", f"{a_second * batch:,.0f}"])
        self.results.add(
            "The endpoint's own limit, seen by wrk", ["texts", "requests/s", "rows/s"], rows
        )

    def latency(self) -> None:
        """100 ms of latency at concurrency 64: 640 requests a second would be ideal."""
        table, rows = self.table(38_400)
        with serving(latency_ms=100) as server:
            runs = [self.ours(table, server, "--batch-size", 1) for _ in range(self.repeats)]
        rate = median(rows / run.seconds for run in runs)
        self.results.add(
            f"100 ms latency, concurrency 64, {rows:,} rows (target 0.97 of 640 requests/s)",
            ["requests/s", "of 640"],
            [[f"{rate:,.1f}", f"{rate / 640:.3f}"]],
        )

    def rate(self) -> None:
        """A stated rate of 200 on an endpoint that could do thousands."""
        table, rows = self.table(4_000)
        lines = []
        with serving() as server:
            for _ in range(self.repeats):
                self.ours(table, server, "--batch-size", 1, "--rate", 200)
                found = server.stats()
                span_s = (found["last_at"] - found["first_at"]) / 1000
                lines.append(((rows - 1) / span_s, found["most_in_one_second"]))
        mean = median(mean for mean, _ in lines)
        self.results.add(
            f"rate 200, {rows:,} requests (target 0.98 to 1.00, no second above 205)",
            ["requests/s", "of 200", "most in any second"],
            [[f"{mean:.1f}", f"{mean / 200:.3f}", str(max(most for _, most in lines))]],
        )

    def safety(self) -> None:
        """What the response store and the checkpoint cost, by switching both off."""
        lines = []
        with serving() as server:
            for batch, wanted in ((1, 60_000), (32, 1_000_000)):
                table, rows = self.table(wanted)
                unsafe = [sys.executable, str(HERE / "without_safety.py")]
                found = self.alternating(
                    {
                        "both off": partial(
                            self.ours,
                            table,
                            server,
                            "--batch-size",
                            batch,
                            command=unsafe,
                        ),
                        "both on": partial(
                            self.ours,
                            table,
                            server,
                            "--batch-size",
                            batch,
                        ),
                    }
                )
                lines += [
                    [f"{batch} a request, {line[0]}", *line[1:]]
                    for line in self.lines(found, rows, "both off")
                ]
        self.results.add(
            "Response store and checkpoint (target 0.90)",
            ["", "rows/s", "ratio", "CPU s a million rows", "peak MB"],
            lines,
        )

    def memory(self) -> None:
        """Peak memory at 10 million rows against 1 million, and a resume at 95% of 10 million."""
        small, few = self.table(1_000_000)
        large, many = self.table(10_000_000)
        with serving() as server:
            peaks = [
                self.ours(each, server, "--batch-size", 128).peak_mb for each in (small, large)
            ]
            self.results.add(
                "Memory (target 1.15, and 400 MB)",
                ["rows", "peak MB", "ratio"],
                [
                    [f"{few:,}", f"{peaks[0]:,.0f}", ""],
                    [f"{many:,}", f"{peaks[1]:,.0f}", f"{peaks[1] / peaks[0]:.3f}"],
                ],
            )
            seconds = self.resume(large, many, server)
        self.results.add(
            "First request of a resume at 95% (target 3 s)",
            ["rows", "seconds from the start of the command"],
            [[f"{many:,}", f"{seconds:.2f}"]],
        )

    def resume(self, table: Path, rows: int, server: Server) -> float:
        """Kill a run at 95%, start it again, and give the seconds until its first request."""
        output = self.directory / "resumed.parquet"
        command = classify(
            "run", table, "-o", output, "--endpoint", server.url, "--dialect", "hf",
            "--batch-size", 128, "--concurrency", CONCURRENCY,
        )  # fmt: skip
        server.reset()
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and server.stats()["items"] < 0.95 * rows:
                time.sleep(0.05)
            child.kill()
        server.reset()
        started = time.time()
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child:
            while child.poll() is None and not server.stats()["requests"]:
                time.sleep(0.02)
            first_at = server.stats()["first_at"] / 1000
            child.send_signal(signal.SIGKILL)
        return first_at - started

    def startup(self) -> None:
        """What starting costs over the bare interpreter."""
        commands = {
            "python -c pass": ["-c", "pass"],
            "classify --help": ["-P", "-c", "from pipeline.cli import main; main()", "--help"],
            "import pipeline": ["-c", "import pipeline"],
        }
        found = self.alternating(
            {name: partial(measure, [sys.executable, *c]) for name, c in commands.items()}
        )
        least = {name: median(run.seconds for run in runs) for name, runs in found.items()}
        base = least["python -c pass"]
        self.results.add(
            "Start (targets 150 ms and 250 ms over the bare interpreter)",
            ["", "ms", "over the interpreter"],
            [[n, f"{s * 1e3:.0f}", f"{(s - base) * 1e3:.0f}"] for n, s in least.items()],
        )

    def peers(self) -> None:
        """The peers, each in an environment of its own (`make bench-peers` makes them)."""
        table, rows = self.table(20_000)
        contenders: dict[str, Callable[[], Measured]] = {}
        with serving() as server:
            contenders["bare loop"] = partial(self.bare, table, server, 1)
            contenders["classify run, 1 a request"] = partial(
                self.ours, table, server, "--batch-size", 1
            )
            contenders["classify run, 32 a request"] = partial(
                self.ours, table, server, "--batch-size", 32
            )
            for name, script in PEERS.items():
                python = HERE / ".peers" / Path(script).stem / "bin" / "python"
                if not python.exists():
                    print(f"{name}: not installed (make bench-peers), skipped")
                    continue
                arguments = [str(HERE / "peers" / script), str(table), server.url, str(CONCURRENCY)]
                contenders[name] = partial(measure, [str(python), *arguments])
            found = self.alternating(contenders)
        for name, runs in list(found.items()):
            if any(run.exit_code for run in runs):
                print(f"{name}: failed, left out")
                del found[name]
        self.results.add(
            f"Peers, {rows:,} rows",
            ["", "rows/s", "of the bare loop", "CPU s a million rows", "peak MB"],
            self.lines(found, rows, "bare loop"),
        )

    def chart(self) -> str:
        """Draw the ratios to the bare loop, with their targets, as SVG."""
        width, bar, gap, left = 640, 26, 18, 170
        parts = []
        for i, (name, ratio) in enumerate(self.results.bars):
            y = 30 + i * (bar + gap)
            scale = (width - left - 60) / 1.1
            target = left + TARGETS[name][1] * scale
            parts.append(
                f'<text x="{left - 10}" y="{y + 18}" text-anchor="end">{name}</text>'
                f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="{bar}"/>'
                f'<text x="{left + ratio * scale + 8:.1f}" y="{y + 18}">{ratio:.2f}</text>'
                f'<line x1="{target:.1f}" x2="{target:.1f}" y1="{y - 4}" y2="{y + bar + 4}"/>'
            )
        height = 40 + len(self.results.bars) * (bar + gap)
        style = (
            "text{font:14px system-ui,sans-serif;fill:#666}rect{fill:#3b82c4}"
            "line{stroke:#d9822b;stroke-width:2}"
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
            f'<style>{style}</style><text x="{left}" y="18">rows a second against the bare loop; '
            f"the line is the target</text>{''.join(parts)}</svg>\n"
        )


QUESTIONS = ("batches", "physical", "latency", "rate", "safety", "memory", "startup", "peers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=QUESTIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the tables' rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="classify-bench-") as directory:
        bench = Bench(Path(directory), options.scale, options.repeats)
        for question in QUESTIONS:
            if question in options.only:
                getattr(bench, question)()
    if tuple(options.only) == QUESTIONS and options.scale == 1.0:
        (HERE / "RESULTS.md").write_text(bench.results.markdown(), encoding="utf-8")
        (HERE / "results.svg").write_text(bench.chart(), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
