"""What continues a run and what does not: only the same input with the same result settings."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.errors import EndpointRefused, OutputError, ResumeRefused, StoppedEarly

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


# How a run gets its answers; what it gives does not depend on these.
FREE = {
    "dialect": "single",
    "bill_to": "an-organisation",
    "token_file": "token",
    "header_from": "x-team=file:token",
    "allow_drift": True,
    "server_cache": False,
    "batch_size": 3,
    "concurrency": 7,
    "rate": 200.0,
    "timeout_s": 7,
    "max_loading_s": 7,
    "max_outage_s": 7,
    "dedup": False,
    "cache": "answers",
    "max_errors": "5%",
    "deadline": "1h",
    "max_requests": 1_000,
    "grace_s": 7,
    "metrics_file": "classify.prom",
    "gold": "other",
    "engine": "processes",
    "workers": 2,
}
# What they need beside them.
BESIDE = {"workers": {"engine": "processes"}}
# These say where answers are kept, so what was answered and not committed is asked again.
OTHER_PLACE = {"dedup", "cache"}


@pytest.mark.fault(11)
@pytest.mark.parametrize("key", FREE)
def test_a_setting_that_changes_no_result_may_change(
    label, server, source, output, stop_halfway, tmp_path, monkeypatch, key
):
    """And the output has the bytes of a run that was not interrupted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("hf_token")
    stopped = stop_halfway()
    changed = {key: FREE[key], **BESIDE.get(key, {})}
    summary = label(source, output, **changed)
    assert (summary["state"], summary["resumed_rows"]) == ("complete", stopped["labelled"])
    assert set(server.texts) == set(TEXTS)
    if key in OTHER_PLACE:
        assert not server.sent_twice() & set(TEXTS[: stopped["labelled"]])
    else:
        assert not server.sent_twice()
    sent = len(server.requests)
    assert label(source, output, **changed)["state"] == "complete"
    assert len(server.requests) == sent
    label(source, tmp_path / "at_once.parquet")
    assert output.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()


def test_the_input_may_have_moved(label, server, source, output, stop_halfway, tmp_path):
    """The content is the identity, not the path."""
    stopped = stop_halfway()
    moved = shutil.copy(source, tmp_path / "moved.parquet")
    source.unlink()
    assert label(moved, output)["resumed_rows"] == stopped["labelled"]
    assert sorted(server.texts) == sorted(TEXTS)


# What a run gives depends on these: setting, new value, and what the refusal says.
CHANGED = {
    "endpoint": (
        {"endpoint": "http://127.0.0.1:9"},
        "'http://127.0.0.1:9', was 'http://127.0.0.1:",
    ),
    "model": ({"model": "another/model"}, "another/model"),
    "text": ({"text": "other"}, "'other', was 'text'"),
    "text_pair": ({"text_pair": "other"}, "'other', was None"),
    "top_k": ({"top_k": 2}, "2, was 1"),
    "function_to_apply": ({"function_to_apply": "none"}, "'none', was None"),
    "truncate": ({"truncate": True}, "True, was False"),
    "exact_scores": ({"exact_scores": False}, "False, was True"),
    "limit": ({"limit": 50}, "50, was None"),
    "label_column": ({"label_column": "new"}, "'new', was 'label'"),
    "score_column": ({"score_column": "new"}, "'new', was 'score'"),
    "error_column": ({"error_column": "new"}, "'new', was 'error'"),
    "predictions_column": (
        {"predictions_column": "new", "top_k": 2},
        "'new', was 'predictions'",
    ),
    "label_map": ({"label_map": {"a": "b"}}, "{'a': 'b'}, was None"),
    "threshold": ({"threshold": 0.5}, "0.5, was None"),
    "unsure_label": ({"unsure_label": "new", "threshold": 0.5}, "'new', was 'unsure'"),
    "score_labels": ({"score_labels": "a"}, "['a'], was None"),
}
# How CSV is read is part of the input.
READING = {
    "delimiter": ({"delimiter": ";"}, "';', was ','"),
    "encoding": ({"encoding": "latin-1"}, "latin-1, was auto"),
    "csv_escape": ({"csv_escape": "!"}, "'!', was None"),
}


