"""Wrong usage, settings and input: exit code 2, one message, nothing sent, nothing written.

`classify plan` refuses what `classify run` does.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main

PROC = Path("/proc")

# Found out by trying to make it, which a plan does not.
NOWHERE = "place where nothing can be made"
TEXTS = b"id,text\n1,good\n2,bad\n"
PARQUET = pa.table({"n": [1, 2], "when": pa.array([1, 2], pa.date32())})


@pytest.fixture(autouse=True)
def _in_a_directory_of_bad_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "good.csv": TEXTS,
        "empty.csv": b"",
        "twice.csv": b"id,text,text\n1,good,bad\n",
        "labelled.csv": b"text,label,score\ngood,positive,0.5\n",
        "failed.csv": b"text,error\ngood,none\n",
        "predicted.csv": b"text,predictions\ngood,none\n",
        "ragged.csv": b"id,text\n1,good\n2,bad,worse\n",
        "open_quote.csv": b'id,text\n1,"good\n2,bad\n',
        "bad_utf8.csv": b"id,text\n1,caf\xe9\n",
        "torn.parquet": b"PAR1 and then nothing",
        "notes.txt": b"text\ngood\n",
        "taken": b"a file",
        "busy.parquet.run": b"a file where the run directory would be",
        "not.yaml": b"text: [unclosed\n",
        "list.yaml": b"- text\n- endpoint\n",
        "binary.yaml": b"\xff\xfe\x00\x01",
        "unknown.yaml": b"batchsize: 3\n",
        "true.yaml": b"concurrency: true\n",
        "true_rate.yaml": b"rate: true\n",
        "token.yaml": b"token: hf_secret\n",
        "word.yaml": b"concurrency: many\n",
        "list_value.yaml": b"model: [a, b]\n",
        "empty_value.yaml": b"text:\n",
        "date.yaml": b"deadline: 2026-02-30\n",
        "digits.yaml": b"limit: " + b"9" * 5_000 + b"\n",
        "nested_key.yaml": b"{limit: 1}: 2\n",
        "nested.yaml": b"limit: {most: 3}\n",
        "deep.yaml": b"limit: " + b"[" * 2_000 + b"\n",
        "twice.yaml": b"limit: 1\nlimit: 2\n",
        "exploding.yaml": b"limit:\n- &a0 [x, x]\n"
        + b"".join(
            b"- &a%d [%s]\n" % (i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 20)
        ),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pq.write_table(PARQUET, "numbers.parquet")
    for directory in ("empty_directory", "directory.parquet"):
        (tmp_path / directory).mkdir()
    (tmp_path / "directory.parquet" / "kept").write_text("kept")


# The arguments (after them come the endpoint and -o out.parquet, where they are not among them),
# the environment, and what the message names: the thing and the mend.
CASES = {
    "missing file": (["nowhere.csv"], {}, ["nowhere.csv"]),
    "glob without a match": (["no*where.csv"], {}, ["no*where.csv"]),
    "directory without a table": (["empty_directory"], {}, ["empty_directory"]),
    "unknown kind of file": (["notes.txt"], {}, ["notes.txt", ".csv"]),
    "no input": ([], {}, ["input", "required"]),
    "empty file": (["empty.csv"], {}, ["empty.csv", "empty"]),
    "ragged row": (["ragged.csv"], {}, ["ragged.csv", "3"]),
    "open quote": (["open_quote.csv"], {}, ["open_quote.csv", "quote"]),
    "bad UTF-8": (["bad_utf8.csv"], {}, ["bad_utf8.csv", "encoding"]),
    "torn Parquet": (["torn.parquet"], {}, ["torn.parquet"]),
    "missing column": (["good.csv", "--text", "txt"], {}, ["'txt'", "id, text", "--text"]),
    "missing pair": (["good.csv", "--text-pair", "b"], {}, ["'b'", "id, text", "--text-pair"]),
    "column of numbers": (["numbers.parquet", "--text", "n"], {}, ["'n'", "int64", "text"]),
    "duplicate column": (["twice.csv"], {}, ["twice.csv", "'text'"]),
    "colliding label": (["labelled.csv"], {}, ["'label'", "--label-column"]),
    "colliding score": (
        ["labelled.csv", "--label-column", "new"], {}, ["'score'", "--score-column"],
    ),
    "colliding error": (["failed.csv"], {}, ["'error'", "--error-column"]),
    "colliding predictions": (
        ["predicted.csv", "--top-k", "2"], {}, ["'predictions'", "--predictions-column"],
    ),
    "renamed onto a column": (["good.csv", "--label-column", "id"], {}, ["'id'"]),
    "one name for two results": (["good.csv", "--label-column", "score"], {}, ["'score'"]),
    "unknown flag": (["good.csv", "--batchsize", "3"], {}, ["--batchsize", "--batch-size"]),
    "unknown key": (
        ["good.csv", "--config", "unknown.yaml"], {}, ["batchsize", "batch_size?", "unknown.yaml"],
    ),
    "unknown variable": (
        ["good.csv"], {"CLASSIFY_CONCURENCY": "3"}, ["concurency", "concurrency?", "environment"],
    ),
    "token as a key": (["good.csv", "--config", "token.yaml"], {}, ["token", "HF_TOKEN"]),
    "word for a number": (["good.csv", "--concurrency", "many"], {}, ["concurrency", "'many'"]),
    "word in the file": (["good.csv", "--config", "word.yaml"], {}, ["concurrency", "'many'"]),
    "word in the environment": (
        ["good.csv"], {"CLASSIFY_RATE": "fast"}, ["rate", "'fast'", "number"],
    ),
    "list for a text": (["good.csv", "--config", "list_value.yaml"], {}, ["model", "['a', 'b']"]),
    "null for a text": (["good.csv", "--config", "empty_value.yaml"], {}, ["text", "None"]),
    "true for a number": (["good.csv", "--config", "true.yaml"], {}, ["concurrency", "True"]),
    "true for a rate": (["good.csv", "--config", "true_rate.yaml"], {}, ["rate", "True"]),
    "no request in flight": (["good.csv", "--concurrency", "0"], {}, ["concurrency", "'0'", "1"]),
    "half a request": (["good.csv", "--concurrency", "1.5"], {}, ["concurrency", "'1.5'"]),
    "no text in a request": (
        ["good.csv", "--batch-size", "0"], {}, ["--batch-size", "'0'", "auto"],
    ),
    "no label asked for": (["good.csv", "--top-k", "0"], {}, ["--top-k", "'0'", "all"]),
    "negative rate": (["good.csv", "--rate", "-1"], {}, ["rate", "'-1'", "from 0.000001"]),
    "rate of nothing": (["good.csv", "--rate", "0"], {}, ["rate", "'0'"]),
    "rate without end": (["good.csv", "--rate", "inf"], {}, ["rate", "'inf'"]),
    "no timeout": (["good.csv", "--timeout-s", "0"], {}, ["--timeout-s", "'0'"]),
    "no duration": (["good.csv", "--deadline", "soon"], {}, ["deadline", "'soon'", "30m"]),
    "negative duration": (["good.csv", "--deadline", "-5"], {}, ["deadline", "'-5'"]),
    "more than all": (["good.csv", "--max-errors", "101%"], {}, ["--max-errors", "'101%'", "1%"]),
    "fewer than none": (["good.csv", "--max-errors", "-1"], {}, ["--max-errors", "'-1'"]),
    "no rows": (["good.csv", "--limit", "0"], {}, ["limit", "'0'"]),
    "long delimiter": (["good.csv", "--delimiter", ";;"], {}, ["delimiter", "';;'"]),
    "unknown encoding": (["good.csv", "--encoding", "utf-9"], {}, ["utf-9"]),
    "unknown function": (
        ["good.csv", "--function-to-apply", "tanh"], {},
        ["--function-to-apply", "'tanh'", "softmax"],
    ),
    "unknown engine": (["good.csv", "--engine", "spark"], {}, ["engine", "'spark'", "local"]),
    "workers of the engine that has none": (
        ["good.csv", "--workers", "2"], {}, ["--workers", "--engine processes"],
    ),
    "more workers than requests": (
        ["good.csv", "--engine", "processes", "--workers", "9", "--concurrency", "8"], {},
        ["--workers", "--concurrency", "8"],
    ),
    "a cluster for another engine": (
        ["good.csv", "--ray-address", "head:6379"], {}, ["--ray-address", "--engine ray"],
    ),
    "a cluster through its client port": (
        ["good.csv", "--engine", "ray", "--ray-address", "ray://head:10001"], {},
        ["ray://head:10001", "ray job submit"],
    ),
    "an embedded endpoint for a cluster": (
        ["good.csv", "--engine", "ray", "--endpoint", "local"], {}, ["--endpoint", "processes"],
    ),
    "cache without dedup": (
        ["good.csv", "--cache", "answers", "--no-dedup"], {}, ["cache", "dedup"],
    ),
    "cache that is a directory": (["good.csv", "--cache", "empty_directory"], {}, ["cache"]),
    "cache below a file": (["good.csv", "--cache", "taken/answers"], {}, ["cache", "taken"]),
    "unknown local model": (
        ["good.csv", "--endpoint", "local", "--model", "sentimant"], {}, ["sentimant", "sentiment"],
    ),
    "URL without a scheme": (
        ["good.csv", "--endpoint", "localhost:80"], {}, ["endpoint", "'localhost:80'", "http://"],
    ),
    "URL of another scheme": (["good.csv", "--endpoint", "ftp://x"], {}, ["'ftp://x'", "https://"]),
    "hf without a model": (["good.csv", "--endpoint", "hf"], {}, ["model", "--model"]),
    "output without a name": (["good.csv", "-o", ""], {}, ["output"]),
    "output is the working directory": (["good.csv", "-o", "."], {}, ["output"]),
    "output below a file": (["good.csv", "-o", "taken/out.parquet"], {}, ["taken", "output"]),
    "output is a directory": (
        ["good.csv", "-o", "directory.parquet"], {}, ["directory.parquet", "directory"],
    ),
    "output is a file": (["good.csv", "-o", "taken"], {}, ["taken", "file"]),
    "output as JSON": (["good.csv", "-o", "out.json"], {}, ["out.json", ".jsonl", ".parquet"]),
    "output as Excel": (["good.csv", "-o", "out.xlsx"], {}, ["out.xlsx", ".csv", ".parquet"]),
    "output of unknown origin": (
        ["good.csv", "-o", "numbers.parquet"], {}, ["numbers.parquet", "--overwrite"],
    ),
    "run directory is a file": (["good.csv", "-o", "busy.parquet"], {}, ["busy.parquet.run"]),
    "missing config": (["good.csv", "--config", "nowhere.yaml"], {}, ["nowhere.yaml"]),
    "config is a directory": (["--config", "empty_directory"], {}, ["empty_directory"]),
    "config is not YAML": (["good.csv", "--config", "not.yaml"], {}, ["not.yaml", "YAML"]),
    "config is not text": (["good.csv", "--config", "binary.yaml"], {}, ["binary.yaml", "YAML"]),
    **{
        f"config with a {name} value": (["good.csv", "--config", f"{name}.yaml"], {}, [*words])
        for name, words in {
            "date": ("date.yaml", "day is out of range"),
            "digits": ("digits.yaml", "limit"),
            "nested_key": ("nested_key.yaml", "line 1"),
            "nested": ("--limit", "{'most': 3}"),
            "deep": ("deep.yaml", "too deeply"),
            "twice": ("twice.yaml", "'limit' is given twice", "line 2"),
            "exploding": ("--limit",),
        }.items()
    },
    **{
        f"10^30 as {flag}": (["good.csv", flag, f"{10**30}"], {}, [flag, "10^"])
        for flag in (
            *("--concurrency", "--limit", "--max-requests", "--rate", "--timeout-s", "--deadline"),
            *("--max-loading-s", "--max-outage-s", "--grace-s"),
        )
    },
    **{
        f"10^30 as {flag}": (["good.csv", flag, f"{10**30}"], {}, [flag])
        for flag in ("--batch-size", "--top-k", "--max-errors")
    },
    "deadline that is a date": (["good.csv", "--deadline", "2026-02-30"], {}, ["2026-02-30"]),
    "rate of nearly nothing": (["good.csv", "--rate", "1e-30"], {}, ["--rate", "1e-30"]),
    "host with an empty part": (["good.csv", "--endpoint", "http://a..b"], {}, ["http://a..b"]),
    "host with a part too long": (
        ["good.csv", "--endpoint", f"http://{'a' * 64}.com"], {}, ["host", "too long"],
    ),
    "home of an unknown user": (["~nobody-here/good.csv"], {}, ["~nobody-here/good.csv"]),
    "config is a list": (["good.csv", "--config", "list.yaml"], {}, ["list.yaml", "setting:"]),
}  # fmt: skip
if PROC.is_dir():
    # Even the administrator can make no directory there.
    CASES[NOWHERE] = (
        ["good.csv", "-o", "/proc/out.parquet"], {}, ["/proc", "output"],
    )  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
@pytest.mark.parametrize(
    ("command", "case"),
    [
        (command, case)
        for case in CASES
        for command in ("run", "plan")
        if (command, case) != ("plan", NOWHERE)
    ],
)
def test_refused_with_one_message(server, listing, case, command, as_json):
    arguments, environ, named = CASES[case]
    arguments = [command, *arguments, *(["--json"] if as_json else [])]
    arguments += [] if "--endpoint" in arguments else ["--endpoint", server.url]
    arguments += [] if "-o" in arguments else ["-o", "out.parquet"]
    before = listing()
    ended = CliRunner().invoke(main, arguments, env=environ)
    assert isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code == 2, ended.stderr
    for words in named:
        assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "pydantic" not in ended.stderr
    assert ended.stderr.count(ended.stderr.splitlines()[0]) == 1
    assert ended.stderr.count("\n") <= 8
    assert len(ended.stderr) < 3_000
    if as_json and ended.stdout:
        told = json.loads(ended.stdout)
        assert told["exit_code"] == 2
        assert told["message"] in ended.stderr
    else:
        assert ended.stdout == ""
    assert server.requests == []
    assert listing() == before


def test_refused_by_the_installed_command(cli, server, listing):
    """The same from a shell, with exit code and both streams of a process of its own."""
    before = listing()
    ended = cli("run", "good.csv", "--text", "txt", "--endpoint", server.url, "-o", "out.parquet")
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") <= 2
    assert "'txt'" in ended.stderr
    assert (server.requests, listing()) == ([], before)


def test_an_output_must_be_named(cli, server, listing):
    before = listing()
    ended = cli("run", "good.csv", "--endpoint", server.url)
    assert (ended.code, ended.stdout) == (2, "")
    assert "output: required" in ended.stderr
    assert (server.requests, listing()) == ([], before)


def test_a_bad_input_among_good_ones_is_found_before_anything_is_sent(cli, server, listing):
    """Types and shape are settled over the whole input first."""
    before = listing()
    ended = cli(
        "run", "good.csv", "ragged.csv", "--endpoint", server.url, "-o", "out.parquet", "--json"
    )
    assert ended.code == 2
    assert "ragged.csv" in ended.json["message"]
    assert (server.requests, listing()) == ([], before)
