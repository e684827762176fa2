"""Measure `classify run` with everything on against the endpoint's limit and against its peers.

Each figure is a ratio against a reference run on the same machine, over the same table, in turn
with it, several times; medians are shown. Every contender is measured as a whole process, from
start to end. Prints its results, and writes its part of RESULTS.md, and results.svg.

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
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from measuring import HERE, Measured, Server, classify, measure, serving, write_results

if TYPE_CHECKING:
    from collections.abc import Callable

CONCURRENCY = 64
PEERS = {
    "huggingface_hub": "hub.py",
    "datasets.map": "datasets_map.py",
    "Daft": "daft_udf.py",
    "Ray Data": "ray_data.py",
}
# Of the bare loop, by texts a request: one process, and processes on two cores.
TARGETS = {1: 0.86, 32: 0.56, 128: 0.45}
PROCESSES_TARGETS = {1: 1.0, 32: 0.6, 128: 0.4}
PROCESSES = ("--engine", "processes", "--workers", 2)
HEADER = ["", "rows/s", "of the bare loop", "requests", "CPU s a million rows", "peak MB"]


@dataclass
class Results:
    """What is printed and written: one table a question, a line a contender."""

    sections: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    targets: list[list[str]] = field(default_factory=list)
    bars: list[tuple[str, float, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def target(self, what: str, target: str, measured: str, met: bool) -> None:
        self.targets.append([what, target, measured, "yes" if met else "no"])

    def add(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        self.sections.append((title, header, rows))
        print(f"\n{title}\n  " + " | ".join(header))
        for row in rows:
            print("  " + " | ".join(row), flush=True)

    def markdown(self) -> str:
        """Give its part of RESULTS.md."""
        lines = [
            "## The client",
            "",
            "Written by bench.py; see [README](README.md) for what is measured and how. "
            f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python "
            f"{platform.python_version()}, "
            + ", ".join(f"{name} {number}" for name, number in self.versions.items())
            + ".",
            "",
            "![rows a second against the bare loop](results.svg)",
        ]
        summary = ("Targets", ["what", "target", "measured", "reached"], self.targets)
        for title, header, rows in (summary, *self.sections):
            lines += ["", f"### {title}", "", "| " + " | ".join(header) + " |"]
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
        for name in ("aiohttp", "uvloop", "orjson", "pyarrow"):
            self.results.versions[name] = version(name)

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
        return replace(run, requests=server.stats()["requests"])

    def bare(self, table: Path, server: Server, batch: int) -> Measured:
        server.reset()
        run = measure(
            [sys.executable, str(HERE / "bare.py"), str(table), server.url, str(batch),
             str(CONCURRENCY)]
        )  # fmt: skip
        if run.exit_code:
            sys.exit("The bare loop failed.")
        return replace(run, requests=server.stats()["requests"])

    def peer(self, name: str, table: Path, server: Server) -> Measured:
        server.reset()
        arguments = [HERE / "peers" / PEERS[name], table, server.url, CONCURRENCY]
        run = measure([str(_python_of(name)), *map(str, arguments)])
        return replace(run, requests=server.stats()["requests"])

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
                    f"{median(run.requests for run in runs):,.0f}",
                    f"{median(run.cpu_seconds for run in runs) / rows * 1e6:,.0f}",
                    f"{max(run.peak_mb for run in runs):,.0f}",
                ]
            )
        return lines

    def batches(self) -> None:
        """One, 32 and 128 texts a request, against the bare loop."""
        with serving() as server:
            for batch, wanted in ((1, 120_000), (32, 1_000_000), (128, 2_000_000)):
                table, rows = self.table(wanted)
                ours = partial(self.ours, table, server, "--batch-size", batch)
                found = self.alternating(
                    {
                        "bare loop": partial(self.bare, table, server, batch),
                        "classify run": ours,
                        "classify run, 2 processes": partial(ours, *PROCESSES),
                    }
                )
                name = f"{batch} text{'s' * (batch > 1)} a request"
                lines = self.lines(found, rows, "bare loop")
                self.results.bars.append((name, float(lines[1][2]), TARGETS[batch]))
                for line, how, targets in (
                    (lines[1], "", TARGETS), (lines[2], ", engine processes", PROCESSES_TARGETS)
                ):  # fmt: skip
                    ratio, wanted_ratio = float(line[2]), targets[batch]
                    self.results.target(
                        f"{name}{how}, of the bare loop",
                        f"at least {wanted_ratio:.2f}",
                        f"{ratio:.3f}",
                        ratio >= wanted_ratio,
                    )
                self.results.add(f"{name}, {rows:,} rows", HEADER, lines)

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
        table, rows = self.table(76_800)
        with serving(latency_ms=100) as server:
            found = self.alternating(
                {
                    "bare loop": partial(self.bare, table, server, 1),
                    "classify run": partial(self.ours, table, server, "--batch-size", 1),
                }
            )
        rates = {name: median(rows / run.seconds for run in runs) for name, runs in found.items()}
        share = rates["classify run"] / 640
        self.results.target(
            "100 ms latency, concurrency 64, of 640 requests/s",
            "at least 0.97",
            f"{share:.3f}",
            share >= 0.97,
        )
        self.results.add(
            f"100 ms latency, concurrency 64, {rows:,} rows, one a request",
            ["", "requests/s", "of 640"],
            [[name, f"{rate:,.1f}", f"{rate / 640:.3f}"] for name, rate in rates.items()],
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
        most = max(most for _, most in lines)
        self.results.target(
            "rate 200 on a fast endpoint: of 200 requests/s, and the most in any second",
            "0.98 to 1.00, and 205",
            f"{mean / 200:.3f}, and {most}",
            0.98 <= mean / 200 <= 1.0 and most <= 205,
        )
        self.results.add(
            f"rate 200, {rows:,} requests",
            ["requests/s", "of 200", "most in any second"],
            [[f"{mean:.1f}", f"{mean / 200:.3f}", str(most)]],
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
                            self.ours, table, server, "--batch-size", batch, command=unsafe
                        ),
                        "both on": partial(self.ours, table, server, "--batch-size", batch),
                    }
                )
                both = self.lines(found, rows, "both off")
                lines += [[f"{batch} a request, {line[0]}", *line[1:]] for line in both]
                ratio = float(both[1][2])
                self.results.target(
                    f"response store and checkpoint, {batch} a request, of both off",
                    "at least 0.90",
                    f"{ratio:.3f}",
                    ratio >= 0.9,
                )
        self.results.add(
            "Response store and checkpoint",
            ["", "rows/s", "of both off", *HEADER[3:]],
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
            ratio = peaks[1] / peaks[0]
            self.results.target(
                f"peak memory at {many:,} rows, and against {few:,}",
                "at most 400 MB, and 1.15",
                f"{peaks[1]:,.0f} MB, and {ratio:.3f}",
                peaks[1] <= 400 and ratio <= 1.15,
            )
            self.results.add(
                "Memory",
                ["rows", "peak MB", "ratio"],
                [
                    [f"{few:,}", f"{peaks[0]:,.0f}", ""],
                    [f"{many:,}", f"{peaks[1]:,.0f}", f"{ratio:.3f}"],
                ],
            )
            seconds = median(self.resume(large, many, server))
        self.results.target(
            f"first request of a resume at 95% of {many:,} rows",
            "within 3 s",
            f"{seconds:.2f} s",
            seconds <= 3,
        )
        self.results.add(
            "First request of a resume at 95%",
            ["rows", "seconds from the start of the command"],
            [[f"{many:,}", f"{seconds:.2f}"]],
        )

    def resume(self, table: Path, rows: int, server: Server) -> list[float]:
        """Kill a run at 95%, start it again, and give the seconds until its first request.

        It is killed again then, so that it can be measured several times.
        """
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
        seconds = []
        for _ in range(self.repeats):
            server.reset()
            started = time.time()
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as child:
                while child.poll() is None and not server.stats()["requests"]:
                    time.sleep(0.02)
                seconds.append(server.stats()["first_at"] / 1000 - started)
                child.send_signal(signal.SIGKILL)
        return seconds

    def startup(self) -> None:
        """What starting costs over the bare interpreter."""
        commands = {
            "python -c pass": ["-c", "pass"],
            "classify --help": classify("--help")[1:],
            "import pipeline": ["-c", "import pipeline"],
        }
        found = self.alternating(
            {name: partial(measure, [sys.executable, *c]) for name, c in commands.items()}
        )
        least = {name: median(run.seconds for run in runs) for name, runs in found.items()}
        base = least["python -c pass"]
        for name, most_ms in (("classify --help", 150), ("import pipeline", 250)):
            over_ms = (least[name] - base) * 1e3
            self.results.target(
                f"{name}, over the bare interpreter",
                f"at most {most_ms} ms",
                f"{over_ms:.0f} ms",
                over_ms <= most_ms,
            )
        self.results.add(
            "Start",
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
            for name in PEERS:
                if not _python_of(name).exists():
                    print(f"{name}: not installed (make bench-peers), skipped")
                    continue
                contenders[name] = partial(self.peer, name, table, server)
            found = self.alternating(contenders)
        for name, runs in list(found.items()):
            if any(run.exit_code for run in runs):
                print(f"{name}: failed, left out")
                del found[name]
        rates = {name: median(rows / run.seconds for run in runs) for name, runs in found.items()}
        peers = {name: rate for name, rate in rates.items() if name in PEERS}
        for name in peers:
            self.results.versions[name] = _version_of(name)
        if not peers:
            return
        best = max(peers, key=lambda name: peers[name])
        self.best_peer(best)
        lines = self.lines(found, rows, "bare loop")
        for line in lines:
            line.insert(3, f"{rates[line[0]] / peers[best]:.2f}")
        header = [*HEADER[:3], "of the best peer", *HEADER[3:]]
        self.results.add(f"Peers, {rows:,} rows", header, lines)

    def best_peer(self, best: str) -> None:
        """The best peer over a table on which starting is a small part."""
        table, rows = self.table(400_000)
        with serving() as server:
            found = self.alternating(
                {
                    best: partial(self.peer, best, table, server),
                    "classify run, 32 a request": partial(
                        self.ours, table, server, "--batch-size", 32
                    ),
                }
            )
        if any(run.exit_code for run in found[best]):
            print(f"{best} failed on {rows:,} rows: not compared")
            return
        lines = self.lines(found, rows, best)
        times = float(lines[1][2])
        self.results.target(
            f"32 texts a request, against the best peer ({best})",
            "at least 15 times",
            f"{times:.1f} times",
            times >= 15,
        )
        self.results.add(
            f"The best peer, {rows:,} rows", ["", "rows/s", f"of {best}", *HEADER[3:]], lines
        )

    def chart(self) -> str:
        """Draw the ratios to the bare loop, with their targets, as SVG."""
        width, bar, gap, left = 640, 26, 18, 170
        parts = []
        for i, (name, ratio, wanted) in enumerate(self.results.bars):
            y = 30 + i * (bar + gap)
            scale = (width - left - 60) / 1.3
            target = left + wanted * scale
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


def _python_of(peer: str) -> Path:
    """Where the interpreter of a peer's environment is."""
    return HERE / ".peers" / Path(PEERS[peer]).stem / "bin" / "python"


def _version_of(peer: str) -> str:
    """The version of a peer in its environment."""
    package = {"datasets.map": "datasets", "Daft": "daft", "Ray Data": "ray"}.get(peer, peer)
    command = f"from importlib.metadata import version; print(version({package!r}))"
    found = subprocess.run(
        [str(_python_of(peer)), "-c", command], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


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
        write_results("bench.py", bench.results.markdown())
        (HERE / "results.svg").write_text(bench.chart(), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