@pytest.mark.fault(11)
def test_of_every_setting_it_is_decided_whether_it_changes_results():
    """A new setting belongs into RESULT_SETTINGS and CHANGED, or into FREE."""
    decided = [*CHANGED, *READING, *FREE, "input", "output", "run_dir", "ray_address"]
    assert sorted(decided) == sorted(RunConfig.model_fields)
    assert sorted(RunConfig.RESULT_SETTINGS) == sorted(CHANGED)


@pytest.mark.fault(11)
@pytest.mark.parametrize("done", ["half", "whole"])
@pytest.mark.parametrize("key", READING)
def test_csv_that_is_read_in_another_way_is_refused(
    label, server, write_csv, output, listing, key, done
):
    source = write_csv("in.csv", TEXTS)
    if done == "half":
        with pytest.raises(StoppedEarly):
            label(source, output, batch_size=8, concurrency=1, max_requests=7)
    else:
        label(source, output)
    settings, difference = READING[key]
    sent, before = len(server.requests), listing()
    with pytest.raises(ResumeRefused, match=f"{key}: {difference}"):
        label(source, output, **settings)
    assert (len(server.requests), _without_lock(listing())) == (sent, _without_lock(before))


@pytest.mark.fault(11)
def test_all_differences_are_told_at_once(label, source, output, stop_halfway):
    stop_halfway()
    pq.write_table(pa.table({"text": TEXTS, "other": range(100)}), source)
    with pytest.raises(ResumeRefused) as refused:
        label(source, output, model="another/model", truncate=True)
    for difference in (
        "model: 'another/model', was None",
        "truncate: True, was False",
        "column other: int64, was string",
        "in.parquet: content changed",
    ):
        assert difference in str(refused.value)


@pytest.mark.fault(11)
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
    assert ("restart=True" if done == "half" else "overwrite=True") in str(refused.value)
    assert refused.value.exit_code == 2
    assert len(server.requests) == sent
    assert _without_lock(listing()) == _without_lock(before)


@pytest.mark.parametrize("done", ["half", "whole"])
@pytest.mark.parametrize("idle", [{"unsure_label": "new"}, {"predictions_column": "new"}])
def test_a_setting_without_effect_may_change(
    label, server, source, output, stop_halfway, tmp_path, done, idle
):
    """Without a threshold no row is unsure, and with one label a row nothing is in a list."""
    if done == "half":
        stop_halfway(**idle)
    else:
        label(source, output, **idle)
    label(source, output)
    label(source, output, **idle)
    assert sorted(server.texts) == sorted(TEXTS)
    label(source, tmp_path / "at_once.parquet")
    assert output.read_bytes() == (tmp_path / "at_once.parquet").read_bytes()


def _without_lock(files):
    """Leave out the lock, which every attempt may touch."""
    return {
        path: facts for path, facts in files.items() if not path.endswith((".run/lock", ".run"))
    }


def _exchange_files(a, b):
    pq.write_table(pa.table({"text": TEXTS[60:]}), a)
    pq.write_table(pa.table({"text": TEXTS[:60]}), b)


def _write_as_csv(a, b):
    a.unlink()
    b.unlink()
    a.with_suffix(".csv").write_text("\n".join(["text", *TEXTS]))


# What happens to a.parquet (60 rows) and b.parquet (40 rows), and what the refusal says.
CHANGED_FILES = {
    "one more": (
        lambda a, _: shutil.copy(a, a.with_name("c.parquet")), "3 files, was 2",
    ),
    "one less": (lambda _, b: b.unlink(), "1 file, was 2"),
    "another order": (_exchange_files, "the same files in another order"),
    "another kind": (_write_as_csv, "input format: CSV, was not CSV"),
    "a new column": (
        lambda a, b: [
            pq.write_table(pq.read_table(p).append_column("n", pa.nulls(n)), p)
            for p, n in ((a, 60), (b, 40))
        ],
        "column n: new",
    ),
    "another type": (
        lambda a, b: [
            pq.write_table(pq.read_table(p).cast(pa.schema([("text", pa.large_string())])), p)
            for p in (a, b)
        ],
        "column text: large_string, was string",
    ),
}  # fmt: skip


