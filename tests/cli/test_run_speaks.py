"""How `classify run` speaks: flags, progress and the summary."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pyte
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.config import RunConfig

# The keys of the summary that people and scripts rely on.
SUMMARY = {
    "rows", "labelled", "errors", "resumed_rows", "distinct_inputs", "cache_hits", "requests",
    "retries", "responses", "labels", "seconds", "rows_per_second", "peak_in_flight", "model",
    "model_revision", "endpoint", "output", "state", "exit_code",
}  # fmt: skip


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i % 90}" for i in range(100)])


def test_every_setting_is_a_flag_with_its_meaning():
    ended = CliRunner().invoke(main, ["run", "--help"], env={"COLUMNS": "200"})
    assert ended.exit_code == 0
    flags = set(re.findall(r"--([a-z][a-z0-9-]*)", ended.stdout))
    for key, field in RunConfig.model_fields.items():
        if key == "input":
            continue
        assert key.replace("_", "-") in flags, key
        if field.annotation is bool:
            assert "no-" + key.replace("_", "-") in flags, key
        if key != "output":
            meaning = " ".join((field.description or "").split())
            assert meaning[:40] in " ".join(ended.stdout.split()), key


@pytest.mark.parametrize(
    ("flag", "key", "value"),
    [
        (("--truncate",), "truncate", True),
        (("--no-truncate",), "truncate", False),
        (("--no-server-cache",), "server_cache", False),
        (("--batch-size", "3"), "batch_size", 3),
        (("--deadline", "90s"), "deadline", 90.0),
        (("--text-pair", "id"), "text_pair", "id"),
    ],
)
def test_flags_reach_the_settings(flag, key, value, monkeypatch):
    """Parsed from the command line into the RunConfig that Python would build."""
    import click

    from pipeline.cli.settings import load_config, setting_options

    found = []

    @click.command()
    @setting_options
    def probe(**given):
        given |= {"input": "a.csv", "output": "b.parquet", "endpoint": "local"}
        found.append(load_config(given))

    ended = CliRunner().invoke(probe, [*flag])
    assert ended.exit_code == 0, ended.output
    assert getattr(found[0], key) == value


def test_a_flag_beats_the_environment_and_that_the_file(cli, server, source, tmp_path):
    """Seen by the server: batches of the flag's size, though file and environment say others."""
    (tmp_path / "job.yaml").write_text(
        f"input: {source}\noutput: out.parquet\nendpoint: {server.url}\n"
        "batch_size: 50\nconcurrency: 1\nlimit: 20\n"
    )
    ended = cli(
        "run", "--config", "job.yaml", "--batch-size", 10, CLASSIFY_BATCH_SIZE="25",
        CLASSIFY_LIMIT="40",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert [len(each.texts) for each in server.requests] == [10] * 4
    assert server.peak_in_flight == 1


def test_json_is_one_object_on_stdout_and_nothing_else(cli, server, source):
    ended = cli("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    assert ended.code == 0, ended.stderr
    found, end = json.JSONDecoder().raw_decode(ended.stdout)
    assert ended.stdout[end:].strip() == ""
    assert set(found) >= SUMMARY
    assert found["responses"] == {"200": 3}
    assert (found["rows"], found["labelled"], found["distinct_inputs"]) == (100, 100, 90)
    assert sum(found["labels"].values()) == 100
    assert (found["state"], found["exit_code"], found["errors"]) == ("complete", 0, 0)
    assert (found["output"], found["endpoint"]) == ("out.parquet", server.url)
    assert found["seconds"] > 0
    assert found["rows_per_second"] > 0


def test_json_of_a_run_that_stopped_has_the_same_keys(cli, server, source):
    command = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    stopped = cli(*command, "--max-requests", 1)
    assert set(stopped.json) >= SUMMARY | {"message"}
    assert stopped.json["message"] in stopped.stderr
    again = cli(*command)
    assert set(again.json) >= SUMMARY
    complete = cli(*command)
    assert set(complete.json) >= SUMMARY


def test_plain_lines_where_stderr_is_no_terminal(cli, server, source):
    """A log gets whole lines without control characters; stdout gets the result alone."""
    server.script = lambda each: (
        server.reply(503, {"error": "Model x is currently loading", "estimated_time": 0.1})
        if each.number < 3
        else None
    )
    began = time.time()
    ended = cli("run", source, "--endpoint", server.url, "-o", "out.parquet")
    assert ended.code == 0
    lines = ended.stderr.splitlines()
    stamps = [datetime.fromisoformat(line[:19]).timestamp() for line in lines]
    assert stamps == sorted(stamps)
    assert began - 1 <= stamps[0] <= stamps[-1] <= time.time()
    assert lines[0][20:] == f"100 rows, endpoint {server.url}"
    assert "loading" in ended.stderr
    assert "going on" in ended.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ended.stderr)
    assert re.fullmatch(
        r"out\.parquet: 100 rows, 100 labelled, 0 with errors; 6 requests in [\d.]+ s\n"
        r"Labels: neutral 43 \(43%\), positive 34 \(34%\), negative 23 \(23%\)\n"
        r"Next: classify report out\.parquet\n",
        ended.stdout,
    )


def _in_a_terminal(arguments, cwd, watch=lambda *_: None, *, term="xterm-256color", columns=120):
    """Run the command with a terminal for stderr; gives the exit code, stdout and what was written.

    `watch` is called whenever more was written, with all of that and what presses Ctrl-C.
    """
    terminal, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("classify")), *map(str, arguments)],
            cwd=cwd, env={**os.environ, "TERM": term, "COLUMNS": str(columns)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
        )  # fmt: skip
    finally:
        os.close(theirs)

    def press():
        os.write(terminal, b"\x03")  # the terminal shows it, and is nobody's whom it could signal
        process.send_signal(signal.SIGINT)

    screen = b""
    try:
        # A terminal whose other side was closed gives an error instead of an end.
        while piece := os.read(terminal, 65_536):
            screen += piece
            watch(screen.decode(errors="replace"), press)
    except OSError:
        pass
    finally:
        os.close(terminal)
    stdout, _ = process.communicate(timeout=30)
    return process.returncode, stdout.decode(), screen.decode()


