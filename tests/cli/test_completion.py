"""Completion: what a shell is offered, and that a real bash takes it."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from pipeline.cli import main
from pipeline.config_values import DIALECTS

PATIENCE_S = 40.0


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """What is offered for the last of some words: (kind, value) of each."""
    monkeypatch.chdir(tmp_path)

    def ask(*words):
        shell = get_completion_class("bash")(main, {}, "classify", "_CLASSIFY_COMPLETE")
        items = shell.get_completions(list(words[:-1]), words[-1])
        return [(item.type, item.value) for item in items]

    return ask


def plain(*words):
    return [("plain", word) for word in words]


def test_commands(offered):
    assert offered("pl") == plain("plan")
    assert ("plain", "run") in offered("")
    assert offered("--ver") == plain("--version")


@pytest.mark.parametrize("command", ["run", "plan", "probe"])
def test_flags_of_settings_and_their_words(offered, command):
    assert offered(command, "--batch") == plain("--batch-size")
    assert offered(command, "--no-tr") == plain("--no-truncate")
    assert offered(command, "--dialect", "") == plain("auto", *DIALECTS)
    assert {"hf", "tei", "single"} < set(DIALECTS)
    assert offered(command, "--function-to-apply", "s") == plain("sigmoid", "softmax")
    assert offered(command, "--engine", "") == plain("local", "processes", "ray")
    assert offered(command, "--top-k", "a") == plain("all")
    assert offered(command, "--batch-size", "") == plain("auto")
    assert offered(command, "--endpoint", "l") == plain("local")
    assert offered(command, "--rate", "") == []


def test_files_are_left_to_the_shell(offered):
    for words in (("run", "da"), ("plan", "-o", "da"), ("run", "--cache", "da"), ("status", "da"),
                  ("probe", "--config", "da"), ("run", "--token-file", "da")):  # fmt: skip
        assert offered(*words) == [("file", "da")], words


@pytest.mark.parametrize(
    ("name", "content", "flags"),
    [
        ("a.csv", "id,review\n1,good\n", ()),
        ("a.csv", "\ufeffid;review\n", ("--delimiter", ";")),
    ],
)
def test_columns_of_a_csv(offered, tmp_path, name, content, flags):
    (tmp_path / name).write_text(content)
    assert offered("run", name, *flags, "--text", "re") == plain("review")
    assert offered("run", *flags, name, "--text-pair", "")[0] == ("plain", "id")


def test_columns_of_a_parquet_file(offered, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": [1], "review": ["good"]}), tmp_path / "a.parquet")
    assert offered("run", "a.parquet", "--text", "") == plain("id", "review")


def test_an_input_that_is_none_offers_no_columns(offered, tmp_path):
    (tmp_path / "a.parquet").write_text("no parquet")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\xff")
    for name in ("a.parquet", "b.csv", "missing.csv", ""):
        assert offered("run", name, "--text", "") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(cli, shell):
    ended = cli("completion", shell)
    assert ended.code == 0
    assert f"_CLASSIFY_COMPLETE={shell}_complete" in ended.stdout


def test_zsh_and_fish_are_told_the_meanings_too(cli):
    ended = cli(COMP_WORDS="classify pl", COMP_CWORD="1", _CLASSIFY_COMPLETE="zsh_complete")
    assert ended.stdout.splitlines()[:2] == ["plain", "plan"]
    assert "send" in ended.stdout
    ended = cli(COMP_WORDS="classify pl", COMP_CWORD="pl", _CLASSIFY_COMPLETE="fish_complete")
    assert ended.stdout.startswith("plain,plan\t")


def test_the_installed_command_answers_a_bash(cli):
    ended = cli(COMP_WORDS="classify run --dialect t", COMP_CWORD="3",
                _CLASSIFY_COMPLETE="bash_complete")  # fmt: skip
    assert (ended.code, ended.stdout, ended.stderr) == (0, "plain,tei\n", "")


def test_another_shell_is_refused(cli):
    ended = cli("completion", "tcsh")
    assert (ended.code, ended.stdout) == (2, "")
    assert "'bash', 'zsh', 'fish'" in ended.stderr


class _Bash:
    """A bash in a terminal of its own, with nobody's settings."""

    def __init__(self, directory: Path) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            environ = {**os.environ, "PATH": path, "PS1": "ready> ", "TERM": "dumb"}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environ)

    def until(self, words: str) -> str:
        """Read what it shows until these words are there."""
        shown, end = "", time.monotonic() + PATIENCE_S
        while words not in shown:
            left_s = end - time.monotonic()
            assert left_s > 0, f"{words!r} is not in {shown!r}"
            if select.select([self._terminal], [], [], left_s)[0]:
                shown += os.read(self._terminal, 4096).decode()
        return shown

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def close(self) -> None:
        os.close(self._terminal)  # a hang-up, which ends it
        os.waitpid(self._pid, 0)


@pytest.mark.filterwarnings("ignore:.*use of forkpty.*:DeprecationWarning")
def test_a_real_bash_completes(tmp_path):
    """With the line that the help says, and the key that people press."""
    (tmp_path / "reviews.csv").write_text("id,review\n1,good\n")
    bash = _Bash(tmp_path)
    try:
        bash.until("ready> ")
        bash.type('eval "$(classify completion bash)"\n')
        bash.until("ready> ")
        bash.type("classify pl\t")
        bash.until("classify plan ")
        bash.type("revie\t")
        bash.until("reviews.csv ")
        bash.type("--text rev\t")
        bash.until("--text review ")
        bash.type("--dial\t")
        bash.until("--dialect ")
        bash.type("te\t")
        bash.until("tei ")
    finally:
        bash.close()
