"""A crash at each step of each commit (fault 2): the same command continues."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.system.failpoints import APPEND_STEPS, CREATE_STEPS, NAMES, PUT_STEPS

pytestmark = pytest.mark.fault(2)

# Two parts, the second one smaller.
FEW = 5_000
PACKAGE = Path(pipeline.__file__).parent
# Reached only where an earlier attempt, or an earlier output, left something behind.
RECOVERY = {"parts.forgotten", "parts.orphan removed"}
BEGIN = ["begin.abandoned", "begin.cleared"]
DIRECTORY = {"draft.begun", "draft.part taken", "output.directory fsynced", "output.moved aside",
             "output.directory renamed", "output.directory durable"}  # fmt: skip
# Passed several times by one process, so that a crash there may have commits of its kind before.
REPEATED = ("parts.", "journal.before", "journal.torn", "journal.written", "journal.synced")
# The entries of the log: the run, its two parts, what is assembled, that it is complete.
ENTRIES = range(2, 6)


def calls_of(name: str) -> list[ast.Call]:
    found = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", ""))
        ]
    return found


def test_every_failpoint_of_the_package_is_listed():
    """A new failpoint is in NAMES, and so it is crashed at below: none can be forgotten."""
    written = [
        ast.literal_eval(call.args[0])
        for name in ("failpoint", "reached")
        for call in calls_of(name)
        if isinstance(call.args[0], ast.Constant)
    ]
    steps = {
        "".join(part.value for part in call.args[0].values if isinstance(part, ast.Constant))
        for name in ("failpoint", "reached")
        for call in calls_of(name)
        if isinstance(call.args[0], ast.JoinedStr)
    }
    steps |= {f".{call.args[0].value}" for call in calls_of("_pass")}
    of_verbs = {*CREATE_STEPS, *PUT_STEPS, *APPEND_STEPS}
    assert {step.removeprefix(".") for step in steps - {"."}} == of_verbs
    assert len(written) == len(set(written))
    commits = {f"log.{step}" for step in CREATE_STEPS}
    commits |= {f"{what}.{step}" for what in ("parts", "summary") for step in PUT_STEPS}
    commits |= {f"journal.{step}" for step in APPEND_STEPS}
    assert set(written) <= NAMES == set(written) | commits


def test_an_unknown_failpoint_is_refused():
    """A misspelt name in a test would otherwise test nothing."""
    found = subprocess.run(
        [sys.executable, "-c", "import pipeline.system.failpoints"],
        env={"PIPELINE_FAILPOINT": "parts.renmaed"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "parts.renmaed" in found.stderr


def test_a_failpoint_that_is_not_set_costs_nothing():
    """A commit passes about ten of them, at far less than the price of one fsync."""
    code = (
        "import timeit; from pipeline.system.failpoints import failpoint as f\n"
        "print(min(timeit.repeat(lambda: f('parts.renamed'), number=10_000)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) / 10_000 < 20e-6


ONCE = [name for name in sorted(NAMES) if name not in RECOVERY | DIRECTORY | {*BEGIN}]
LATER = [f"{name}:2" for name in ONCE if name.startswith(REPEATED)]
LATER += [f"{name}:{entry}" for name in ONCE if name.startswith("log.") for entry in ENTRIES]


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ONCE + LATER)
def test_a_crash_at_each_step(job, record_property, failpoint):
    # Slow enough for a second group commit of answers.
    work = job(rows=FEW, delay_s=0.05 if failpoint.startswith("journal.") else 0.01)
    work.crash(failpoint)
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.parametrize(
    "failpoint", ["parts.renamed", "log.written:3", "journal.torn", "output.renamed"]
)
def test_a_crash_at_some_steps(job, record_property, failpoint):
    """The quick choice of the test above."""
    work = job(rows=FEW)
    work.crash(failpoint)
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint", ["parts.written:2", "parts.renamed:2", "log.written:3", "log.created:3"]
)
def test_a_crash_where_chunks_are_committed_together(job, record_property, failpoint):
    """The first commit takes so long that others wait for it; as many as fit become one part."""
    work = job(rows=30_000, batch_size=256)
    work.disk["slow"] = [{"match": r"/parts/000000000000-.*\.tmp$", "seconds": 2}]
    work.crash(failpoint)
    work.disk.clear()
    rows = [part["rows"] for part in work.committed(work.output)]
    assert rows[0] == 4_096
    assert rows[1:] == ([30_000 - 4_096] if failpoint == "log.created:3" else [])
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "complete"])
@pytest.mark.parametrize("failpoint", ["parts.renamed", "finish.identified", *sorted(DIRECTORY)])
def test_a_crash_at_each_step_of_a_directory(job, record_property, failpoint, before):
    """Also where it replaces one that a run before it made."""
    work = job(out="out", rows=FEW)
    if before == "complete":
        work.resume("--limit", 100)
        work.attempts.clear()
        work.server.requests.clear()
        work.crash(failpoint, "--overwrite")
        work.resume("--overwrite")
    elif failpoint == "output.moved aside":
        # Without anything at the output there is nothing to move.
        work.resume()
    else:
        work.crash(failpoint)
        work.resume()
    record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["assembly.row group:2", "assembly.written"])
def test_a_crash_between_row_groups(job, record_property, failpoint):
    work = job("parquet", rows=2_500)  # 80 MB are two row groups
    work.crash(failpoint)
    assert not work.output.exists()
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint",
    [*BEGIN, *(f"log.{step}:{entry}" for step in CREATE_STEPS for entry in (1, 2)),
     "output.fsynced", "output.renamed", "finish.assembled", "finish.complete",
     "clear.parts removed", "clear.parts removed:2"],
)  # fmt: skip
def test_a_crash_while_an_output_is_replaced(job, record_property, failpoint):
    """The earlier output stands until the new one takes its place, and no kill leaves neither."""
    work = job(rows=FEW)
    work.resume("--limit", 100)
    before = work.found()
    work.attempts.clear()
    work.server.requests.clear()
    work.crash(failpoint, "--overwrite")
    assert work.found() in (before, work.expected)
    work.resume("--overwrite")
    if failpoint in ("finish.complete", "clear.parts removed:2"):
        # The run was complete, so the second --overwrite did it again, as it should.
        assert len(work.server.texts) == 2 * len(work.texts)
        assert work.found() == work.expected
    else:
        record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize(
    "failpoint", [*BEGIN, "log.written", "log.linked", "log.written:2", "log.linked:2"]
)
def test_a_crash_while_a_run_is_thrown_away(job, failpoint):
    """`--restart` gives up what was done; a crash in it leaves nothing that would be mixed."""
    work = job(rows=FEW)
    work.crash("log.created:3")
    work.crash(failpoint, "--restart")
    work.resume()
    assert work.found() == work.expected


def damaged(work) -> None:
    """Flip a bit in the second part; its answers may be as young as those in flight."""
    recorded = work.committed(work.output)[1]
    work.attempts[-1].committed = [
        rows for rows in work.committed_ranges() if rows.start != recorded["first_row"]
    ]
    part = work.run_directory / "parts" / recorded["file"]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


# A crash, what is spoilt after it, and a crash while that is mended.
TWICE = [
    ("log.written:3", None, "log.written"),
    ("log.written:3", None, "parts.orphan removed"),
    ("log.fsynced:3", None, "log.linked"),
    ("parts.put:2", None, "parts.orphan removed"),
    ("parts.renamed:2", None, "parts.orphan removed"),
    ("parts.written:2", None, "parts.renamed"),
    ("log.created:3", damaged, "log.written"),
    ("log.created:3", damaged, "log.linked"),
    ("log.created:3", damaged, "parts.forgotten"),
    ("log.created:3", damaged, "parts.orphan removed"),
    ("log.created:3", damaged, "parts.renamed"),
    ("journal.torn", None, "journal.torn"),
    ("journal.torn", None, "journal.made"),
    ("journal.written", None, "log.written"),
    ("output.renamed", None, "log.written"),
    ("finish.identified", None, "output.renamed"),
    ("finish.assembled", None, "log.written"),
    ("clear.parts removed", None, None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "spoil", "second"), TWICE)
def test_a_crash_while_recovering_from_a_crash(job, record_property, first, spoil, second):
    """A part that was recorded may be asked for again only where its file was spoilt here."""
    work = job(rows=FEW)
    work.crash(first)
    if spoil:
        spoil(work)
    if second:
        again = work.crash(second)
        # The log may still name the spoilt part, which is as good as not committed.
        again.committed = [rows for rows in again.committed if rows in work.attempts[0].committed]
    work.resume()
    record_property("sent again", work.check())


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["draft.part taken", "draft.part taken:3"])
def test_a_crash_while_parts_become_the_files_of_a_directory(job, record_property, failpoint):
    work = job("parquet", "out")
    work.crash(failpoint)
    assert not work.output.exists()
    work.resume()
    record_property("sent again", work.check())


def test_every_failpoint_is_crashed_at():
    """The lists of this module hold every name."""
    twice = {second.partition(":")[0] for _, _, second in TWICE if second}
    assert set(ONCE) | {*BEGIN} | DIRECTORY | (RECOVERY & twice) == NAMES
