"""The page that simulate.py writes: SIMULATION.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plots import lines, table
from questions import IMAGES
from real_runs import FROM, TO
from simulation import ROW_TEXT_BYTES, Driver

from pipeline.responses.index import LARGE_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from questions import Answered
    from real_runs import Outcome
    from sizes import IndexSize, JournalSize, LogSize

# What is asked, and of what run; the figures follow it.
ABOUT = {
    "whole": "The same 8,000 requests in flight by 10, 100 and 1,000 workers; nodes fail once an "
    "hour, and what is asked again is divided by 24.",
    "memory": "1,000 workers with 8 requests of 32 texts each. Requests of a second need about "
    "as many texts in flight as the driver handles in a second; what is read and not committed "
    "has to hold these, those that wait to be put together by length, and whole chunks around "
    "each that is late.",
    "stragglers": "Some workers take ten times as long for each request. A chunk of 4,096 rows is "
    "128 requests, so it is held for as long as the slowest of them.",
    "failing": "Each node fails once in 10 minutes, far more often than in life. A node that is "
    "silent for 10 s is given up; one that wakes before that goes on, and nothing is repeated.",
    "storms": "An endpoint that lets 2,000 requests a second through, and 429 beyond it.",
    "rates": "As the endpoint counts: after two hops of varying length, with stalls.",
    "cold": "503 for two minutes, while 8,000 requests could be in flight. The limit begins at 4 "
    "and rises by a quarter a round trip.",
    "driver": "Workers end with the driver. The next run replays the log and the journal; what was "
    "in flight, and the answers of the last half second, are asked again.",
    "storage": "A commit is the part and its log entry. Commits follow one another, so their size "
    "over their time is the most that can be committed.",
    "pool": "Real CPU time, the simulation itself included, with enough input.",
}
ROWS = 10**9
# An object's round trip on object storage, for the log that is read entry by entry.
GET_S = 0.02
# Prices in dollars, as assumptions: a million PUTs, a GB and month, a core and hour.
PUT_MILLION, GB_MONTH, CORE_HOUR = 5.0, 0.023, 0.05


def _fact(found: Sequence[Answered], name: str, key: str) -> float:
    return next(each.facts[key] for each in found if each.name == name)


def sizes(
    log: list[LogSize],
    disk: LogSize,
    index: list[IndexSize],
    journal: JournalSize,
    found: Sequence[Answered],
) -> str:
    """Return the sections on log, index, and cost."""
    rate = _fact(found, "whole", "rows_per_s")
    hours = ROWS / rate / 3600
    entries = _fact(found, "whole", "commits_per_s") * ROWS / rate
    last = log[-1]
    byte, read_s = last.size_bytes / last.entries, last.read_s / last.entries
    rows = [
        [f"{each.entries:,}", f"{each.size_bytes / 1e6:.1f} MB", f"{each.append_s * 1e6:,.0f} us",
         f"{each.read_s:.2f} s"]
        for each in log
    ]  # fmt: skip
    parts = [
        "## Log",
        "The real log, in memory: an entry a commit.",
        table(["entries", "size", "to append one more", "to read all"], rows),
        (
            f"10^9 rows are {entries:,.0f} commits at this rate: "
            f"{entries * byte / 1e6:.0f} MB, read in "
            f"{entries * read_s:.0f} s of CPU (extrapolated linearly). On this disk an entry takes "
            f"{disk.append_s * 1e3:.1f} ms to append and "
            f"{disk.read_s / disk.entries * 1e6:.0f} us to "
            f"read. On object storage, one after the other at {GET_S * 1e3:.0f} ms each, "
            f"a resume reads "
            f"for {entries * GET_S / 60:.0f} minutes: nothing shortens the log while a run goes on."
        ),
        "## Index",
    ]
    first, final = index[0], index[-1]
    segments = ROWS / LARGE_ENTRIES
    each_s = (final.stranger_s - first.stranger_s) / (final.segments - first.segments)
    base_s = max(0.0, first.stranger_s - each_s * first.segments)
    end_s, mean_s = base_s + each_s * segments, base_s + each_s * segments / 2
    rows = [
        [f"{each.entries:,}", each.segments, each.files, f"{each.stranger_s * 1e6:.2f} us",
         f"{each.add_s * 1e6:.2f} us"]
        for each in index
    ]  # fmt: skip
    rows.append(
        ["10^9 (extrapolated)", f"{segments:,.0f}", f"{segments:,.0f}", f"{end_s * 1e6:.0f} us", ""]
    )
    lines(
        IMAGES / "sim-index.svg", "To look up a key that is new, by keys in the index",
        "millions of keys", "us",
        {
            "measured": [(each.entries / 1e6, each.stranger_s * 1e6) for each in index],
            "extrapolated": [(final.entries / 1e6, final.stranger_s * 1e6), (1000, end_s * 1e6)],
        },
        points=True,
    )  # fmt: skip
    parts += [
        (
            "The real index. Every new key is looked for in the filter of each segment of "
            f"{LARGE_ENTRIES:,} keys, so its cost grows with their number (extrapolated linearly)."
        ),
        table(["keys", "segments", "open files", "to look up a new key", "to add a key"], rows),
        "![To look up a key that is new, by keys in the index](images/sim-index.svg)",
        (
            f"On average over a run of 10^9 distinct rows a look-up takes {mean_s * 1e6:.0f} us "
            f"of the one thread that looks up: {1 / mean_s:,.0f} rows/s at most, where the rest of "
            f"the driver does {rate:,.0f}. Each segment keeps a file open, and the usual limit is "
            "1,024. In memory the index takes a bit a key, 125 MB."
        ),
        (
            f"The journal: {journal.size_bytes / journal.answers:.0f} bytes an answer "
            f"({ROWS * journal.size_bytes / journal.answers / 1e9:.0f} GB for 10^9), "
            f"{journal.put_s * 1e6:.2f} us to store one, and {journal.open_s:.1f} s to open "
            f"{journal.answers:,}: {ROWS * journal.open_s / journal.answers / 60:.0f} "
            f"minutes for 10^9 "
            "(extrapolated linearly)."
        ),
        "## Cost",
    ]
    answers_gb = ROWS * journal.size_bytes / journal.answers / 1e9
    again = _fact(found, "whole", "again 1000")
    puts = 2 * entries
    parts += [
        (
            f"For 10^9 rows by 1,000 workers, without the endpoint. Prices are assumptions: "
            f"${PUT_MILLION:g} a million PUTs, ${GB_MONTH:g} a GB and month, "
            f"${CORE_HOUR:g} a core and "
            "hour, a core a worker."
        ),
        table(
            ["what", "how much", "$"],
            [
                ["workers", f"{1000 * hours:,.0f} core hours", f"{1000 * hours * CORE_HOUR:,.0f}"],
                ["driver", f"{hours:.1f} hours of 4 cores", f"{4 * hours * CORE_HOUR:.2f}"],
                ["PUTs of parts and log", f"{puts:,.0f}", f"{puts / 1e6 * PUT_MILLION:.2f}"],
                ["journal, a month", f"{answers_gb:.0f} GB", f"{answers_gb * GB_MONTH:.2f}"],
                ["rows asked twice", f"{again * ROWS:,.0f}", f"{again:.4%} of the endpoint"],
            ],
        ),
    ]
    return "\n\n".join(parts)


def _difference(real: float, virtual: float) -> str:
    return f"{virtual / real - 1:+.1%}" if real else "-"


def written(
    machine: str,
    engine: str,
    measured: Driver,
    checks: Sequence[tuple[str, Outcome, Outcome]],
    found: Sequence[Answered],
    sizes_of: str,
    took_s: float,
) -> str:
    """Return the whole page."""
    driver = Driver()
    rows = [
        [name, f"{real.rows_per_s:,.0f}", f"{virtual.rows_per_s:,.0f}",
         _difference(real.rows_per_s, virtual.rows_per_s), f"{real.seconds:.1f}",
         f"{virtual.seconds:.1f}", _difference(real.seconds, virtual.seconds),
         f"{real.worst_second:,} / {virtual.worst_second:,}", f"{real.again:,} / {virtual.again:,}"]
        for name, real, virtual in checks
    ]  # fmt: skip
    off = [(n, abs(v.rows_per_s / r.rows_per_s - 1), v.rows_per_s) for n, r, v in checks]
    near = 0.8 * measured.rows_per_s(32)
    bounded = max(error for _, error, rate in off if rate < near)
    drivers = "".join(
        f"Where the driver's core does ({name}), by {error:.0%}: workers, driver and endpoint "
        "share two cores then, which the model does not know. "
        for name, error, rate in off
        if rate >= near
    )
    requests, seconds = sum(each.requests for each in found), sum(each.virtual_s for each in found)
    share, again = _fact(found, "whole", "share 1000"), _fact(found, "whole", "again 1000")
    head = ["run", "rows/s", "predicted", "", "s", "predicted", "", "worst second"]
    head += ["asked again"]
    sections = [
        "# Simulation",
        ("Written by `make simulate`. 10^9 rows and up to 1,000 workers, in virtual time: the "
        "package's own stream and pool run on a clock that jumps, against a modelled driver, wire, "
        f"endpoint and storage. {machine}; {requests:,} requests in {seconds:,.0f} s of virtual "
        f"time, {took_s / 60:.0f} minutes in all."),
        table(
            ["target", "wanted", "simulated", "reached"],
            [
                ["1,000 workers, of the driver's limit",
                 "at least 0.95", f"{share:.3f}", "yes" if share >= 0.95 else "no"],
                ["rows asked again, a failure a node and day", "below 0.5%", f"{again:.4%}",
                 "yes" if again < 0.005 else "no"],
            ],
        ),
        "## What is simulated",
        ("Real code: `pipeline.job.stream.Stream` (reading, what is held, which part is committed "
        "next) and `pipeline.pool.Pool` (batches, turnstile, gate, concurrency, patience). One "
        "pool, in the driver; workers only exchange bytes. So a coordinator cannot be lost apart "
        "from the driver. Log and index are measured, not simulated."),
        table(
            ["assumption", "value", "source"],
            [
                ["driver's core, a request", f"{driver.request_s * 1e6:.0f} us",
                 "RESULTS.md, from its rates at 32 and at 128 texts a request"],
                ["driver's core, a row", f"{driver.row_s * 1e6:.1f} us", "the same"],
                ["driver's limit at 32 texts", f"{driver.rows_per_s(32):,.0f} rows/s", "follows"],
                ["a text", f"{ROW_TEXT_BYTES} bytes on average", "lognormal, as in texts.py"],
                ["a request of 32 texts", "1 s, spread 0.2 (lognormal), no queue",
                 "a slow model on a CPU; varied below"],
                ["driver to worker, worker to endpoint", "0.5 to 2 ms; 1 in 100 has 50 ms more",
                 "assumed; a cluster in one region"],
                ["a silent worker", ("no requests after 1.5 s, given up after 10 s, replaced 30 s "
                 "later"), "pipeline/engines, the last assumed"],
                ["a commit", "5 ms", "three fsyncs on this disk; varied below"],
            ],
        ),
        ("A stretch of 25 to 170 s is simulated request by request; a rate is that after the first "
        "10 s. But for the cold start and the storms, the limit of requests in flight begins at "
        "its most. What is said of 10^9 rows is that rate times the rows."),
        "## Prediction against real runs",
        ("`classify run` against `server.mjs`, a process on the same two cores, with the engine "
        f"`{engine}`. The driver's core was measured before, in runs against an endpoint that "
        f"answers at once: {measured.request_s * 1e6:.0f} us a request and "
        f"{measured.row_s * 1e6:.1f} us a row, {measured.rows_per_s(32):,.0f} rows/s at 32 texts. "
        f"The rate is that between {FROM:.0%} and {TO:.0%} of the rows, the seconds are from the "
        "first request to the last answer; the last columns are measured / predicted."),
        table(head, rows),
        (f"Where the endpoint, the rate or the memory bounds the run, rates are off by "
        f"{bounded:.0%} at most. {drivers}"),
    ]  # fmt: skip
    for each in found:
        sections += [f"## {each.title}", ABOUT[each.name], *each.paragraphs]
    return "\n\n".join([*sections, sizes_of]) + "\n"
