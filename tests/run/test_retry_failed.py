"""`--retry-failed`: only the rows that carry an error are asked again, and patched in place."""

import itertools
import signal
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    EndpointRefused,
    OutputError,
    ResumeRefused,
    StoppedEarly,
    TooManyErrors,
)
from pipeline.job import stream
from pipeline.store import disk
from pipeline.store.records import RunLog

TEXTS = [f"poison {i}" if i % 7 == 3 else f"text {i}" for i in range(100)]
POISON = [text for text in TEXTS if "poison" in text]


class Killed(BaseException):
    """Ends a run as a kill would: what is on disk stays as it is."""


@pytest.fixture(autouse=True)
def _several_parts(small_chunks):
    """The runs here have seven parts."""


@pytest.fixture
def source(tmp_path):
    """100 rows and one without a text, among columns of kinds that are easily changed."""
    path = tmp_path / "in.parquet"
    table = pa.table(
        {
            "text": [*TEXTS, None],
            "n": pa.array(range(101), pa.int16()),
            "country": pa.array([("DE", "NA", None)[i % 3] for i in range(101)])
            .dictionary_encode(),
            "nested": pa.array([{"x": [i], "y": None} for i in range(101)]),
            "long": pa.array([f"cell {i}" for i in range(101)], pa.large_string()),
            "view": pa.array([f"a cell that is seen {i}" for i in range(101)], pa.string_view()),
        }
    ).replace_schema_metadata({"made by": "somebody"})  # fmt: skip
    pq.write_table(table, path, row_group_size=30)
    return path


@pytest.fixture(params=["out.parquet", "out"])
def output(request, tmp_path):
    return tmp_path / request.param


@pytest.fixture
def refuse_poison(server):
    """Let the server refuse some texts, until it is told to answer all."""

    def refuse():
        server.script = lambda each: (
            server.reply(400, {"error": "no"})
            if any("poison" in text for text in each.texts)
            else None
        )

    return refuse


@pytest.fixture
def failed(label, server, source, output, refuse_poison):
    """A complete output of which some rows carry an error; the server is mended by now."""
    refuse_poison()
    summary = label(source, output)
    assert (summary["state"], summary["errors"]) == ("complete", len(POISON) + 1)
    server.reset()
    return summary


def _bytes(path):
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file.read_bytes() for file in files]


@pytest.fixture
def check(label, source, output, tmp_path):
    """Compare with an uninterrupted run that was given the same answers."""

    def compare(**settings):
        expected = tmp_path / "at_once" / output.name
        expected.parent.mkdir()
        summary = label(source, expected, **settings)
        assert _bytes(output) == _bytes(expected)
        return summary

    return compare


def test_only_rows_with_an_error_are_asked_again(label, server, source, output, failed, check):
    """A row without a text cannot be mended by asking: it keeps its error, and costs nothing."""
    summary = label(source, output, retry_failed=True)
    assert sorted(server.texts) == sorted(POISON)
    assert (summary["state"], summary["exit_code"]) == ("complete", 3)
    assert (summary["rows"], summary["labelled"], summary["errors"]) == (101, 100, 1)
    again = check()
    for key in ("rows", "labelled", "errors", "labels", "exit_code"):
        assert summary[key] == again[key], key
    server.reset()
    plain = label(source, output)
    assert (plain["labels"], server.requests) == (summary["labels"], [])


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 3},
        {"dedup": False},
        {"label_column": "mood", "error_column": "why"},
        {"text_pair": "long"},
        {"limit": 60},
    ],
    ids=str,
)
def test_with_any_setting(label, server, source, output, refuse_poison, check, settings):
    refuse_poison()
    label(source, output, **settings)
    server.reset()
    label(source, output, retry_failed=True, **settings)
    sent = [text for text in TEXTS[: settings.get("limit")] if "poison" in text]
    assert sorted(server.texts) == sorted(sent)
    check(**settings)


