"""What is said is English: one row is a row, a sentence ends once, and no text fills the screen."""

import re
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.client.statuses import error_of
from pipeline.wording import counted, listed, sentence, short, with_extra

# "1 rows", "1 requests were"; a unit such as rows/s is none of these.
WRONG = re.compile(r"\b1 (rows|requests|texts|answers|labels|files|inputs|others|errors)\b(?!/)")
STOPS = re.compile(r"(?<!\.)\.\.(?!\.)")


def assert_english(words):
    assert not WRONG.search(words), words
    assert not STOPS.search(words), words


@pytest.fixture
def job(server, write_csv):
    source = write_csv("in.csv", ["good"])
    return (source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")


def test_a_run_of_one_row(cli, job):
    """In all that the commands say of it."""
    for command in ("probe", "plan", "run"):
        ended = cli(command, *job)
        assert ended.code == 0, ended.stderr
        assert_english(ended.stdout + ended.stderr)
    assert "1 row, 1 labelled, 0 with errors; 1 request in" in ended.stdout
    assert cli("report", "out.parquet").code == 0
    for command in (("status", "out.parquet"), ("plan", *job, "--probe"), ("run", *job)):
        assert_english(cli(*command).stdout)


def test_a_notebook_of_one_row(server, write_csv, tmp_path):
    places = {"input": str(write_csv("in.csv", ["good"])), "output": tmp_path / "out.parquet"}
    result = pipeline.run(pipeline.RunConfig(**places, endpoint=server.url, dialect="hf"))
    assert_english(result._repr_html_())
    assert "<b>1 row: 1 labelled, 0 with errors</b>" in result._repr_html_()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("command", ["run", "probe"])
def test_words_of_a_server_that_end_with_a_stop(cli, server, job, command, status):
    server.script = lambda _: server.reply(status, {"error": "This is what it is."})
    ended = cli(command, *job, "--max-outage-s", 0.5, "--max-loading-s", 0.5, "--max-errors", 0)
    assert ended.code != 0
    told = " ".join((ended.stdout + ended.stderr).split())
    # A probe counts the attempts after these words, where it had no time to say that it waits.
    assert "This is what it is" in told
    assert_english(told)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"message": "too long", "type": "Validation", "input": "secret text"}}',
        b'{"detail": [{"type": "string", "msg": "too long", "input": "secret text"}]}',
    ],
)
def test_an_error_that_is_an_object_is_said_in_its_words(body):
    """And repeats no text that it was sent."""
    assert str(error_of(422, {}, body)) == "422 too long"


def test_a_text_that_is_taken_for_a_name_is_cut(cli, server, tmp_path):
    """As in a CSV without a header, and in one that has very many columns."""
    text = "A review that somebody wrote with much patience. " * 1_000
    (tmp_path / "in.csv").write_text(f"7,{text}\n8,good\n")
    (tmp_path / "wide.csv").write_text(",".join(f"column {i}" for i in range(5_000)) + "\n")
    for name, words in (("in.csv", "7, A review"), ("wide.csv", "column 19, 4,980 others.")):
        ended = cli("run", name, "--endpoint", server.url, "-o", "out.parquet")
        assert (ended.code, len(ended.stderr) < 600) == (2, True)
        assert words in ended.stderr
    assert server.requests == []


def test_the_words_themselves():
    assert [counted(n, "row") for n in (0, 1, 2_000)] == ["0 rows", "1 row", "2,000 rows"]
    assert [sentence(words) for words in ("a", "a.", "a...")] == ["a."] * 3
    assert (short("a" * 60), short("a" * 61)) == ("a" * 60, "a" * 60 + "…")
    assert listed(["a", "b"]) == "a, b"


def test_advice_to_install_an_extra_is_worded_once():
    """It names the interpreter that lacks it, and an extra that exists."""
    assert with_extra("local").endswith(" -m pip install 'classify-pipeline[local]'")
    assert sys.executable in with_extra("local")
    code = Path(pipeline.__file__).parent
    saying = [path.name for path in code.rglob("*.py") if "pip install" in path.read_text()]
    assert saying == ["wording.py"]
