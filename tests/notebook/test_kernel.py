"""In a real kernel, as Jupyter, VS Code and Colab start it."""

import re

import pytest

PREPARE = """
import pandas as pd, pipeline
frame = pd.DataFrame({{"text": [f"text {{i}}" for i in range(1_000)]}})
again = {{"endpoint": {url!r}, "checkpoint": "kept", "concurrency": 4, "dialect": "hf"}}
"""

TELL_OF_STOP = """
from pipeline.job.runner import Run
def tell(run, reason, stop=Run.stop):
    stop(run, reason)
    print("stopping", end="")
Run.stop = tell
"""


@pytest.fixture
def prepared(kernel, server):
    """A kernel with a frame of 1,000 texts and the settings of a call that is continued."""
    assert not kernel.work(PREPARE.format(url=server.url)).raised
    return kernel


def in_order(words):
    """The numbers of rows that a line of progress told, one after the other."""
    return [int(line.partition(" of ")[0].replace(",", "")) for line in words]


def test_progress_is_one_line_that_is_updated_while_the_cell_works(prepared, server):
    """It is there before the first answer, moves, and stays as the sum of what was done."""
    server.script = lambda _: server.reply(hold=True)
    cell = prepared.start("labelled = pipeline.classify(frame, **again)")
    prepared.wait(cell, lambda: bool(cell.displays))
    assert not cell.ended
    server.release()
    prepared.wait(cell)
    assert (cell.raised, cell.printed) == ("", "")
    assert len(cell.displays) == 1
    done = in_order(cell.shown())
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 1_000)
    assert cell.shown()[-1].startswith("1,000 of 1,000 rows, complete: 32 requests in ")
    assert all("<progress" in each for each in cell.shown("text/html"))


def test_progress_of_aclassify(prepared):
    """Two at once have a line each, which belong to the cell that began them."""
    cell = prepared.work(
        "import asyncio\n"
        "del again['checkpoint']\n"
        "_ = await asyncio.gather(*(pipeline.aclassify(frame, **again) for _ in range(2)))"
    )
    assert cell.raised == ""
    lines = [display[-1]["text/plain"] for display in cell.displays.values()]
    assert len(lines) == 2
    assert all(line.startswith("1,000 of 1,000 rows, complete: ") for line in lines)


def test_progress_can_be_left_out(prepared):
    cell = prepared.work("labelled = pipeline.classify(frame, progress=False, **again)")
    assert (cell.raised, cell.printed, cell.displays) == ("", "", {})


def test_an_answer_that_is_waited_for_is_told(prepared, server):
    """What the run waits for stands in the line, inert as it came from the server."""
    words = "<img src=x onerror=alert(1)>"
    server.script = lambda each: (
        server.reply(status=503, body={"error": words, "estimated_time": 0.3})
        if each.number < 2
        else None
    )
    cell = prepared.work("labelled = pipeline.classify(frame, **again)")
    assert cell.raised == ""
    assert any("loading" in line for line in cell.shown())
    assert not any("<img" in line for line in cell.shown("text/html"))


@pytest.mark.fault(8)
def test_an_interrupt_keeps_what_was_done(prepared, server):
    """One clear exception, once what was in flight is answered; the same cell continues."""
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    prepared.work(TELL_OF_STOP)
    code = "labelled = pipeline.classify(frame, **again)"
    cell = prepared.start(code)
    server.wait_for(lambda: server.in_flight == 4)
    prepared.interrupt()
    prepared.wait(cell, lambda: cell.printed == "stopping")
    server.release()
    prepared.wait(cell)
    assert cell.raised == (
        "Interrupted: Stopped by SIGINT after storing what was answered. Make the same call again "
        "to continue."
    )
    assert_short(cell)
    assert re.fullmatch(r"\d+ of 1,000 rows, stopped: \d+ requests in .* s", cell.shown()[-1])
    answered = server.answered_texts
    assert answered
    server.script = lambda _: None
    assert not prepared.work(code).raised
    assert prepared.work("labelled['error'].isna().all(), len(labelled)").result == {
        "text/plain": "(np.True_, 1000)"
    }
    assert server.sent_twice() == set()


@pytest.mark.fault(8)
def test_an_interrupt_of_aclassify_keeps_what_was_answered(prepared, server):
    """The kernel cancels the cell; what was in flight is asked again, and nothing else."""
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    code = "labelled = await pipeline.aclassify(frame, **again)"
    cell = prepared.start(code)
    server.wait_for(lambda: server.in_flight == 4)
    prepared.interrupt()
    prepared.wait(cell)
    assert cell.raised == (
        "CancelledError: Cancelled after storing what was answered. Make the same call again to "
        "continue."
    )
    assert_short(cell)
    held = {text for each in server.requests if not each.answered for text in each.texts}
    server.release()
    server.script = lambda _: None
    assert not prepared.work(code).raised
    assert prepared.work("int(labelled['error'].isna().sum())").result == {"text/plain": "1000"}
    assert server.sent_twice() == held


@pytest.mark.parametrize("call", ["pipeline.classify", "await pipeline.aclassify"])
def test_an_interrupt_without_a_checkpoint_says_where_the_answers_are(prepared, server, call):
    server.script = lambda each: server.reply(hold=True) if each.number >= 10 else None
    place = f"import tempfile; tempfile.tempdir = {str(prepared.directory)!r}"
    prepared.work(f"del again['checkpoint']; {place}")
    cell = prepared.start(f"{call}(frame, grace_s=0.1, **again)")
    server.wait_for(lambda: server.in_flight == 4)
    prepared.interrupt()
    prepared.wait(cell)
    told = re.search('again with `(checkpoint=".*")` to continue', cell.raised)
    assert told is not None, cell.raised
    held = {text for each in server.requests if not each.answered for text in each.texts}
    server.release()
    server.script = lambda _: None
    assert not prepared.work(f"labelled = {call}(frame, {told[1]}, **again)").raised
    assert prepared.work("int(labelled['error'].isna().sum())").result == {"text/plain": "1000"}
    assert server.sent_twice() == held


@pytest.mark.parametrize(
    ("call", "raised"),
    [
        ("pipeline.classify(frame, endpoint='lokal')", "`endpoint`: 'lokal' is not allowed."),
        (
            "await pipeline.aclassify(frame, text='review', endpoint='local')",
            "`text`: the input has no column 'review'.",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(prepared, server, call, raised):
    """One exception with the words of the command line, and a short way to it."""
    cell = prepared.work(call)
    assert cell.raised.startswith(f"SettingsError: {raised}")
    assert cell.traceback.count("Traceback (most recent call last)") == 1
    assert server.requests == []


def test_a_result_shows_itself(kernel, server, write_csv):
    write_csv("in.csv", ["good", "fine", ""])
    cell = kernel.work(
        "import pipeline\n"
        f"config = pipeline.RunConfig(input='in.csv', output='out.parquet', "
        f"endpoint={server.url!r})\n"
        "pipeline.run(config)"
    )
    assert cell.raised == ""
    assert cell.shown()[-1].endswith(" s, 1 with errors")
    assert "3 rows: 2 labelled, 1 with errors" in cell.result["text/html"]
    assert "null text" in cell.result["text/html"]
    assert "out.parquet: 3 rows, 2 labelled" in cell.result["text/plain"]


def assert_short(cell):
    """One exception, and none of the way through the package but the call itself."""
    assert cell.traceback.count("Traceback (most recent call last)") == 1
    files = re.findall(r"(\w+\.py)", re.sub(r"\x1b\[[\d;]*m", "", cell.traceback))
    assert set(files) == {"api.py"}
