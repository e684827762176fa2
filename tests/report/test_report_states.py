"""A report on a run in any state says which it is, and shows what there is of it."""

import json
import re
import signal
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.api import run
from pipeline.config import RunConfig
from pipeline.errors import OutputError, StoppedEarly, UsageError
from pipeline.report import write_report

CHUNK = 4_096


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i}" for i in range(100)])


@pytest.mark.usefixtures("small_chunks")
def test_a_stopped_run(shown, words, tiles, label, source, tmp_path):
    """In plain words at the top; the rows are those that are committed."""
    output = tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=4, concurrency=1, max_requests=13)
    browser = shown(output)
    told = words()
    assert "This run is not complete: it was stopped. Sent 13 requests" in told
    assert "Run the same command again to continue." in told
    assert "48 of 100 rows are committed" in told
    assert tiles()["rows"] == "100"
    assert tiles()["labelled"] == "48"
    assert tiles()["requests"] == "13"
    assert browser.eval("document.querySelectorAll('.rows tbody tr').length") == 48
    assert "exit code\n75" in told

    # Continued, it is one run of two attempts.
    label(source, output, batch_size=4, concurrency=1)
    shown(output)
    told = words()
    assert "The run is complete. All 100 rows are labelled." in told
    assert "in 2 attempts" in told
    assert tiles()["requests"] == "25"


def test_a_stopped_run_without_a_committed_row(
    shown, words, tiles, label, source, server, right_answer, tmp_path
):
    """What was answered is kept, and the page does not look as if it were lost."""
    output = tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=4, concurrency=1, max_requests=13)
    shown(output)
    told = words()
    assert "0 of 100 rows are committed. 52 answers are stored and will not be asked for" in told
    assert "No row is committed yet." in told
    # Their labels are counted, as those of the same texts are in the end.
    assert "whether or not its rows are committed yet" in told
    assert tiles()["texts answered"] == "52"
    counts = Counter(right_answer(text)[0]["label"] for text in server.answered_texts)
    assert counts.total() == 52
    for name, texts in counts.items():
        assert f"{name}\t{texts}\t{texts / 52:.2%}" in told
    label(source, output, batch_size=4, concurrency=1)
    browser = shown(output)
    assert browser.eval("document.querySelector('#answered')") is None


@pytest.fixture
def halfway(server, start, write_csv, many_texts, tmp_path, committed, eventually):
    """A run that has committed two chunks and waits for the answers to the third; its command."""
    server.script = lambda each: server.reply(hold=each.number >= 16)
    job = ("run", write_csv("in.csv", many_texts), "--endpoint", server.url, "-o", "out.parquet")
    job = (*job, "--batch-size", 512, "--concurrency", 1)
    running = start(*job)
    server.wait_for(lambda: len(server.requests) == 17)
    eventually(lambda: len(committed(tmp_path / "out.parquet")) == 2)
    return running, job


def test_a_killed_run(shown, words, tiles, server, halfway, tmp_path, cli):
    """First while it works, then killed, then continued."""
    running, job = halfway
    shown(tmp_path / "out.parquet")
    assert "This run is not complete: it is running (labelling)" in words()
    assert tiles()["labelled"] == f"{2 * CHUNK:,}"
    assert running.running

    running.send(signal.SIGKILL)
    running.ended()
    shown(tmp_path / "out.parquet")
    told = words()
    assert "This run is not complete: it was stopped. Killed, or its machine went down" in told
    assert f"{2 * CHUNK:,} of 20,000 rows are committed" in told
    assert tiles()["labelled"] == f"{2 * CHUNK:,}"

    server.release()
    server.script = lambda _: None
    assert cli(*job).code == 0
    shown(tmp_path / "out.parquet")
    told = words()
    assert "All 20,000 rows are labelled." in told
    assert "in 2 attempts" in told
    assert "\tkilled" in told


@pytest.fixture
def other(server):
    second = type(server)()
    yield second
    second.close()


def test_several_addresses(shown, words, server, other, write_csv, many_texts, tmp_path):
    """Each is named, and one that was left out with why."""
    other.script = lambda request: (
        other.reply(401, {"error": "no such token"}) if request.number > 3 else None
    )
    run(
        RunConfig(input=str(write_csv("in.csv", many_texts[:3_000])), dialect="hf", model="org/m",
                  output=tmp_path / "out.parquet", endpoint=[server.url, other.url], batch_size=16)
    )  # fmt: skip
    shown(tmp_path / "out.parquet")
    told = words()
    assert f"{server.url}\t0" in told
    assert re.search(rf"{other.url}\t1\t.*no such token", told)


