"""What goes wrong once requests were sent: the exit code and `status` agree on what can continue.

Exit code 2 says that nothing was sent, so none of these may end with it.
"""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import EndpointRefused, StoppedEarly, UsageError
from pipeline.job.status import status_of

pytestmark = pytest.mark.usefixtures("small_chunks")

ROWS = 400
TEXTS = [f"text {i:03d} " + "x" * 200 for i in range(ROWS)]
CONTINUES = "Run the same command again to continue."


def _csv(path):
    path.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS))


def _parquet(path):
    pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=20, compression="none")


def _overwritten(path):
    """Bytes in the middle, as a failing disk or a careless copy leaves them."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\0" * 9_000)


CHANGES = {
    "damaged": _overwritten,
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 3),
    "gone": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


def _ended(status, words):
    """Check that `status` and the exit code are of one mind."""
    assert (status.state, status.exit_code) == ("stopped", 75)
    assert status.next == CONTINUES
    assert words in status.message
    assert status.message.endswith(CONTINUES)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "write"), [("in.csv", _csv), ("in.parquet", _parquet)])
def test_an_input_that_changes(label, server, tmp_path, name, write, change):
    source, output = tmp_path / name, tmp_path / "out.parquet"
    write(source)
    kept = source.read_bytes()

    def script(request):
        if request.number == 2:
            CHANGES[change](source)

    server.script = script
    with pytest.raises(StoppedEarly, match="changed while it was being read"):
        label(source, output, batch_size=8, concurrency=1)
    _ended(status_of(output), f"{name} changed while it was being read.")
    # As it is, the input is another one: nothing is sent, which 2 says.
    sent = len(server.requests)
    with pytest.raises(UsageError):
        label(source, output)
    assert len(server.requests) == sent

    shutil.rmtree(source) if source.is_dir() else source.unlink(missing_ok=True)
    source.write_bytes(kept)
    assert label(source, output)["state"] == "complete"
    assert not server.sent_twice()
    assert pq.read_table(output)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_an_output_that_appears(cli, server, tmp_path, name):
    """Documents of somebody else in its place."""
    source, output = tmp_path / "in.csv", tmp_path / name
    _csv(source)

    def script(request):
        if request.number == 2:
            output.mkdir()
            (output / "notes.txt").write_text("somebody's work")

    server.script = script
    command = ("run", source, "--endpoint", server.url, "-o", output)
    assert cli(*command).code == 75
    status = status_of(output)
    assert (status.state, status.exit_code) == ("stopped", 75)
    assert str(output) in status.message
    assert (output / "notes.txt").read_text() == "somebody's work"
    sent = len(server.requests)
    shutil.rmtree(output)
    assert cli(*command).code == 0
    assert len(server.requests) == sent


def test_a_token_file_that_vanishes_in_the_middle(cli, server, tmp_path):
    """It is looked for again after a 401, which a login that is refreshed gets."""
    source, output, token = tmp_path / "in.csv", tmp_path / "out.parquet", tmp_path / "token"
    _csv(source)
    token.write_text("first")
    token.chmod(0o600)

    def script(request):
        if request.number < 2:
            return None
        token.unlink(missing_ok=True)
        return server.reply(401, {"error": "expired"})

    server.script = script
    command = ("run", source, "--endpoint", server.url, "-o", output, "--token-file", token)
    command += ("--batch-size", 8, "--concurrency", 1)
    ended = cli(*command)
    status = status_of(output)
    assert ended.code == status.exit_code
    assert ended.code in (StoppedEarly.exit_code, EndpointRefused.exit_code)
    assert status.next.endswith("un the same command again to continue.")
    server.script = lambda _: None
    token.write_text("second")
    token.chmod(0o600)
    assert cli(*command).code == 0


@pytest.mark.parametrize("place", ["answers", "out.parquet.run/parts"])
def test_a_cache_or_parts_that_vanish(cli, server, tmp_path, place):
    """The run ends well, or says how it goes on; the answers that are gone are asked again."""
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    _csv(source)
    (tmp_path / "answers").mkdir()

    def script(request):
        if request.number == 30:
            shutil.rmtree(tmp_path / place)

    server.script = script
    command = ("run", source, "--endpoint", server.url, "-o", output, "--batch-size", 8)
    command += ("--concurrency", 1, "--cache", tmp_path / "answers" / "cache")
    ended = cli(*command)
    assert "Traceback" not in ended.stderr
    status = status_of(output)
    assert ended.code == status.exit_code
    if ended.code:
        assert (ended.code, status.next) == (75, CONTINUES)
        (tmp_path / "answers").mkdir(exist_ok=True)
        assert cli(*command).code == 0
    assert pq.read_table(output)["text"].to_pylist() == TEXTS


@pytest.mark.parametrize("sends", [True, False])
def test_what_is_refused_before_anything_was_sent_ends_with_2(cli, server, tmp_path, sends):
    """Of a run that was begun before, `status` says that something has to change first."""
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    _csv(source)
    command = ("run", source, "--endpoint", server.url, "-o", output)
    if sends:
        assert cli(*command, "--max-requests", 2).code == 75
    sent = len(server.requests)
    ended = cli(*command, "--text", "missing")
    assert ended.code == 2
    assert len(server.requests) == sent
    assert cli(*command).code == 0


def test_a_plan_that_has_probed_does_not_end_with_2(cli, server, tmp_path):
    source = tmp_path / "in.csv"
    _csv(source)
    server.script = lambda _: _overwritten(source)
    command = ("plan", source, "--endpoint", server.url, "-o", "out.parquet", "--probe")
    ended = cli(*command)
    assert server.requests
    assert ended.code == 75, ended
    assert "changed while it was being read" in ended.stderr


def test_a_bug_is_named_as_one_by_status(label, server, tmp_path, monkeypatch):
    source, output = tmp_path / "in.csv", tmp_path / "out.parquet"
    _csv(source)

    def broken(*_, **__):
        raise KeyError("a bug")

    monkeypatch.setattr("pipeline.job.stream.write_part", broken)
    with pytest.raises(KeyError):
        label(source, output)
    status = status_of(output)
    assert (status.state, status.exit_code) == ("stopped", 1)
    assert "bug" in status.next
    monkeypatch.undo()
    assert label(source, output)["state"] == "complete"
    assert not server.sent_twice()
