"""What continues a run and what does not: only the same input with the same result settings."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError, ResumeRefused, StoppedEarly

TEXTS = [f"text {i}" for i in range(100)]


@pytest.fixture(autouse=True)
def _several_parts(small_chunks):
    """The runs here have seven parts."""


@pytest.fixture
def source(tmp_path):
    """100 rows with two columns that can be classified."""
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": TEXTS, "other": TEXTS[::-1]}), path)
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def stop_halfway(label, source, output):
    """Begin a run that stops after half of its requests."""

    def begin(**settings):
        settings = {"batch_size": 8, "concurrency": 1, "max_requests": 7, **settings}
        with pytest.raises(StoppedEarly) as stopped:
            label(source, output, **settings)
        assert stopped.value.exit_code == 75
        assert not output.exists()
        return stopped.value.summary

    return begin


def test_continues_without_asking_anything_again(
    label, server, source, output, stop_halfway, tmp_path
):
    stopped = stop_halfway()
    assert (stopped["state"], stopped["exit_code"], stopped["rows"]) == ("stopped", 75, 100)
    # Chunks that were answered out of order are not committed, but their answers are kept.
    assert stopped["labelled"] in (0, 16, 32, 48)
    summary = label(source, output, batch_size=8)
    assert (summary["state"], summary["resumed_rows"]) == ("complete", stopped["labelled"])
    assert len(server.requests) == 13
    assert sorted(server.texts) == sorted(TEXTS)
    assert not server.sent_twice()
    label(source, tmp_path / "at_once.parquet")
    assert output.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"concurrency": 7},
        {"rate": 200.0},
        {"batch_size": 3},
        {"timeout_s": 7},
        {"max_errors": "5%"},
        {"max_outage_s": 7, "max_loading_s": 7},
    ],
    ids=str,
)
def test_settings_that_change_no_result_may_change(
    label, server, source, output, stop_halfway, tmp_path, settings
):
    stop_halfway()
    assert label(source, output, **settings)["state"] == "complete"
    assert sorted(server.texts) == sorted(TEXTS)
    label(source, tmp_path / "at_once.parquet")
    assert output.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()


def test_the_input_may_have_moved(label, server, source, output, stop_halfway, tmp_path):
    """The content is the identity, not the path."""
    stopped = stop_halfway()
    moved = shutil.copy(source, tmp_path / "moved.parquet")
    source.unlink()
    assert label(moved, output)["resumed_rows"] == stopped["labelled"]
    assert sorted(server.texts) == sorted(TEXTS)


CHANGED = {
    "model": ({"model": "another/model"}, "another/model"),
    "text": ({"text": "other"}, "'other', was 'text'"),
    "text_pair": ({"text_pair": "other"}, "'other', was None"),
    "top_k": ({"top_k": 2}, "2, was 1"),
    "function_to_apply": ({"function_to_apply": "none"}, "'none', was None"),
    "truncate": ({"truncate": True}, "True, was False"),
    "limit": ({"limit": 50}, "50, was None"),
    "label_column": ({"label_column": "mood"}, "'mood', was 'label'"),
}


@pytest.mark.parametrize("done", ["half", "whole"])
@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_result_setting_is_refused(
    label, server, source, output, stop_halfway, listing, key, done
):
    if done == "half":
        stop_halfway()
    else:
        label(source, output)
    settings, difference = CHANGED[key]
    sent, before = len(server.requests), listing()
    with pytest.raises(ResumeRefused) as refused:
        label(source, output, **settings)
    assert f"{key}: " in str(refused.value)
    assert difference in str(refused.value)
    assert ("--restart" if done == "half" else "--overwrite") in str(refused.value)
    assert refused.value.exit_code == 2
    assert len(server.requests) == sent
    assert _without_lock(listing()) == _without_lock(before)


def _without_lock(files):
    """Leave out the lock, which every attempt may touch."""
    return {
        path: facts for path, facts in files.items() if not path.endswith((".run/lock", ".run"))
    }


@pytest.mark.parametrize("done", ["half", "whole"])
def test_a_changed_input_is_refused(label, server, source, output, stop_halfway, done):
    """One letter in one cell is another input, of the same size."""
    if done == "half":
        stop_halfway()
    else:
        label(source, output)
    sent = len(server.requests)
    pq.write_table(pa.table({"text": [*TEXTS[:-1], "text 98"], "other": TEXTS[::-1]}), source)
    with pytest.raises(ResumeRefused, match=r"in\.parquet: content changed"):
        label(source, output)
    assert len(server.requests) == sent


def test_refused_from_the_command_line_with_exit_code_2(cli, source, output, stop_halfway, server):
    stop_halfway()
    sent = len(server.requests)
    ended = cli("run", source, "--endpoint", server.url, "-o", output, "--top-k", 5, "--json")
    assert ended.code == 2
    assert "top_k: 5, was 1" in ended.stderr
    assert ended.json["message"] in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(server.requests) == sent


def test_restart_throws_away_what_was_done(label, server, source, output, stop_halfway):
    stop_halfway()
    server.reset()
    summary = label(source, output, restart=True, top_k=2)
    assert (summary["state"], summary["resumed_rows"], summary["labelled"]) == ("complete", 0, 100)
    assert sorted(server.texts) == sorted(TEXTS)
    assert "predictions" in pq.read_schema(output).names


def test_a_complete_run_again_does_nothing(cli, label, server, source, output, listing):
    label(source, output)
    server.reset()
    before = listing()
    ended = cli("run", source, "--endpoint", server.url, "-o", output, "--json")
    assert ended.code == 0, ended.stderr
    assert (ended.json["state"], ended.json["requests"]) == ("complete", 0)
    assert ended.json["rows"] == ended.json["labelled"] == 100
    assert server.requests == []
    assert _without_lock(listing()) == _without_lock(before)


def test_a_complete_run_with_errors_keeps_its_exit_code(cli, server, write_csv):
    source = write_csv("in.csv", ["good", "", "bad"])
    command = ("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    first, second = cli(*command), cli(*command)
    assert (first.code, second.code) == (3, 3)
    assert (second.json["errors"], second.json["requests"]) == (1, 0)


@pytest.mark.parametrize("done", ["half", "whole"])
def test_overwrite_replaces_a_complete_output(label, server, source, output, stop_halfway, done):
    """An unfinished run is not what --overwrite is for: it is continued."""
    if done == "half":
        stopped = stop_halfway()
        resumed = label(source, output, overwrite=True)
        assert resumed["resumed_rows"] == stopped["labelled"]
        assert sorted(server.texts) == sorted(TEXTS)
        return
    label(source, output)
    server.reset()
    summary = label(source, output, overwrite=True, text="other")
    assert (summary["state"], summary["resumed_rows"]) == ("complete", 0)
    assert sorted(server.texts) == sorted(TEXTS)


def test_an_output_that_was_deleted_is_made_again(label, server, source, output):
    label(source, output)
    before = output.read_bytes()
    output.unlink()
    assert label(source, output)["state"] == "complete"
    assert output.read_bytes() == before


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_an_output_of_unknown_origin_is_not_replaced(label, server, source, tmp_path, name):
    """Neither a file nor a directory that no run recorded is touched without --overwrite."""
    output = tmp_path / name
    if name == "out":
        output.mkdir()
        kept = output / "kept.txt"
    else:
        kept = output
    kept.write_text("somebody's work")
    with pytest.raises(OutputError, match="--overwrite"):
        label(source, output)
    assert kept.read_text() == "somebody's work"
    assert server.requests == []
    assert label(source, output, overwrite=True)["state"] == "complete"
    assert pq.read_table(output).num_rows == 100


def test_the_output_may_be_the_input(label, source, right_answer):
    """A Parquet file is labelled in place, by one rename at the end."""
    label(source, source, overwrite=True)
    found = pq.read_table(source)
    assert found["text"].to_pylist() == TEXTS
    assert found["label"].to_pylist() == [right_answer(text)[0]["label"] for text in TEXTS]


def test_an_interrupted_run_in_place_continues(label, server, source):
    with pytest.raises(StoppedEarly) as stopped:
        label(source, source, overwrite=True, batch_size=8, concurrency=1, max_requests=7)
    assert pq.read_schema(source).names == ["text", "other"]
    summary = label(source, source, overwrite=True)
    assert summary["state"] == "complete"
    assert summary["resumed_rows"] == stopped.value.summary["labelled"]
    assert not server.sent_twice()
    assert pq.read_schema(source).names == ["text", "other", "label", "score", "error"]
