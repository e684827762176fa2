"""Measure what `classify run` gets out of a server against the best of a grid of fixed settings.

The servers of simulated.mjs, each with a cost of its own, and real ones with a tiny random model on
the CPU. For each: a grid of batch sizes and concurrencies, the best three of it again in turn,
today's defaults, those of an older checkout, and `auto` for a minute. Throughput is counted at the
server while a run is under way, and the run is killed then. Each server has its own part of
RESULTS.md, which a run of this file writes.

    python servers.py --baseline CHECKOUT            # all of the simulated ones
    python servers.py --server padded knee           # some
    python servers.py --quick                        # whether everything works; writes nothing
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import replicas
from endpoints import Endpoint, infinity, simulated, started, toolkit
from measuring import HERE, write_results
from runs import Code, Rate, Unsupported, check, end_on_sigterm, measured
from texts import write_texts

if TYPE_CHECKING:
    from collections.abc import Callable

BOTH = RANDOM, BY_LENGTH = "random", "by length"


@dataclass(frozen=True)
class Pace:
    """How long everything takes, in seconds, and what the grid is made of."""

    sizes: tuple[int, ...] = (1, 8, 32, 128, 512)
    concurrencies: tuple[int, ...] = (1, 4, 16, 64)
    # After the first answer, before anything counts.
    warm_up_s: float = 1.5
    cell_s: float = 5.0
    # How often the best three are measured again.
    again: int = 2
    defaults_s: float = 20.0
    auto_s: float = 60.0
    # The rows of the table whose every answer is compared.
    checked: int = 1_000


QUICK = Pace((32,), (16,), 0.3, 1.0, 0, 1.0, 2.0, 100)


@dataclass(frozen=True)
class Server:
    """A server, as it is measured. `most` is more texts a second than it can do."""

    name: str
    what: str
    start: Callable[[argparse.Namespace, Path], Endpoint]
    most: int
    sizes: tuple[int, ...] = (1, 8, 32, 128, 512)
    concurrencies: tuple[int, ...] = (1, 4, 16, 64)
    # Of the table: both where it matters how long the texts of a batch are.
    orders: tuple[str, ...] = (RANDOM,)
    settings: tuple[str, ...] = ()
    # Before anything counts, beyond that of the pace: what a pause has saved up is spent first.
    warm_up_s: float = 0.0
    # Whether `expected` of texts.py tells its answers.
    known_answers: bool = True
    # What is wanted of `auto` over the defaults of the older checkout.
    over_defaults: float | None = None


def _simulated(name: str) -> Callable[[argparse.Namespace, Path], Endpoint]:
    return lambda _options, _directory: simulated(name)


def _toolkit(options: argparse.Namespace, directory: Path) -> Endpoint:
    if options.toolkit is None:
        raise Unsupported("needs --toolkit CHECKOUT, a checkout of huggingface-inference-toolkit")
    return toolkit(
        options.toolkit, _python(options, "toolkit"), _model(options, "toolkit", directory)
    )


def _infinity(options: argparse.Namespace, directory: Path) -> Endpoint:
    return infinity(_python(options, "infinity"), _model(options, "infinity", directory))


def _python(options: argparse.Namespace, name: str) -> str:
    """Return the interpreter of a real server's environment."""
    found = getattr(options, f"{name}_python") or HERE.parent / ".servers" / name / "bin" / "python"
    if not Path(found).exists():
        raise Unsupported(f"not installed: make install-servers, or --{name}-python")
    return str(Path(found).absolute())


def _model(options: argparse.Namespace, name: str, directory: Path) -> Path:
    command = [_python(options, name), str(HERE / "random_model.py"), str(directory / "model")]
    subprocess.run(command, check=True)
    return directory / "model"