def test_workers(shown, words, server, source, tmp_path):
    # Workers are told of once a second.
    server.script = lambda _: server.reply(delay_s=0.4)
    run(
        RunConfig(input=str(source), output=tmp_path / "out.parquet", endpoint=server.url,
                  dialect="hf", engine="processes", workers=2, batch_size=4, concurrency=4)
    )  # fmt: skip
    shown(tmp_path / "out.parquet")
    rows = re.findall(r"^(.+)\t[\d,.]+\t0\t?$", words().partition("Workers\n")[2], re.MULTILINE)
    assert len(set(rows)) == 2


def test_no_rows(shown, words, tiles, label, write_csv, tmp_path):
    label(write_csv("in.csv", []), tmp_path / "out.parquet")
    shown(tmp_path / "out.parquet")
    assert "All 0 rows are labelled." in words()
    assert "The table has no rows." in words()
    assert tiles()["rows"] == "0"


def test_nothing_but_errors(shown, words, label, server, source, tmp_path):
    server.script = lambda each: (
        server.reply(400, {"error": f"no {each.number}"}) if "text" in each.texts[0] else None
    )
    label(source, tmp_path / "out.parquet", batch_size=1)
    browser = shown(tmp_path / "out.parquet")
    told = words()
    assert "0 of 100 rows are labelled, 100 carry an error instead." in told
    assert "No row has a label." in told
    assert "400 no #\nExamples\n\t100\t100.0%" in told
    assert browser.eval("document.querySelectorAll('.rows').length") == 0
    assert browser.eval("document.querySelectorAll('td details tbody tr').length") == 5


def test_no_requests(shown, words, label, tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(5, pa.string())}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", tmp_path / "out.parquet")
    shown(tmp_path / "out.parquet")
    assert "5 of 5 rows carry an error" in words()
    assert "No request was sent." in words()


def test_a_refused_run(shown, words, label, server, source, tmp_path):
    """Nothing was committed, and the page says why."""
    server.script = lambda _: server.reply(401, {"error": "no such token"})
    with pytest.raises(pipeline.errors.EndpointRefused):
        label(source, tmp_path / "out.parquet")
    shown(tmp_path / "out.parquet")
    assert "no such token" in words()
    assert "0 of 100 rows are committed" in words()
    assert "exit code\n4" in words()