@pytest.mark.fault(11)
@pytest.mark.parametrize("done", ["half", "whole"])
@pytest.mark.parametrize("change", CHANGED_FILES)
def test_changed_files_are_refused(label, server, tmp_path, output, listing, change, done):
    """Which files, in which order, of which columns and types; nothing is sent or written."""
    folder = tmp_path / "in"
    folder.mkdir()
    a, b = folder / "a.parquet", folder / "b.parquet"
    _exchange_files(b, a)
    if done == "half":
        with pytest.raises(StoppedEarly):
            label(folder, output, batch_size=8, concurrency=1, max_requests=7)
    else:
        label(folder, output)
    how, difference = CHANGED_FILES[change]
    how(a, b)
    sent, before = len(server.requests), listing()
    with pytest.raises(ResumeRefused, match=difference):
        label(folder, output)
    assert (len(server.requests), _without_lock(listing())) == (sent, _without_lock(before))


@pytest.mark.fault(11)
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


def test_restart_keeps_the_answers_and_ask_again_throws_them_away(
    label, server, source, output, stop_halfway
):
    """What was paid for is not paid for twice, unless that is what is wanted."""
    stop_halfway()
    answered = server.answered_texts
    server.reset()
    with pytest.raises(StoppedEarly):
        label(source, output, restart=True, max_requests=1)
    assert answered
    assert not answered & set(server.texts)
    label(source, output, restart=True)
    assert server.sent_twice() == set()
    assert sorted([*answered, *server.texts]) == sorted(TEXTS)


def test_ask_again_sends_everything(label, server, source, output, stop_halfway):
    stop_halfway()
    server.reset()
    assert label(source, output, ask_again=True)["resumed_rows"] == 0
    assert sorted(server.texts) == sorted(TEXTS)


def test_restart_leaves_a_complete_output_alone(label, server, source, output):
    """It throws away what is unfinished; replacing what is complete takes --overwrite."""
    label(source, output)
    before, sent = output.read_bytes(), len(server.requests)
    assert label(source, output, restart=True)["requests"] == 0
    with pytest.raises(ResumeRefused, match="overwrite=True"):
        label(source, output, restart=True, top_k=2)
    assert (output.read_bytes(), len(server.requests)) == (before, sent)


def test_restart_and_overwrite_where_nothing_was_done(label, source, output):
    assert label(source, output, restart=True, overwrite=True)["state"] == "complete"


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


@pytest.mark.fault(11)
@pytest.mark.parametrize("cached", [False, True])
def test_a_run_that_holds_nothing_is_replaced(label, server, source, output, tmp_path, cached):
    """A wrong model, say, was refused; nothing is lost by the corrected one."""
    cache = {"cache": tmp_path / "cache"} if cached else {}
    server.script = lambda _: server.reply(404, {"error": "no such model"})
    with pytest.raises(EndpointRefused):
        label(source, output, model="org/wrong", **cache)
    server.reset()
    summary = label(source, output, model="org/right", **cache)
    assert (summary["state"], summary["labelled"]) == ("complete", 100)
    assert len(server.texts) == 100


@pytest.mark.fault(11)
def test_a_run_that_holds_answers_but_no_part_is_not_replaced(label, server, source, output):
    with pytest.raises(StoppedEarly) as stopped:
        label(source, output, batch_size=8, concurrency=1, max_requests=1)
    assert stopped.value.summary["labelled"] == 0
    with pytest.raises(ResumeRefused, match="unfinished run"):
        label(source, output, text="other")
    assert len(server.requests) == 1


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
    """A file that no run recorded is replaced with --overwrite only, a directory never."""
    output = tmp_path / name
    if name == "out":
        output.mkdir()
        kept = output / "kept.txt"
    else:
        kept = output
    kept.write_text("somebody's work")
    with pytest.raises(OutputError, match="overwrite=True"):
        label(source, output)
    assert kept.read_text() == "somebody's work"
    assert server.requests == []
    if name == "out":
        with pytest.raises(OutputError, match=r"it holds .*kept\.txt"):
            label(source, output, overwrite=True)
        assert kept.read_text() == "somebody's work"
        kept.unlink()
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