def test_what_fails_again_keeps_its_newest_error(label, server, source, output, failed):
    server.script = lambda each: (
        server.reply(422, {"error": "still not"}) if "poison 3" in each.texts else None
    )
    summary = label(source, output, retry_failed=True)
    errors = pq.read_table(output, partitioning=None)["error"].to_pylist()
    assert {i: error for i, error in enumerate(errors) if error} == {
        3: "422 still not", 100: "null text",
    }  # fmt: skip
    assert summary["errors"] == 2
    server.script = lambda _: None
    assert label(source, output, retry_failed=True, max_errors=1)["exit_code"] == 0


def test_needs_no_input(label, server, source, output, failed):
    """The output has all that is needed."""
    content = source.read_bytes()
    source.unlink()
    assert label(source, output, retry_failed=True)["errors"] == 1
    source.write_bytes(content)
    server.reset()
    assert label(source, output)["state"] == "complete"
    assert server.requests == []


def test_nothing_to_retry(cli, label, server, source, output, failed, listing):
    """A second time nothing can be mended; without any error nothing is even looked at."""
    label(source, output, limit=3, overwrite=True)
    server.reset()
    before = _bytes(output)
    ended = cli(
        "run", source, "--endpoint", server.url, "-o", output, "--limit", 3, "--retry-failed",
        "--json",
    )  # fmt: skip
    assert (ended.code, ended.json["requests"]) == (0, 0)
    assert "nothing to retry" in ended.stderr
    assert (server.requests, _bytes(output)) == ([], before)


def test_only_errors_that_asking_does_not_mend(label, server, source, output, failed):
    label(source, output, retry_failed=True)
    before = _bytes(output)
    server.reset()
    summary = label(source, output, retry_failed=True)
    assert (summary["errors"], summary["requests"], server.requests) == (1, 0, [])
    assert _bytes(output) == before


def test_where_nothing_was_done(cli, server, source, output, listing):
    before = listing()
    ended = cli("run", source, "--endpoint", server.url, "-o", output, "--retry-failed")
    assert ended.code == 2
    assert "nothing to retry" in ended.stderr
    assert (server.requests, listing()) == ([], before)


def test_an_unfinished_run_comes_first(label, server, source, output, refuse_poison, check):
    """It is continued as without the switch; its errors are for the next time."""
    refuse_poison()
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=8, concurrency=1, max_requests=30)
    first = label(source, output, retry_failed=True)
    assert (first["state"], first["rows"], first["errors"]) == ("complete", 101, len(POISON) + 1)
    server.reset()
    assert label(source, output, retry_failed=True)["errors"] == 1
    assert sorted(server.texts) == sorted(POISON)
    check()


STOPS = {"batch_size": 2, "concurrency": 1, "max_requests": 3}


@pytest.mark.parametrize("switch", [True, False], ids=["same command", "without the switch"])
def test_stopped_it_continues(label, server, source, output, failed, check, switch):
    """Until it is done the old output stays; nothing that was answered is asked again."""
    before = _bytes(output)
    with pytest.raises(StoppedEarly) as stopped:
        label(source, output, retry_failed=True, **STOPS)
    assert stopped.value.exit_code == 75
    assert _bytes(output) == before
    assert label(source, output, retry_failed=switch)["state"] == "complete"
    assert sorted(server.texts) == sorted(POISON)
    check()


def test_restart_drops_a_retry(label, server, source, output, failed, check):
    """The complete output and its record are what they were."""
    before = _bytes(output)
    with pytest.raises(StoppedEarly):
        label(source, output, retry_failed=True, **STOPS)
    server.reset()
    summary = label(source, output, restart=True)
    assert (summary["state"], summary["errors"]) == ("complete", failed["errors"])
    assert (server.requests, _bytes(output)) == ([], before)
    assert label(source, output, retry_failed=True)["errors"] == 1
    check()