@pytest.mark.usefixtures("small_chunks")
def test_renamed_columns_pairs_and_a_directory(shown, words, server, tmp_path, right_answer):
    """The columns are those that the settings name, also where the input has the usual names."""
    rows = 200
    table = pa.table(
        {
            "label": [f"gold {i}" for i in range(rows)],
            "first.half": [f"one {i}" for i in range(rows)],
            "second": pa.array([f"two {i % 7}" for i in range(rows)]).dictionary_encode(),
            "score": [{"score": 2.0 * i} for i in range(rows)],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    run(
        RunConfig(
            input=str(tmp_path / "in.parquet"), output=tmp_path / "out", endpoint=server.url,
            dialect="hf", text="first.half", text_pair="second", label_column="mood",
            score_column="certainty", error_column="why", top_k=2,
        )
    )  # fmt: skip
    browser = shown(tmp_path / "out")
    cells = browser.eval(
        "Array.from(document.querySelectorAll('.rows tbody tr'),"
        "(row) => Array.from(row.cells, (cell) => cell.textContent))"
    )
    assert len(cells) == 150
    for number, one, two, mood, certainty in cells:
        assert (one, two) == (f"one {number}", f"two {int(number) % 7}")
        best = right_answer(one, two)[0]
        assert (mood, certainty) == (best["label"], f"{best['score']:.4f}")
    assert "column first.half and second" in words()


def test_a_notebook_s_checkpoint(shown, words, server, tmp_path):
    checkpoint = tmp_path / "reviews.run"
    pipeline.classify(pa.table({"text": ["good", "bad"]}), endpoint=server.url, dialect="hf",
                      checkpoint=checkpoint)  # fmt: skip
    shown(checkpoint)
    assert (tmp_path / "reviews.run.html").exists()
    assert "All 2 rows are labelled." in words()


@pytest.mark.usefixtures("small_chunks")
def test_a_retry(shown, words, tiles, label, server, write_csv, tmp_path):
    """While rows are asked again, and after it; requests are those of the retry."""
    texts = [f"bad {i}" if i % 8 == 0 else f"text {i}" for i in range(100)]
    source, output = write_csv("in.csv", texts), tmp_path / "out.parquet"
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if each.texts[0].startswith("bad") else None
    )
    label(source, output, batch_size=1)
    server.script = lambda _: None
    with pytest.raises(StoppedEarly):
        label(source, output, retry_failed=True, batch_size=1, concurrency=1, max_requests=5)
    shown(output)
    assert "32 of 100 rows are committed in a retry of rows with an error" in words()
    label(source, output, retry_failed=True, batch_size=1)
    shown(output)
    assert "All 100 rows are labelled." in words()
    assert tiles()["requests"] == "13"


def test_plan_against_run(shown, words, label, source, tmp_path):
    """Where the summary has a plan; nothing where it has none."""
    output = tmp_path / "out.parquet"
    label(source, output)
    summary_file = tmp_path / "out.parquet.run" / "summary.json"
    summary = json.loads(summary_file.read_text())
    summary["plan"] = {
        "distinct_inputs": 100, "cache_hits": 3, "requests": 1_234, "seconds": [61.0, 125.0],
        "cost": 0.5,
    }  # fmt: skip
    summary_file.write_text(json.dumps(summary))
    shown(output)
    assert "requests\t1,234\t4" in words()
    assert "duration\t1 min 01 s to 2 min 05 s" in words()
    assert "cost\t0.50" in words()
    summary_file.write_text(json.dumps({**summary, "plan": None}))
    shown(output)
    assert "planned" not in words()


def test_an_output_that_is_gone_or_another(shown, words, label, source, tmp_path):
    output = tmp_path / "out.parquet"
    label(source, output)
    table = pq.read_table(output)
    pq.write_table(table.slice(0, 10), output)
    shown(output)
    assert "no longer what this run wrote" in words()
    output.unlink()
    shown(output)
    assert "The output is missing" in words()
    assert "No rows to show." in words()
    for content, what in ((table.drop(["score"]), "no column 'score'"), (None, "cannot be read")):
        if content is None:
            output.write_bytes(b"PAR1 no table")
        else:
            pq.write_table(content, output)
        with pytest.raises(OutputError, match=what):
            write_report(output)


def test_the_command(cli, label, source, tmp_path, listing):
    label(source, tmp_path / "out.parquet")
    before = listing()
    told = cli("report", "out.parquet", "-o", "monday.html")
    assert (told.code, told.stdout) == (0, "The report is in monday.html\n")
    assert told.stderr == ""
    # Nothing but the page is new, and no other file was touched.
    after = listing()
    assert after.keys() - before.keys() == {"monday.html"}
    assert {name: after[name] for name in before} == before


def test_the_command_refuses(cli, label, source, tmp_path, listing):
    label(source, tmp_path / "out.parquet")
    (tmp_path / "directory.html").mkdir()
    before = listing()
    for output, page, what in (
        ("out.parquet", "out.parquet", "Give a path that ends with .html"),
        ("out.parquet", "directory.html", "is a directory"),
        ("out.parquet", "nowhere/page.html", "cannot write the report"),
        (".", "page.html", "names no file"),
    ):
        with pytest.raises(OutputError, match=what):
            write_report(tmp_path / output if output != "." else Path(), tmp_path / page)
    told = cli("report", "nowhere.parquet")
    assert (told.code, told.stdout) == (2, "")
    assert "No run is recorded in nowhere.parquet.run" in told.stderr
    assert listing() == before


@pytest.mark.parametrize("module", ["jinja2", "vl_convert"])
def test_a_missing_library_is_named_with_its_fix(cli, label, source, tmp_path, module):
    label(source, tmp_path / "out.parquet")
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / f"{module}.py").write_text(f"raise ModuleNotFoundError('{module}')")
    told = cli("report", "out.parquet", PYTHONPATH=str(missing))
    assert told.code == 2
    assert "pip install 'classify-pipeline[report]'" in told.stderr


def test_from_a_result(server, source, tmp_path):
    result = run(
        RunConfig(input=str(source), output=tmp_path / "out.parquet", endpoint=server.url,
                  dialect="hf")
    )  # fmt: skip
    assert result.report() == tmp_path / "out.parquet.html"
    assert result.report(tmp_path / "mine.html").read_bytes().startswith(b"<!doctype html>")
    with pytest.raises(UsageError):
        result.report(tmp_path / "mine.parquet")
