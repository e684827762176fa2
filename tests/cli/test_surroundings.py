"""What a command finds around it: closed or full streams, no home, few files, little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

CLASSIFY = str(Path(sys.executable).with_name("classify"))
ROWS = ["good", "bad"]


@pytest.fixture
def shell(server, write_csv, tmp_path):
    """Run a line of a shell, in which `$run` is a run that is complete after one request."""
    write_csv("in.csv", ROWS)
    run = f"{CLASSIFY} run in.csv --dialect hf --endpoint {server.url} -o out.parquet"

    def call(line, **options):
        environ = {**os.environ, "run": run, "classify": CLASSIFY, "url": server.url}
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environ, text=True, capture_output=True,
            check=False, **options,
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    "streams",
    [
        *("<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"),
        *("2>&- --log-format json", ">/dev/full --json", ">&- --json", "| true", "2> >(true)"),
    ],
)
def test_a_run_ends_as_it_should_whatever_its_streams_are(shell, server, tmp_path, streams):
    """The output is complete, exit code 0, and the same command again does nothing."""
    line = f"set -o pipefail; $run {streams}"
    ended = shell(line)
    assert ended.returncode == 0, ended
    assert "Traceback" not in ended.stderr
    assert pq.read_table(tmp_path / "out.parquet")["text"].to_pylist() == ROWS
    summary = json.loads((tmp_path / "out.parquet.run" / "summary.json").read_text())
    assert (summary["state"], summary["exit_code"]) == ("complete", 0)
    assert shell(line).returncode == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("arguments", "code"), [("run missing.csv --model a/b -o out.parquet", 2), ("run --no-such", 2)]
)
def test_a_refusal_has_its_exit_code_whatever_the_streams_are(shell, arguments, code, streams):
    assert shell(f"$classify {arguments} {streams}").returncode == code


@pytest.mark.parametrize("command", ["plan in.csv --endpoint $url -o out.parquet", "--help"])
def test_what_was_to_be_printed_and_is_not_is_told(shell, command):
    """A file that is cut short is no success; a reader that has read enough is one."""
    ended = shell(f"$classify {command} >/dev/full")
    assert ended.returncode == 75
    assert ended.stderr == "Standard output could not be written: No space left on device.\n"
    assert shell(f"set -o pipefail; $classify {command} | true").returncode == 0


def test_a_pipe_that_is_full_and_does_not_wait_gets_everything(shell):
    """As a program of Node.js hands it on: the reader comes late."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * 65_536)
    with subprocess.Popen([CLASSIFY, "--help"], stdout=writer) as command:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            content = pipe.read()
        assert command.wait() == 0
    assert content.decode() == "x" * 65_536 + shell("$classify --help").stdout


HOMELESS = """
import ctypes, os
os.environ.pop("HOME")
if os.getuid() == 0:
    ctypes.CDLL(None).prctl(28, 4)  # what is allowed stays so: Python may lie below /root
    os.setgroups([])
    os.setuid(54321)
from pipeline.cli import console
console("classify")
"""


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["in.csv"], 0, ""),
        (["~/in.csv"], 2, "~/in.csv does not exist"),
        (["in.csv", "--header-from", "x-api-key=file:~/key"], 2, "~/key cannot be read"),
    ],
)
def test_a_user_without_a_home(server, write_csv, tmp_path, arguments, code, told):
    """Containers run as any uid, with neither HOME nor an entry in /etc/passwd."""
    write_csv("in.csv", ROWS)
    (tmp_path / "out").mkdir()
    tmp_path.chmod(0o777)
    (tmp_path / "out").chmod(0o777)
    ended = subprocess.run(
        [
            sys.executable, "-c", HOMELESS, "run", *arguments, "--endpoint", server.url,
            "-o", "out/labelled.parquet",
        ],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == code, ended
    assert "Traceback" not in ended.stderr
    assert told in ended.stderr
    assert (tmp_path / "out" / "labelled.parquet").exists() == (code == 0)


def test_the_limit_of_open_files_is_raised_or_the_run_refused(shell, server):
    """A process may raise its limit itself, up to the hard one."""
    refused = shell("ulimit -n 1024; $run --concurrency 2000")
    assert refused.returncode == 2, refused
    assert refused.stderr.count("\n") == 1
    assert "may have 1,024. Raise the limit (`ulimit -n`), or set --concurrency 992." in (
        refused.stderr
    )
    assert shell("ulimit -n 12; $run").returncode == 2
    assert server.requests == []
    raised = shell("ulimit -Sn 64; $run --concurrency 100")
    assert raised.returncode == 0, raised


@pytest.mark.parametrize("kib", [60_000, 200_000, 400_000, 700_000])
def test_too_little_memory_is_named_in_one_line(shell, server, kib):
    """Refused before anything is loaded: libraries end a process without a word of their own."""
    ended = shell(f"ulimit -v {kib}; $run")
    assert ended.returncode == 2, ended
    assert ended.stderr.startswith("Not enough memory: this process may map ")
    assert ended.stderr.count("\n") == 1
    assert server.requests == []


THREADLESS = """
import sys, threading
start = threading.Thread.start
def refuse(thread):
    if "rows" in thread.name: raise {error}
    start(thread)
threading.Thread.start = refuse
from pipeline.cli import console
console("classify")
"""


@pytest.mark.parametrize("error", ['RuntimeError("can\'t start new thread")', "MemoryError()"])
def test_memory_that_runs_out_stops_the_run_resumably(server, write_csv, tmp_path, cli, error):
    """The exit code, one line, and `status` say the same."""
    write_csv("in.csv", ROWS)
    arguments = ["run", "in.csv", "--endpoint", server.url, "-o", "out.parquet"]
    ended = subprocess.run(
        [sys.executable, "-c", THREADLESS.format(error=error), *arguments],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 75, ended
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("Not enough memory")
    told = cli("status", "out.parquet", "--json").json
    assert (told["state"], told["exit_code"]) == ("stopped", 75)
    assert "Not enough memory" in told["message"]
    assert cli(*arguments).code == 0