SERVERS = [
    Server("sequential", "works through a list, one at a time", _simulated("sequential"), 240),
    Server(
        "padded", "one padded batch at a time", _simulated("padded"), 1_700,
        orders=BOTH, over_defaults=2.0,
    ),
    Server(
        "toolkit", "works through a list, or pads it if parameters.batch_size says so",
        _simulated("toolkit"), 1_700, orders=BOTH, over_defaults=1.5,
    ),
    Server(
        "dynamic", "batches of 16,384 tokens of any requests, 512 permits for texts, as TEI",
        _simulated("dynamic"), 2_400, sizes=(1, 8, 32),
    ),
    Server("knee", "best at 128 texts, out of memory above 256", _simulated("knee"), 1_900,
           over_defaults=1.2),
    Server(
        "serverless", "10 requests a second, whatever they hold", _simulated("serverless"), 7_000,
        warm_up_s=3.5,
    ),
    Server(
        "hf-toolkit", "Hugging Face's toolkit with a tiny random model on the CPU", _toolkit, 3_000,
        sizes=(1, 32, 128), concurrencies=(1, 4, 16), orders=BOTH, known_answers=False,
    ),
    Server(
        "infinity", "infinity_emb with a tiny random model on the CPU", _infinity, 3_000,
        sizes=(1, 32, 128), concurrencies=(1, 4, 16), orders=BOTH, known_answers=False,
        settings=("--dialect", "infinity", "--truncate"),
    ),
]  # fmt: skip
REAL = ("hf-toolkit", "infinity")
REPLICAS = "replicas"
# So many times as long as for one server: the search is over when the first third is.
REPLICAS_TIMES = 3
FIXED = "32 texts, 32 at once"
MACHINE = (
    f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
    f"Python {platform.python_version()}"
)
Cell = tuple[str, int, int]


