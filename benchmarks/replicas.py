"""Three replicas of unequal speed behind one run, one of them killed and started again.

`endpoint` must be repeatable for it: a checkout that asks one of the addresses only is left out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from endpoints import Endpoint, free_port, simulated, started
from runs import Unsupported, compare, counted, done_at, rate
from texts import write_texts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runs import Code, Run

SPEEDS = (1.0, 0.6, 0.3)
KILLED = 1
# At the end the table runs out, for one replica after the other.
END_S = 10.0
# From the start of the command until each has answered a request.
ALL_ASKED_S = 10.0


@dataclass
class Outage:
    """What a replica had done when it was killed; when that was, and when it was back, in ms."""

    before: list[list[float]]
    texts: int
    killed: float = 0.0
    back: float = 0.0


def replicas() -> list[Endpoint]:
    """Return the three, not yet started; each keeps its port when it is started again."""
    return [simulated("padded", "--speed", speed, "--port", free_port()) for speed in SPEEDS]


def outage(
    code: Code, directory: Path, bests: Sequence[float], seconds: float, *settings: object
) -> list[tuple[str, float, float]]:
    """Run for about `seconds` over all three, one of them away for a sixth of that.

    Returns what was measured: a name, texts a second, and the sum of what those there can do. The
    output is compared row by row. Raises Unsupported if only some of them are asked.
    """
    table = directory / "replicas.parquet"
    rows = int(sum(bests) * seconds)
    write_texts(table, rows)
    servers = replicas()
    with started(*servers), code.running(table, [each.url for each in servers], *settings) as run:
        _all_asked(servers, run)
        began = min(each.stats()["first_at"] for each in servers)
        _sleep_until(began + seconds / 3 * 1e3, run)
        away = Outage(counted(servers[KILLED]), servers[KILLED].stats()["texts"])
        servers[KILLED].kill()
        away.killed = time.time() * 1e3
        _sleep_until(away.killed + seconds / 6 * 1e3, run)
        servers[KILLED].start()
        away.back = time.time() * 1e3
        run.wait(seconds * 10)
        done = sorted([*done_at(servers, run), *away.before])
        answered = sum(each.stats()["texts"] for each in servers)
        assert compare(table, run.output) == rows
    answered += away.texts
    print(f"  {rows:,} rows, each once in the output; {answered:,} texts answered by the servers")
    return _phases(done, away, bests, rows)


def _phases(
    done: list[list[float]], away: Outage, bests: Sequence[float], rows: int
) -> list[tuple[str, float, float]]:
    began, ended = done[0][0], done[-1][0]
    late = ended - END_S * 1e3
    there, others = sum(bests), sum(bests) - bests[KILLED]
    # What all could have done in the time that the run took, the outage left out.
    could = there * (ended - began) - bests[KILLED] * (away.back - away.killed)
    return [
        ("before the kill", rate(done, (began + away.killed) / 2, away.killed), there),
        ("one of three killed", rate(done, away.killed, away.back), others),
        ("it is back", rate(done, away.back, late), there),
        ("in all", rows / (ended - began) * 1e3, could / (ended - began)),
    ]


def _all_asked(servers: Sequence[Endpoint], run: Run) -> None:
    until = time.monotonic() + ALL_ASKED_S
    while not all(each.stats()["requests"] for each in servers):
        if run.ended() or time.monotonic() > until:
            asked = sum(bool(each.stats()["requests"]) for each in servers)
            raise Unsupported(f"--endpoint cannot be repeated: {asked} of {len(servers)} answered")
        time.sleep(0.1)


def _sleep_until(ms: float, run: Run) -> None:
    while not run.ended() and time.time() * 1e3 < ms:
        time.sleep(0.1)