def test_a_bar_where_stderr_is_a_terminal(server, source, tmp_path):
    server.script = lambda _: server.reply(delay_s=0.15)
    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    arguments += ("--concurrency", 1, "--batch-size", 10, "--dialect", "hf")
    code, stdout, screen = _in_a_terminal(arguments, tmp_path)
    assert code == 0, screen
    assert json.loads(stdout)["state"] == "complete"
    assert "━" in screen
    assert "100/100" in screen
    assert "100%" in screen
    assert re.search(r"\x1b\[\d*[A-Z]", screen), "the bar is redrawn in place"
    # The cursor is back, so that the terminal is as it was.
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")


def test_the_bar_ticks_while_nothing_happens(server, source, tmp_path):
    """The endpoint holds the request until the screen has counted to three."""
    server.script = lambda each: (
        server.reply(503, {"error": "Model x is currently loading", "estimated_time": 20.0})
        if each.number == 0
        else server.reply(hold=True)
    )

    def watch(screen, _):
        if all(f"model loading, {second} s of about 20 s" in screen for second in (2, 3)):
            server.release()

    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")
    code, _, screen = _in_a_terminal(arguments, tmp_path, watch)
    assert code == 0, screen
    assert "100/100" in screen


def _rows_of(written, columns):
    """What a terminal shows after all that was written, line by line."""
    screen = pyte.Screen(columns, 24)
    pyte.Stream(screen).feed(written)
    return [line.rstrip() for line in screen.display if line.strip()]


LATE = {"error": "Model x is currently loading", "estimated_time": 1.0}