@dataclass
class Bench:
    """Measures one server after another, in a temporary directory."""

    options: argparse.Namespace
    pace: Pace
    directory: Path
    new: Code
    old: Code | None

    def table(self, rows: int, *, batch: int | None = None) -> Path:
        path = self.directory / f"{rows}-{batch}.parquet"
        if not path.exists():
            write_texts(path, rows, batch=batch)
        return path

    def grid(self, server: Server) -> list[Cell]:
        """Return its cells: sizes and concurrencies of both the server and the pace."""
        return [
            (order, size, concurrency)
            for order, size, concurrency in product(
                server.orders, server.sizes, server.concurrencies
            )
            if size in self.pace.sizes
            and concurrency in self.pace.concurrencies
            and not (order == BY_LENGTH and size == 1)
        ]

    def warm_up_s(self, server: Server) -> float:
        return self.pace.warm_up_s + (0 if self.options.quick else server.warm_up_s)

    def cell(self, server: Server, endpoints: list[Endpoint], cell: Cell, window_s: float) -> Rate:
        order, size, concurrency = cell
        # Room for the longest window there may be, at the speed of the server's best.
        warm_up_s = self.warm_up_s(server)
        rows = int(server.most * (warm_up_s + 2 * window_s))
        return measured(
            self.new, endpoints, self.table(rows, batch=size if order == BY_LENGTH else None),
            "--batch-size", size, "--concurrency", concurrency, *server.settings,
            warm_up_s=warm_up_s, window_s=window_s,
        )  # fmt: skip

    def best(
        self, server: Server, endpoints: list[Endpoint]
    ) -> tuple[dict[Cell, float], Cell, float]:
        """Measure the grid and its best three again in turn; return it, the best, and its speed."""
        found = {}
        for cell in self.grid(server):
            found[cell] = self.cell(server, endpoints, cell, self.pace.cell_s).a_second
            print(f"  {named(cell):40} {found[cell]:8,.0f} texts/s", flush=True)
        three = sorted(found, key=lambda cell: -found[cell])[:3]
        runs = {cell: [] if self.pace.again else [found[cell]] for cell in three}
        for cell in three * self.pace.again:
            runs[cell].append(self.cell(server, endpoints, cell, 2 * self.pace.cell_s).a_second)
        means = {cell: sum(each) / len(each) for cell, each in runs.items()}
        best = max(three, key=lambda cell: means[cell])
        print(f"  best: {named(best)}, {means[best]:,.0f} texts/s", flush=True)
        return found, best, means[best]

    def contenders(self, server: Server, endpoints: list[Endpoint]) -> dict[str, Rate]:
        """Measure the defaults of both checkouts, and `auto`."""
        auto = tuple(self.options.auto.split())
        at_first_s = self.warm_up_s(server)
        table = self.table(int(server.most * (self.pace.auto_s * 1.1 + self.pace.warm_up_s)))
        asked: list[tuple[Code | None, str, tuple[str, ...], float, float]] = [
            (self.old, "defaults", (), at_first_s, self.pace.defaults_s),
            (self.new, FIXED, ("--batch-size", "32", "--concurrency", "32"),
             at_first_s, self.pace.defaults_s),
            (self.new, "auto", auto, self.pace.auto_s / 2, self.pace.auto_s / 2),
        ]  # fmt: skip
        found = {}
        for code, name, settings, warm_up_s, window_s in asked:
            if code is None or (self.options.quick and name == FIXED):
                continue
            try:
                one = measured(
                    code, endpoints, table, *settings, *server.settings,
                    warm_up_s=warm_up_s, window_s=window_s,
                )  # fmt: skip
            except Unsupported as reason:
                print(f"  {code.name}, {name}: skipped: {reason}")
                continue
            found[f"{code.name}, {name}"] = one
            print(
                f"  {code.name + ', ' + name:40} {one.a_second:8,.0f} texts/s, "
                f"in all {one.in_all:,.0f}; {one.texts_a_request:.1f} texts a request",
                flush=True,
            )
            if name == "auto":
                print("    by second:", *one.by_second)
                print("    requests by texts:", one.sizes, "refused:", one.refused)
        return found

    def measure(self, server: Server) -> list[str]:
        """Measure one server; return its part of RESULTS.md."""
        print(f"\n{server.name}: {server.what}", flush=True)
        with started(server.start(self.options, self.directory)) as endpoints:
            if server.known_answers:
                table = self.table(self.pace.checked)
                rows = check(self.new, endpoints[0], table, *self.options.auto.split())
                print(f"  {rows:,} rows: every answer is right", flush=True)
            grid, best, speed = self.best(server, endpoints)
            found = self.contenders(server, endpoints)
        return report(server, grid, best, speed, found)

    def replicas(self) -> list[str]:
        """Measure the best of each replica, then all of them at once with one killed and back."""
        print(
            f"\n{REPLICAS}: three padded servers of speeds {replicas.SPEEDS}, one killed and back"
        )
        padded = next(server for server in SERVERS if server.name == "padded")
        few = replace(padded, orders=(BY_LENGTH,), sizes=(32, 128, 512), concurrencies=(4, 16))
        bests = []
        for each in replicas.replicas():
            with started(each) as endpoints:
                bests.append(self.best(few, endpoints)[2])
        lines = []
        for name, texts, could in replicas.outage(
            self.new,
            self.directory,
            bests,
            max(15.0, REPLICAS_TIMES * self.pace.auto_s),
            *self.options.auto.split(),
        ):
            print(f"  {name:40} {texts:8,.0f} texts/s, {texts / could:.3f} of {could:,.0f}")
            lines.append([name, f"{texts:,.0f}", f"{could:,.0f}", f"{texts / could:.3f}"])
        return [
            f"## {REPLICAS}: padded, of speeds 1, 0.6 and 0.3; the second killed and back",
            "",
            f"{MACHINE}. The sum is that of the bests of each alone. The output has each row once.",
            "",
            *markdown(["", "texts/s", "the sum", "of the sum (target: 0.95)"], lines),
        ]


def named(cell: Cell) -> str:
    order, size, concurrency = cell
    return f"{plural(size)}, {concurrency} at once, {order}"


