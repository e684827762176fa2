"""A pytest plugin: one line for each row of the table of faults at the end of `make test-faults`.

Tests say their row with `@pytest.mark.fault(row)`, and with `record_property` how often they tried
("tries"), how many inputs were sent again ("sent again") and how many kills fell into a phase
("phase sending"). A row without a passing test fails the run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings

ROWS = {
    1: ("SIGKILL at any moment", "same bytes, no committed row asked again"),
    2: ("crash at each commit step", "same bytes, leftovers cleaned"),
    3: ("torn or garbled log, part, store", "refused with its place, or done again"),
    4: ("power loss", "what was recorded is whole, the rest is done again"),
    5: ("fsync fails", "exit 75, not committed, no second fsync"),
    6: ("disk full", "exit 75, nothing at OUTPUT, continues"),
    7: ("exception in the middle of writing", "nothing readable at OUTPUT"),
    8: ("SIGTERM and SIGINT, once and twice", "drained, or at once; continues"),
    9: ("cancellation at every await", "nothing left behind, CancelledError goes through"),
    10: ("two runs, one output", "exit 5 at once, no stale lock"),
    11: ("something changed before a resume", "refused, naming the difference"),
    12: ("429 and its hints", "honoured to a cap, shared by all"),
    13: ("outage", "outlasted, or exit 75"),
    14: ("model loading", "waited for with a handful of requests"),
    15: ("401, 402, 403, 404, 410", "exit 4 at once"),
    16: ("poison rows", "they carry the error, the others a label"),
    17: ("hangs", "one timeout, the others keep their pace"),
    18: ("connection death", "retried, no row twice"),
    19: ("wrong answers with 200", "typed errors, never a wrong label"),
    20: ("the promise of the rate", "no window above it"),
    21: ("adaptive limit", "within its ranges"),
    22: ("memory", "flat against the number of rows"),
    23: ("CSV values", "text exact, collisions refused"),
    24: ("CSV bytes", "as Python's csv reads them, or the line"),
    25: ("Parquet and notebook", "stable schema, or a clear error"),
    27: ("records missing, doubled, out of order", "refused with the place, nothing deleted"),
    28: ("hostile headers, bodies, bytes; the token echoed", "typed errors, no token, no escapes"),
    29: ("worker killed, frozen, woken", "its requests sent by others, nothing more by it"),
    32: ("object storage that misbehaves", "nothing lost, nothing double"),
}


@dataclass
class _Row:
    tests: int = 0
    passed: int = 0
    tries: int = 0
    sent_again: int | None = None
    phases: Counter[str] = field(default_factory=Counter)


_rows = {number: _Row() for number in ROWS}


def pytest_configure() -> None:
    """Try more examples of what Hypothesis makes up, where a test leaves their number open."""
    settings.register_profile("faults", max_examples=2_000)
    settings.load_profile("faults")


def pytest_itemcollected(item: pytest.Item) -> None:
    for mark in item.iter_markers("fault"):
        (row,) = mark.args
        if row not in ROWS:
            raise pytest.UsageError(f"{item.nodeid}: there is no row {row} in the table of faults")
        item.user_properties.append(("fault", row))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    properties = report.user_properties
    for row in {value for name, value in properties if name == "fault"}:
        found = _rows[row]
        if report.failed:
            found.tests += 1
        elif report.when == "call":
            found.tests += 1
            found.passed += 1
            found.tries += dict(properties).get("tries", 1)
            for name, value in properties:
                if name == "sent again":
                    found.sent_again = max(found.sent_again or 0, value)
                elif name.startswith("phase "):
                    found.phases[name.removeprefix("phase ")] += value


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == 0 and not all(row.passed for row in _rows.values()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("faults")
    for number, (fault, promise) in ROWS.items():
        row = _rows[number]
        held = promise
        if not row.passed or row.passed < row.tests:
            held = f"{row.tests - row.passed} TESTS FAILED" if row.tests else "NO TEST"
        line = f"{number:>2}  {fault:<38} {row.tries:>5} tries  {held}"
        if row.sent_again is not None:
            line += f"; at most {row.sent_again:,} inputs sent again"
        terminalreporter.write_line(line)
        if row.phases:
            fell = ", ".join(f"{count} {phase}" for phase, count in row.phases.most_common())
            terminalreporter.write_line(f"    kills: {fell}")