# Wider ones have room for all that is told so soon; see tests/observers/test_terminal.py.
@pytest.mark.parametrize("columns", [40, 60])
def test_the_details_give_way_to_the_bar_and_the_counts(server, source, tmp_path, columns):
    lines = set()
    server.script = lambda each: (
        server.reply(503, LATE)
        if each.number >= 2 and not any("…" in line for line in lines)
        else None
    )

    def watch(written, _):
        lines.update(line for line in _rows_of(written, columns) if "/100" in line)

    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")
    code, _, written = _in_a_terminal(arguments, tmp_path, watch, columns=columns)
    assert code == 0, written
    assert any("…" in line for line in lines), lines
    whole = r"[━╸╺ ]{4,20} +\d+% \d+/100( .*|)"
    assert [line for line in lines if not re.fullmatch(whole, line)] == []


def test_ctrl_c_leaves_no_bar(server, source, tmp_path):
    """Twice, since the first waits for the answers; what the terminal shows of the keys is gone."""
    server.script = lambda _: server.reply(hold=True)
    when = [r"[1-9]\d* of \d+ in flight", "again to stop at once"]

    def watch(written, press):
        if when and re.search(when[0], written):
            del when[0]
            press()

    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")
    arguments += ("--concurrency", 16, "--batch-size", 1)
    code, _, written = _in_a_terminal(arguments, tmp_path, watch, columns=80)
    assert code == 130, written
    assert "^C" in written
    shown = _rows_of(written, 80)
    assert "Stopped by SIGINT" in "".join(shown)
    assert not [line for line in shown if "━" in line or "^C" in line]


def test_a_terminal_that_only_appends_gets_lines(server, source, tmp_path):
    """At once, and no cursor is moved."""
    server.script = lambda _: server.reply(hold=True)

    def watch(written, _):
        if "100 rows, endpoint" in written:
            server.release()

    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")
    code, _, written = _in_a_terminal(arguments, tmp_path, watch, term="dumb")
    assert code == 0, written
    assert "\x1b" not in written


def test_the_terminal_is_left_as_it_was_when_a_run_is_refused(server, source, tmp_path):
    server.script = lambda _: server.reply(401, {"error": "no such token"})
    arguments = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--dialect", "hf")
    code, stdout, screen = _in_a_terminal(arguments, tmp_path)
    assert (code, stdout) == (4, "")
    assert "401 no such token" in screen
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")


@pytest.mark.parametrize("command", ["", *main.list_commands(None)])
def test_the_help_of_every_command_has_examples_that_it_takes(command):
    ended = CliRunner().invoke(main, [*command.split(), "--help"], env={"COLUMNS": "120"})
    assert ended.exit_code == 0
    assert "Usage:" in ended.stdout
    examples = re.findall(r"^ +(?:[\w ]+: +)?classify ([^(\n]*)", ended.stdout, re.MULTILINE)
    assert examples
    for example in examples:
        name, *words = shlex.split(re.split(r" > | {5}", example)[0].rstrip("\\ "))
        main.get_command(None, name).make_context(name, words)


def test_the_help_names_the_steps_of_a_job_in_their_order():
    told = CliRunner().invoke(main, ["--help"]).stdout
    steps = re.findall(r"^ +classify (\w+) .*labelled.parquet", told, re.MULTILINE)
    assert steps[1:] == ["probe", "plan", "run", "status", "report", "evaluate"]


