"""Tables that come through a pipe, into a process of its own."""

import array
import fcntl
import gzip
import io
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CLASSIFY = str(Path(sys.executable).with_name("classify"))
ROWS = 300
TEXTS = [f"text {i}" for i in range(ROWS)]
TABLE = pa.table({"id": range(ROWS), "text": TEXTS})


def parquet():
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def arrow(open_):
    sink = io.BytesIO()
    with open_(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue()


CSV = ("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TEXTS))).encode()
KINDS = {
    "csv": CSV,
    "tsv": CSV.replace(b",", b"\t"),
    "csv.gz": gzip.compress(CSV),
    "csv.zst": pa.compress(CSV, "zstd", asbytes=True),
    "jsonl": b"".join(
        json.dumps({"id": i, "text": t}).encode() + b"\n" for i, t in enumerate(TEXTS)
    ),
    "parquet": parquet(),
    "arrow": arrow(pa.ipc.new_file),
    "stream": arrow(pa.ipc.new_stream),
}


def feed(writer, content):
    """Write to a pipe in pieces, and close it."""
    with suppress(BrokenPipeError), writer:
        for at in range(0, len(content), 10_000):
            writer.write(content[at : at + 10_000])


@pytest.fixture
def piped(start):
    """Pipe bytes into the installed command, in pieces, and run it to its end."""

    def run(content, *arguments):
        read, write = os.pipe()
        process = start(*arguments, stdin=read)
        os.close(read)
        feed(os.fdopen(write, "wb", 0), content)
        ended = process.ended()
        return ended.code, ended.stdout, ended.stderr

    return run


@pytest.fixture
def piped_into(tmp_path):
    """The same with another program, or with a process that is prepared."""

    def run(command, content, **options):
        process = subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env={**os.environ, "CLASSIFY_DIALECT": "hf"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip
        with process:
            feed(process.stdin, content)
            out, err = process.stdout.read().decode(), process.stderr.read().decode()
            process.wait(60)
        return process.returncode, out, err

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_told_by_the_first_bytes(piped, server, tmp_path, kind):
    code, _, err = piped(KINDS[kind], "run", "-", "--endpoint", server.url, "-o", "out.parquet")
    assert code == 0, err
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.select(["id", "text"]).to_pylist() == TABLE.to_pylist()
    assert sorted(server.texts) == sorted(TEXTS)


def test_the_same_content_continues_a_run(piped, server, tmp_path):
    arguments = ["run", "-", "--endpoint", server.url, "-o", "out.parquet", "--batch-size", "8"]
    code, _, err = piped(CSV, *arguments, "--max-requests", "20", "--concurrency", "1")
    assert code == 75, err
    code, _, err = piped(CSV.replace(b"text 9\n", b"other\n"), *arguments)
    assert code == 2
    assert "<stdin>.csv: content changed" in err
    assert "Go back to those to continue it" in err
    code, _, err = piped(CSV, *arguments)
    assert code == 0, err
    assert not server.sent_twice()
    assert "other" not in server.texts
    assert pq.read_table(tmp_path / "out.parquet")["text"].to_pylist() == TEXTS
    assert piped(CSV, *arguments)[0] == 0
    assert len(server.texts) == ROWS


def test_a_plan_reads_it_too(piped, server):
    code, out, err = piped(
        CSV, "plan", "-", "--endpoint", server.url, "-o", "out.parquet", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["distinct_inputs"] == ROWS
    assert server.requests == []


def test_a_file_that_a_shell_redirects(cli, server, tmp_path):
    (tmp_path / "in.csv").write_bytes(CSV)
    with (tmp_path / "in.csv").open("rb") as file:
        done = cli("run", "-", "--endpoint", server.url, "--limit", "3", stdin=file.fileno())
    assert done.code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "<stdin>.csv is empty (0 bytes)"),
        (b"id,text\n1\n", "<stdin>.csv line 2: 1 cell, but the header names 2"),
        (b'{"text":"a"}\n{"text":1}\n', "<stdin>.jsonl line 2: column 'text' is a number"),
        (b'[\n{"text":"a"}\n]', "<stdin>.jsonl is one JSON list"),
    ],
)
def test_what_is_wrong_with_it(piped, server, content, message):
    code, _, err = piped(content, "run", "-", "--endpoint", server.url, "-o", "out.parquet")
    assert code == 2
    assert message in err
    assert server.requests == []


def test_twice_is_refused(piped, server):
    code, _, err = piped(CSV, "run", "-", "-", "--endpoint", server.url, "-o", "out.parquet")
    assert code == 2
    assert "<stdin>.csv is in the input twice" in err


def test_it_is_no_output(piped, server):
    code, _, err = piped(CSV, "run", "-", "--endpoint", server.url, "-o", "-")
    assert code == 2
    assert "--output: - is no place for an output" in err
    assert server.requests == []


PEAK = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def test_it_is_not_held_in_memory(piped_into, server):
    """128 MiB come through the pipe, and the process takes no more than for one row of it."""
    row = b"good," + b"x" * 1000 + b"\n"
    peaks = []
    for rows in (10, 128_000):
        command = [CLASSIFY, "run", "-", "--endpoint", server.url, "--limit", "10"]
        content = b"text,more\n" + row * rows
        code, out, err = piped_into([sys.executable, "-c", PEAK, *command], content)
        assert code == 0, err
        peaks.append(int(out.splitlines()[-1]))
    assert peaks[1] - peaks[0] < 32 << 10


def test_no_room_for_it(piped_into, server):
    code, _, err = piped_into(
        [CLASSIFY, "run", "-", "--endpoint", server.url, "-o", "out.parquet"],
        CSV,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)),
    )
    assert code == 2
    assert "Standard input cannot be stored in " in err
    assert "have TMPDIR name a directory with more" in err
    assert server.requests == []


def test_a_terminal_is_refused(cli, server):
    here, there = pty.openpty()
    try:
        done = cli("run", "-", "--endpoint", server.url, "-o", "out.parquet", stdin=there)
    finally:
        os.close(here)
        os.close(there)
    assert done.code == 2
    assert "standard input is a terminal" in done.stderr


def test_a_signal_ends_the_wait_for_more(server, tmp_path):
    process = subprocess.Popen(
        [CLASSIFY, "run", "-", "--endpoint", server.url, "-o", "out.parquet"], cwd=tmp_path,
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        process.stdin.write("text\ngood\n")
        process.stdin.flush()
        while _unread(process.stdin):  # until the run has taken it
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Stopped by SIGINT" in process.stderr.read()
    assert server.requests == []


def _unread(pipe):
    """Return how many bytes of a pipe nobody has read."""
    count = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]