def plural(texts: int) -> str:
    return f"{texts} text{'s' * (texts > 1)}"


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def report(
    server: Server, grid: dict[Cell, float], best: Cell, speed: float, found: dict[str, Rate]
) -> list[str]:
    """Return a server's part of RESULTS.md."""
    lines = [[f"best of the grid: {named(best)}", f"{speed:,.0f}", "1.000", "", "", "", ""]]
    defaults = next((one for name, one in found.items() if name.endswith(", defaults")), None)
    for name, one in found.items():
        lines.append(
            [
                name,
                f"{one.a_second:,.0f}",
                f"{one.a_second / speed:.3f}",
                f"{one.in_all / speed:.3f}",
                f"{one.a_second / defaults.a_second:.2f}" if defaults and defaults.a_second else "",
                f"{one.texts_a_request:.1f}",
                ""
                if one.padding is None or BY_LENGTH not in server.orders
                else f"{one.padding:.2f}",
            ]
        )
    header = ["", "texts/s", "of the best", "in all, of the best", "of the defaults",
              "texts a request", "padded over real tokens"]  # fmt: skip
    wanted = "at least 0.95 of the best in its last half, 0.85 in all"
    if server.over_defaults:
        wanted += f", {server.over_defaults} times the defaults"
    concurrencies = sorted({concurrency for _, _, concurrency in grid})
    cells = [
        [f"{plural(size)}, {order}"]
        + [f"{grid.get((order, size, concurrency), 0):,.0f}" for concurrency in concurrencies]
        for order, size in dict.fromkeys((order, size) for order, size, _ in grid)
    ]
    return [
        f"## {server.name}: {server.what}", "", f"{MACHINE}. Wanted of `auto`: {wanted}.", "",
        *markdown(header, lines), "",
        "The grid, in texts/s, by requests in flight:", "",
        *markdown(["", *map(str, concurrencies)], cells),
    ]  # fmt: skip


def estimate(bench: Bench, servers: list[Server]) -> float:
    """Estimate how many seconds these take."""
    pace, start_s = bench.pace, 1.5
    total_s = 0.0
    for server in servers:
        before_s = bench.warm_up_s(server) + start_s
        total_s += len(bench.grid(server)) * (before_s + pace.cell_s)
        total_s += 3 * pace.again * (before_s + 2 * pace.cell_s)
        total_s += 2 * (before_s + pace.defaults_s) + pace.auto_s + 15
    return total_s


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [server.name for server in SERVERS] + [REPLICAS]
    simulated_ones = [name for name in names if name not in REAL]
    parser.add_argument("--server", nargs="+", choices=names, default=simulated_ones)
    parser.add_argument("--code", type=Path, default=HERE.parent, help="the checkout to measure")
    parser.add_argument("--baseline", type=Path, help="a checkout whose defaults are measured")
    parser.add_argument("--auto", default="--batch-size auto", help="the settings of `auto`")
    parser.add_argument("--quick", action="store_true", help="only see that everything works")
    parser.add_argument("--toolkit", type=Path, help="a checkout of huggingface-inference-toolkit")
    parser.add_argument("--toolkit-python", help="of an environment that has what it needs")
    parser.add_argument("--infinity-python", help="of an environment that has infinity_emb")
    return parser.parse_args()


def main() -> None:
    end_on_sigterm()
    options = arguments()
    known = {server.name: server for server in SERVERS}
    old = options.baseline and Code("baseline", options.baseline)
    with tempfile.TemporaryDirectory(prefix="classify-servers-") as directory:
        bench = Bench(
            options, QUICK if options.quick else Pace(), Path(directory),
            Code("this checkout", options.code), old,
        )  # fmt: skip
        # The replicas take as long as two servers: three small grids, and four minutes together.
        counted = [known.get(name, known["sequential"]) for name in options.server]
        counted += [known["sequential"]] * 2 * (REPLICAS in options.server)
        minutes = max(1, estimate(bench, counted) / 60)
        print(f"{', '.join(options.server)}: about {minutes:.0f} min", flush=True)
        for name in options.server:
            try:
                lines = bench.replicas() if name == REPLICAS else bench.measure(known[name])
            except Unsupported as reason:
                print(f"{name}: skipped: {reason}")
                continue
            if not options.quick:
                write_results(f"servers.py {name}", "\n".join(lines))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