# After which call of which method of the log a retry is killed. Before `set_complete`, the
# output has its name.
KILLS = {
    "begun": ("begin_retry", 1),
    "a part": ("add_part", 1),
    "all parts": ("add_part", 7),
    "assembled": ("set_assembled", 1),
    "renamed": ("set_complete", 0),
    "complete": ("set_complete", 1),
}


@pytest.mark.parametrize("kill", KILLS)
def test_killed_it_continues(label, server, source, output, failed, check, monkeypatch, kill):
    name, last = KILLS[kill]
    work, calls = getattr(RunLog, name), itertools.count(1)

    def killing(*arguments):
        call = next(calls)
        if call <= last:
            work(*arguments)
        if call >= last:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, name, killing)
        with pytest.raises(Killed):
            label(source, output, retry_failed=True)
    assert label(source, output, retry_failed=True)["errors"] == 1
    assert sorted(server.texts) == sorted(POISON)
    check()


@pytest.fixture
def large_files(monkeypatch):
    """Cut files as the command does."""
    monkeypatch.setattr(stream, "FILE_ROWS", 65_536)


@pytest.mark.fault(1)
@pytest.mark.usefixtures("large_files")
def test_killed_by_the_system_it_continues(
    server, start, cli, source, output, failed, check, until_stored
):
    """SIGKILL while requests are in flight: the same command asks at most those again."""
    before = _bytes(output)
    command = (
        "run", source, "--endpoint", server.url, "-o", output, "--batch-size", 2,
        "--concurrency", 1, "--retry-failed", "--json",
    )  # fmt: skip
    server.script = lambda each: server.reply(hold=each.number >= 5)
    first = start(*command)
    journal = output.with_name(output.name + ".run") / "responses.journal"
    server.wait_for(lambda: len(server.requests) == 6)
    until_stored(journal, 10)
    first.send(signal.SIGKILL)
    assert first.ended().code == -signal.SIGKILL
    assert _bytes(output) == before
    held = set(server.requests[-1].texts)
    server.release()
    second = cli(*command)
    assert (second.code, second.json["errors"]) == (3, 1), second.stderr
    assert set(server.texts) == set(POISON)
    assert server.sent_twice() == held
    check()


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_large_rows_and_dictionaries_give_the_same_bytes(
    label, server, tmp_path, monkeypatch, refuse_poison, name
):
    """Where chunks are cut by their bytes, and row groups hold several dictionaries."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 500)
    monkeypatch.setattr(stream, "CHUNK_BYTES", 30_000)
    monkeypatch.setattr(stream, "FILE_BYTES", 100_000)
    monkeypatch.setattr(sys.modules["pipeline.writer.assembly"], "ROW_GROUP_ROWS", 2_048)
    source, rows = tmp_path / "in.parquet", range(6_000)
    table = pa.table(
        {
            "text": [f"poison {i % 90}" if i % 13 == 2 else f"text {i % 90}" for i in rows],
            "filler": ["x" * (i * 7919 % 200) for i in rows],
            "many": pa.array([f"value {i * 31 % 5_000}" for i in rows]).dictionary_encode(),
            "few": pa.array([f"value {i // 1_500}" for i in rows]).dictionary_encode(),
        }
    )
    pq.write_table(table, source, row_group_size=1_700)
    (tmp_path / "expected").mkdir()
    label(source, tmp_path / "expected" / name)
    refuse_poison()
    label(source, tmp_path / name)
    server.reset()
    assert label(source, tmp_path / name, retry_failed=True)["errors"] == 0
    assert _bytes(tmp_path / name) == _bytes(tmp_path / "expected" / name)


@pytest.mark.parametrize("settings", [{"model": "other/model"}, {"top_k": 2}], ids=str)
def test_another_model_is_refused(label, server, source, output, failed, listing, settings):
    """Labels of two models must not be mixed."""
    before = _bytes(output)
    with pytest.raises(ResumeRefused, match=f"{next(iter(settings))}: "):
        label(source, output, retry_failed=True, **settings)
    assert (server.requests, _bytes(output)) == ([], before)
    assert label(source, output)["state"] == "complete"


def test_another_revision_stops(label, server, source, output, refuse_poison):
    """The guard against drift knows what the first labels came from."""

    def told(revision, *, poison):
        def script(each):
            if poison and any("poison" in text for text in each.texts):
                return server.reply(400, {"error": "no"})
            return server.reply(headers={"x-sha": revision})

        return script

    server.script = told("one", poison=True)
    label(source, output)
    before = _bytes(output)
    server.script = told("two", poison=False)
    with pytest.raises(StoppedEarly, match="revision is two, and was one"):
        label(source, output, retry_failed=True)
    assert _bytes(output) == before
    summary = label(source, output, retry_failed=True, allow_drift=True)
    assert (summary["errors"], summary["model_revision"]) == (1, "two")


def test_a_revision_is_kept_where_nothing_is_asked(label, server, source, output):
    server.script = lambda _: server.reply(headers={"x-sha": "one"})
    label(source, output)
    before = _bytes(output)
    assert label(source, output, retry_failed=True)["model_revision"] == "one"
    assert _bytes(output) == before


def test_an_output_that_was_changed_is_refused(label, server, source, output, failed):
    """Its rows are not those that the run knows."""
    file = output / "part-00000.parquet" if output.is_dir() else output
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)
    with pytest.raises(ResumeRefused, match="not what the run wrote"):
        label(source, output, retry_failed=True)
    assert server.requests == []
    assert pq.read_table(file).num_rows == table.num_rows - 1


def test_an_output_that_is_gone_is_refused(label, server, source, output, failed):
    disk.remove(output)
    with pytest.raises(ResumeRefused, match="not what the run wrote"):
        label(source, output, retry_failed=True)
    assert server.requests == []


def test_an_output_that_changes_meanwhile_is_not_replaced(label, server, source, output, failed):
    file = output / "part-00000.parquet" if output.is_dir() else output
    new = pa.table({"text": ["somebody's work"]})
    server.script = lambda _: pq.write_table(new, file)
    with pytest.raises(StoppedEarly, match="changed"):
        label(source, output, retry_failed=True, batch_size=200)
    assert pq.read_table(file).equals(new)


@pytest.mark.parametrize("output", ["out"], indirect=True)
def test_what_lies_beside_the_parts_is_not_lost(label, server, source, output, failed):
    (output / "notes.txt").write_text("somebody's work")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        label(source, output, retry_failed=True)
    assert server.requests == []


def test_in_place(label, server, source, refuse_poison, tmp_path):
    """The output was the input: it is gone through, patched, and known again."""
    refuse_poison()
    beside = tmp_path / "beside.parquet"
    label(source, beside)
    label(source, source, overwrite=True)
    server.reset()
    label(source, beside, retry_failed=True, overwrite=True)
    assert label(source, source, retry_failed=True, overwrite=True)["errors"] == 1
    assert sorted(server.texts) == sorted([*POISON, *POISON])
    assert label(source, source, overwrite=True)["requests"] == 0
    found, expected = pq.read_table(source), pq.read_table(beside)
    assert found.equals(expected, check_metadata=True)


def test_more_errors_than_allowed(label, source, output, failed):
    """As in any run: more than `max_errors` stops it, and the old output stays."""
    before = _bytes(output)
    with pytest.raises(TooManyErrors):
        label(source, output, retry_failed=True, max_errors=0)
    assert _bytes(output) == before
    assert label(source, output, retry_failed=True, max_errors=1)["exit_code"] == 0


def test_a_refusal_keeps_the_old_output(label, server, source, output, failed, check):
    before = _bytes(output)
    server.script = lambda _: server.reply(401, {"error": "no"})
    with pytest.raises(EndpointRefused):
        label(source, output, retry_failed=True)
    assert _bytes(output) == before
    server.script = lambda _: None
    assert label(source, output, retry_failed=True)["errors"] == 1
    check()
