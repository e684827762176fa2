"""The questions that the simulation answers, each by a table and a plot.

A question is a function of the size that it is asked at, so that a small one can be a test. At a
small size everything is divided by the same number: workers, the driver's speed, memory, chunks.
"""

from __future__ import annotations

import time
from bisect import bisect
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from plots import bars, lines, table
from simulation import Driver, Setup, simulate
from world import DISMISSED_S, Cold, Limited, Replicas

from pipeline.job.stream import CHUNK_ROWS, HELD_BYTES, PART_BYTES, REQUEST_BYTES
from pipeline.pool.batching import MOST_OVERTAKING
from pipeline.rows.dedup import GROUP_COMMIT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation import Seen

IMAGES = Path(__file__).resolve().parent / "images"
MIB = 1 << 20
REQUESTS = 8_000
DAY_S = 86_400.0


@dataclass(frozen=True)
class Size:
    """How large a simulation is: everything is divided by `by`."""

    by: int = 1
    stretch_s: float = 15.0
    warm_s: float = 10.0
    driver: Driver = field(default_factory=Driver)

    def setup(self, **changes: Any) -> Setup:
        """Return a run of 1,000 workers with the package's constants, divided."""
        by, driver = self.by, self.driver
        return Setup(
            **{
                "workers": 1_000 // by,
                "driver": Driver(driver.request_s * by, driver.row_s * by),
                "held_bytes": max(HELD_BYTES, REQUEST_BYTES * REQUESTS) // by,
                "window_batches": max(8, MOST_OVERTAKING // by),
                "part_bytes": PART_BYTES // by,
                "chunk_rows": CHUNK_ROWS // by,
            }
            | changes
        )

    def share(self, seen: Seen) -> float:
        """Return what was answered of what the driver could do at most."""
        limit = seen.setup.driver.rows_per_s(seen.setup.texts)
        return seen.answered_per_s(self.warm_s) / limit

    def run(self, setup: Setup) -> Seen:
        """Simulate a stretch."""
        return simulate(setup, self.warm_s + self.stretch_s)


@dataclass
class Answered:
    """The answer to a question: a section of the page, and figures for a test."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    # A small simulation is for a test, and has no plots.
    draws: ClassVar[bool] = True
    virtual_s: float = 0.0
    requests: int = 0

    def saw(self, seen: Seen) -> Seen:
        """Count what was simulated."""
        self.virtual_s += seen.until
        self.requests += len(seen.world.arrivals)
        return seen

    def add(self, head: list[str], rows: list[list[object]]) -> None:
        """Add a table."""
        self.paragraphs.append(table(head, rows))

    def plot(self, draw: Callable[..., None], title: str, *args: Any, **more: Any) -> None:
        """Draw a plot, and show it."""
        path = IMAGES / f"sim-{self.name}.svg"
        if not self.draws:
            return
        draw(path, title, *args, **more)
        self.paragraphs.append(f"![{title}](images/{path.name})")


def _thousands(number: float) -> str:
    return f"{number:,.0f}"


def memory(size: Size) -> Answered:
    """What 1,000 workers do with so much between reading and commit, and with such a window."""
    out = Answered("memory", "Memory between reading and commit")
    variants: list[tuple[str, int | None, int | None]] = [
        ("64 MiB", 64, 2 * REQUESTS),
        ("64 MiB, window of 256 batches", 64, 256),
        ("128 MiB, window of 256 batches", 128, 256),
        ("256 MiB", 256, 2 * REQUESTS),
        ("256 MiB, window of 256 batches", 256, 256),
        ("512 MiB, window of 256 batches (as it is)", 512, 256),
        ("1,024 MiB", 1024, 2 * REQUESTS),
        ("1,024 MiB, window of 256 batches", 1024, 256),
    ]
    rows, shares = [], {}
    for name, held, window in variants:
        limits: dict[str, Any] = {"held_bytes": held and held * MIB // size.by}
        limits["window_batches"] = window and max(8, window // size.by)
        seen = out.saw(size.run(size.setup(**limits)))
        share, (most, open_rows) = size.share(seen), seen.most_held()
        shares[name] = share
        rate = seen.answered_per_s(size.warm_s)
        rows.append(
            [name, _thousands(rate), f"{share:.2f}", _thousands(rate / 32 * seen.setup.latency_s),
             _thousands(open_rows), f"{most:,.0f}"]
        )  # fmt: skip
        out.facts[name] = share
    head = ["held at most", "rows/s", "of the driver's limit", "requests in flight"]
    out.add([*head, "rows held at most", "MiB held at most"], rows)
    out.plot(bars, "rows/s, of the driver's limit, by what may be held", "share", shares, 0.95)
    rows = []
    for latency_s in (0.1, 0.25, 0.5, 1.5):
        less = {"held_bytes": 64 * MIB // size.by, "window_batches": 2 * REQUESTS // size.by}
        was = out.saw(size.run(size.setup(latency_s=latency_s, **less)))
        now = out.saw(size.run(size.setup(latency_s=latency_s)))
        ceiling = was.setup.in_flight * 32 / latency_s / was.setup.driver.rows_per_s(32)
        rows.append(
            [f"{latency_s:g} s", f"{min(1, ceiling):.2f}", f"{size.share(was):.2f}",
             f"{size.share(now):.2f}", f"{now.most_held()[0]:,.0f} MiB"]
        )  # fmt: skip
        out.facts[f"was {latency_s:g}"] = size.share(was)
        out.facts[f"now {latency_s:g}"] = size.share(now)
    head = ["a request takes", "most possible", "64 MiB", "as it is", "held then"]
    out.add(head, rows)
    return out


def stragglers(size: Size) -> Answered:
    """Parts committed in any order against in the order of the rows, with slow workers."""
    out = Answered("stragglers", "Window against stragglers")
    rows, shares = [], {}
    for slow, held, in_order in (
        (0.0, 256, False), (0.02, 64, True), (0.02, 64, False), (0.02, 256, True),
        (0.02, 256, False), (0.02, 512, True), (0.02, 512, False), (0.05, 512, False),
    ):  # fmt: skip
        window = max(8, 256 // size.by)
        setup = size.setup(
            slow=slow, in_order=in_order, held_bytes=held * MIB // size.by, window_batches=window
        )
        seen = out.saw(size.run(setup))
        limit = setup.driver.rows_per_s(32)
        share = seen.committed_per_s(size.warm_s) / limit
        order = "in order" if in_order else "as ranges"
        name = f"{slow:.0%} slow, {held:,} MiB, {order}"
        shares[name] = out.facts[name] = share
        rate = _thousands(seen.committed_per_s(size.warm_s))
        held_most = f"{seen.most_held()[0]:,.0f}"
        rows.append([f"{slow:.0%}", f"{held:,} MiB", order, rate, f"{share:.2f}", held_most])
    head = ["workers 10 times as slow", "may be held", "commits", "rows/s committed"]
    out.add([*head, "of the driver's limit", "MiB held at most"], rows)
    out.plot(bars, "rows/s committed, of the driver's limit", "share", shares, 0.95)
    return out


def failing(size: Size) -> Answered:
    """Nodes that die or freeze."""
    out = Answered("failing", "Nodes that fail")
    # Many more failures than in life, so that a stretch has enough of them.
    often_s = 600.0
    rows: list[list[object]] = []
    series = {}
    for name, frozen_s in (("die", None), ("freeze for 5 s", 5.0), ("freeze for 65 s", 65.0)):
        setup = size.setup(fails_s=often_s, frozen_s=frozen_s)
        seen = out.saw(simulate(setup, size.warm_s + size.stretch_s + DISMISSED_S))
        world = seen.world
        each = world.repeated / max(1, world.lost)
        daily = each / DAY_S * setup.workers / seen.answered_per_s(size.warm_s)
        share = size.share(seen)
        rows.append(
            [name, world.lost, _thousands(world.repeated), _thousands(each),
             f"{world.repeated / seen.answered:.2%}", f"{daily:.4%}", f"{share:.2f}"]
        )  # fmt: skip
        out.facts[f"repeated {name}"] = daily
        out.facts[f"share {name}"] = share
        out.facts[f"each {name}"] = each
        series[name] = list(enumerate(seen.per_second()))[int(size.warm_s) :]
    head = ["nodes", "given up", "rows asked again", "a node", "of all rows, here"]
    out.add([*head, "with a failure a node and day", "of the driver's limit"], rows)
    out.plot(lines, "rows answered a second while nodes fail every 10 minutes each", "s", "rows/s",
             series)  # fmt: skip
    return out


def storms(size: Size) -> Answered:
    """A rate limit that nobody stated."""
    out = Answered("storms", "Storms of 429")
    limit = 2_000 / size.by
    rows, series = [], {}
    plain = partial(Replicas, 16_000 // size.by, 0.5)
    until = 80.0 if size.by == 1 else 60.0
    for name, hint, settings in (
        ("Retry-After: 5", 5.0, {}),
        ("no Retry-After", None, {}),
        ("Retry-After: 5, and `rate` given", 5.0, {"rate": limit}),
    ):
        setup = size.setup(
            endpoint=lambda hint=hint: Limited(plain(), limit, limit, hint), settings=settings,
            full_at_once=False,
        )  # fmt: skip
        seen = out.saw(simulate(setup, until))
        world, late = seen.world, until / 3
        good = seen.answered_per_s(late) / 32 / limit
        refused = len(world.refusals)
        late_refused = sum(at >= late for at in world.refusals)
        # A storm: 429s that follow one another within a second.
        first = [0] + [
            i for i in range(1, refused) if world.refusals[i] - world.refusals[i - 1] > 1
        ]
        largest = max(b - a for a, b in pairwise([*first, refused]))
        rows.append(
            [name, f"{good:.2f}", _thousands(refused), len(first) if refused else 0,
             _thousands(largest),
             f"{1000 * late_refused / sum(at >= late for at in world.arrivals):.1f}"]
        )  # fmt: skip
        out.facts[f"share {name}"] = good
        out.facts[f"refused {name}"] = refused / len(world.arrivals)
        series[name] = list(enumerate(seen.per_second()))
    head = ["endpoint", f"of its {limit:,.0f} requests/s", "429s", "storms", "most in one"]
    out.add([*head, "of 1,000 requests later"], rows)
    out.plot(lines, "rows answered a second under a rate limit", "s", "rows/s", series)
    return out


def rates(size: Size) -> Answered:
    """The worst second of a stated rate, as the endpoint sees it."""
    out = Answered("rates", "A stated rate")
    rows, shares = [], {}
    for whole in (200, 2_000, 4_000):
        rate = whole / size.by
        setup = size.setup(settings={"rate": rate}, latency_s=0.5)
        seen = out.saw(simulate(setup, size.warm_s + size.stretch_s))
        world = seen.world
        worst = world.worst_second(5.0)
        mean = sum(at >= 5 for at in world.arrivals) / (seen.until - 5)
        allowed = 1.05 * rate + 2
        rows.append([f"{rate:g}", f"{mean / rate:.3f}", worst, f"{worst / rate - 1:+.1%}",
                     f"{allowed:,.0f}"])  # fmt: skip
        shares[f"rate {rate:g}"] = worst / rate
        out.facts[f"worst {whole}"] = worst
        out.facts[f"allowed {whole}"] = allowed
        out.facts[f"mean {whole}"] = mean / rate
    out.add(["rate", "sent of it", "worst second", "over", "1.05 times + 2"], rows)
    out.plot(bars, "requests in the worst second, of the rate", "share", shares, 1.05)
    return out


def cold(size: Size) -> Answered:
    """An endpoint that loads its model for two minutes."""
    out = Answered("cold", "Cold start")
    loaded = 120.0 if size.by == 1 else 40.0
    rows, series = [], {}
    for name, estimate in (("estimate of 20 s", 20.0), ("no estimate", None)):
        colds: list[Cold] = []

        def endpoint(estimate: float | None = estimate, colds: list[Cold] = colds) -> Cold:
            colds.append(Cold(Replicas(16_000 // size.by, 1.0), loaded, estimate))
            return colds[-1]

        setup = size.setup(endpoint=endpoint, full_at_once=False)
        seen = out.saw(simulate(setup, loaded + 50))
        limit = setup.driver.rows_per_s(32)
        seconds = seen.per_second()
        first = next(at for at, _ in seen.answers) - loaded
        full = next((i for i, n in enumerate(seconds) if n >= 0.9 * limit), None)
        rows.append(
            [name, colds[0].refused, f"{first:.1f}", f"{full - loaded:.0f}" if full else "more"]
        )
        out.facts[f"refused {name}"] = colds[0].refused
        out.facts[f"first {name}"] = first
        series[name] = list(enumerate(seconds))
    head = ["503 with", "requests before it was loaded", "first answer, s after"]
    out.add([*head, "0.9 of full speed, s after"], rows)
    out.plot(lines, "rows answered a second; the model is loaded after two minutes", "s", "rows/s",
             series)  # fmt: skip
    return out


def driver_lost(size: Size) -> Answered:
    """What is asked again after the driver is lost."""
    out = Answered("driver", "Loss of the driver")
    rows, shares = [], {}
    for latency_s in (0.25, 1.0, 1.5):
        seen = out.saw(size.run(size.setup(latency_s=latency_s)))
        arrived, answered = seen.world.arrivals, seen.answers
        worst = 0
        for at in (size.warm_s + i * (size.stretch_s - 1) / 50 for i in range(51)):
            sent = 32 * bisect(arrived, at)
            # Answers of the last interval and of the write before it are not durable yet.
            durable = bisect(answered, at - 2 * GROUP_COMMIT_S, key=itemgetter(0))
            worst = max(worst, sent - sum(n for _, n in answered[:durable]))
        share = worst / 1e9 * size.by
        rows.append([f"{latency_s:g} s", _thousands(worst), f"{share:.4%}"])
        shares[f"{latency_s:g} s"] = worst
        out.facts[f"again {latency_s:g}"] = worst
    out.add(["a request takes", "rows asked again, at worst", "of 10^9"], rows)
    out.plot(bars, "rows asked again after the driver is lost, by the time of a request", "rows",
             shares)  # fmt: skip
    return out


def storage(size: Size) -> Answered:
    """Commits that take their time."""
    out = Answered("storage", "Slow storage")
    rows, shares = [], {}
    for part_mib in (8, 64):
        for seconds in (0.005, 0.1, 0.25, 1.0) if part_mib == 8 else (0.25, 1.0, 2.0):
            setup = size.setup(
                latency_s=0.5, part_bytes=part_mib * MIB // size.by,
                storage_s=lambda _now, seconds=seconds: seconds,
            )  # fmt: skip
            seen = out.saw(size.run(setup))
            share = seen.committed_per_s(size.warm_s) / setup.driver.rows_per_s(32)
            name = f"{seconds:g} s a commit, parts of {part_mib} MiB"
            shares[name] = out.facts[name] = share
            commits = [n for at, n, _ in seen.commits if at >= size.warm_s]
            mean = sum(commits) / max(1, len(commits))
            rate = _thousands(seen.committed_per_s(size.warm_s))
            held = f"{seen.most_held()[0]:,.0f}"
            rows.append([f"{seconds:g} s", f"{part_mib} MiB", _thousands(mean), rate,
                         f"{share:.2f}", held])  # fmt: skip
    head = ["a commit takes", "parts up to", "rows a commit", "rows/s committed"]
    out.add([*head, "of the driver's limit", "MiB held at most"], rows)
    out.plot(bars, "rows/s committed, of the driver's limit", "share", shares, 0.95)

    def away(now: float) -> float:
        return max(0.005, 40.0 - now) if now >= 20.0 else 0.005

    seen = out.saw(simulate(size.setup(latency_s=0.5, storage_s=away), 60.0))
    answers, commits = seen.per_second(), seen.per_second("commits")
    stalled = sum(n < 0.1 * answers[15] for n in answers[20:40])
    out.facts["stalled"] = stalled
    out.paragraphs.append(
        f"Storage that is away for 20 s: answers go on for {20 - stalled} of them, with "
        f"{seen.most_held()[0]:,.0f} MiB held at most, and {sum(commits[40:50]):,.0f} rows are "
        "committed in the 10 s after it."
    )
    return out


def pool_cost(size: Size) -> Answered:
    """What the pool itself costs, by the requests in flight."""
    out = Answered("pool", "The pool at this number of requests")
    rows, points = [], []
    for per_worker in (1, 4, 8, 16):
        fast = Driver(1e-9, 1e-9)
        more = {"held_bytes": 2048 * MIB // size.by, "driver": fast, "latency_s": 2.0}
        setup = size.setup(per_worker=per_worker, **more)
        # Of two stretches the difference: what it takes to start all workers does not count.
        spent = []
        for seconds in (5.0, 15.0):
            began = time.process_time()
            seen = out.saw(simulate(setup, seconds))
            spent.append((time.process_time() - began, len(seen.world.arrivals)))
        micros = (spent[1][0] - spent[0][0]) / (spent[1][1] - spent[0][1]) * 1e6
        rows.append([_thousands(setup.in_flight), f"{micros:.0f}"])
        points.append((setup.in_flight, micros))
        out.facts[f"{per_worker}"] = micros
    out.add(["requests in flight at most", "us of CPU a request"], rows)
    title = "CPU of the pool and the simulation, a request"
    out.plot(lines, title, "requests in flight at most", "us", {"us": points}, points=True)
    return out


def whole(size: Size) -> Answered:
    """10^9 rows by 1,000 workers, from a stretch."""
    out = Answered("whole", "10^9 rows by 1,000 workers")
    rows, shares = [], {}
    for workers in (10, 100, 1_000):
        per_worker, few = 8_000 // workers, max(1, workers // size.by)
        setup = size.setup(workers=few, per_worker=per_worker, fails_s=DAY_S / 24)
        seen = out.saw(simulate(setup, 3 * size.stretch_s + size.warm_s))
        share = seen.committed_per_s(size.warm_s) / setup.driver.rows_per_s(32)
        rate = seen.committed_per_s(size.warm_s) * size.by
        again = seen.world.repeated / seen.answered / 24
        rows.append([f"{workers:,} x {per_worker}", _thousands(rate), f"{share:.3f}",
                     f"{1e9 / rate / 3600:.2f} h", f"{again:.4%}",
                     f"{seen.most_held()[0]:,.0f}"])  # fmt: skip
        shares[f"{workers:,} workers"] = share
        out.facts[f"share {workers}"] = share
        out.facts[f"again {workers}"] = again
        out.facts["rows_per_s"] = rate
        held = seen.most_held()
        out.facts["commits_per_s"] = len(seen.commits) / seen.until
        out.facts["held_rows"] = held[1]
    head = ["workers x requests", "rows/s", "of the driver's limit", "10^9 rows take"]
    out.add([*head, "asked again, a failure a node and day", "MiB held"], rows)
    out.plot(bars, "rows/s committed, of the driver's limit", "share", shares, 0.95)
    return out


QUESTIONS: tuple[Callable[[Size], Answered], ...] = (
    whole, memory, stragglers, failing, storms, rates, cold, driver_lost, storage, pool_cost,
)  # fmt: skip