def test_the_help_waits_for_nothing_heavy():
    """It imports neither settings nor Arrow nor a network, whatever the machine's speed."""
    heavy = ("pyarrow", "numpy", "pandas", "aiohttp", "pydantic", "rich", "asyncio", "yaml")
    program = (
        "import sys; from pipeline.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        f"print(*[name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "Usage:" in ended.stdout
    assert ended.stderr == "\n"


def test_no_command_loads_pandas(tmp_path, write_csv):
    """Arrow imports it where a Python value becomes an Arrow one: 0.4 s and 34 MB of no use."""
    program = (
        "import json, sys\n"
        "from pipeline.cli import main\n"
        "for command in json.load(sys.stdin):\n"
        "    try:\n"
        "        main(command)\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, command\n"
        "    assert 'pandas' not in sys.modules, command\n"
        "    print('no pandas')\n"
    )
    source, output = write_csv("in.csv", ["good", "", "größer", "good"]), tmp_path / "out.parquet"
    settings = ["--endpoint", "local", "--max-errors", "1"]
    pairs = [*settings, "--text-pair", "id", "--top-k", "all"]
    commands = [
        ["run", source, *settings, "-o", output],
        ["run", output, *settings, "-o", output, "--retry-failed"],
        ["run", source, *pairs, "-o", output, "--overwrite"],
        ["run", source, *pairs, "-o", output, "--overwrite", "--no-dedup"],
        ["report", output],
        ["plan", source, *settings, "-o", tmp_path / "next.parquet", "--probe"],
        ["probe", source, *settings],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(commands, default=str), check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("no pandas") == len(commands)


def test_the_version(cli):
    import pipeline

    assert cli("--version").stdout == f"classify, version {pipeline.__version__}\n"


def test_an_unknown_command_is_refused():
    ended = CliRunner().invoke(main, ["rum"])
    assert ended.exit_code == 2
    assert "rum" in ended.stderr


def test_the_signals_of_the_process_are_given_back(tmp_path):
    """A program may call the command, and go on: it and its children must still be stoppable."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    found = CliRunner().invoke(main, ["run", "missing.csv", "-o", str(tmp_path / "out.parquet")])
    assert found.exit_code == 2
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_at_the_very_end_changes_nothing(tmp_path, number):
    """While the interpreter ends, what the command said and its exit code stand."""
    program = (
        "import atexit, os\n"
        "from pipeline.cli import console\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "console()\n"
    )
    job = ["run", "missing.csv", "--endpoint", "local", "-o", str(tmp_path / "out.parquet")]
    ended = subprocess.run(
        [sys.executable, "-c", program, *job], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "missing.csv" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_misspelt_label_to_rename_is_told_of(cli, server, source):
    """Not of one that merely is rare, nor if only some labels are to have another name."""
    command = ("run", source, "--endpoint", server.url, "--overwrite", "-o", "out.parquet")
    names = ("--label-map", "positive=good", "--label-map")
    told = "--label-map: no row has the label Negative. Labels without another name: negative, n"
    ended = cli(*command, *names, "Negative=bad", "--json")
    assert told in ended.stderr
    (noted,) = ended.json["notices"]
    assert noted.startswith(told)
    for name in ("negative=bad", "neutral=bad"):
        ended = cli(*command, *names, name, "--json")
        assert "--label-map" not in ended.stderr
        assert ended.json["notices"] == []


def test_what_a_run_tells_is_in_its_summary_too(cli, server, source, tmp_path):
    """Each of it once, in the words of the terminal; also of an attempt that stops."""
    command = ("run", source, "--endpoint", server.url, "-o", "out.csv", "--batch-size", "1")
    flags = ("--label-map", "positive=negative", "--top-k", "2", "--json")
    stopped = cli(*command, *flags, "--max-requests", "2")
    done = cli(*command, *flags)
    assert (stopped.code, done.code) == (75, 0)
    for ended in (stopped, done):
        assert all(words in ended.stderr for words in ended.json["notices"])
    lists, names = done.json["notices"]
    assert "of predictions are written as JSON" in lists
    assert "The model itself gives the label negative, which --label-map" in names
    kept = json.loads((tmp_path / "out.csv.run" / "summary.json").read_text())
    assert kept["notices"] == done.json["notices"]
    again = cli(*command, *flags)
    assert again.json["notices"] == []


def test_a_label_without_a_new_name_is_refused_as_it_was_typed(cli, server, source):
    ended = cli("run", source, "--endpoint", server.url, "-o", "o.csv", "--label-map", "positive")
    assert ended.code == 2
    assert "--label-map: 'positive' is not allowed. It takes LABEL=NAME" in ended.stderr
    assert server.requests == []
