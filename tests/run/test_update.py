"""Tables that grow: `--update` asks only for what is new, and the output is complete each time."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError, ResumeRefused, SettingsError, StoppedEarly

TEXTS = [f"text {i}" for i in range(100)]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def night(label, server, output, tmp_path):
    """Label a table of these texts as the nightly command does; gives what was asked."""

    def run(texts, *, pairs=None, script=lambda _: None, **settings):
        columns = {"text": texts} if pairs is None else {"text": texts, "pair": pairs}
        pq.write_table(pa.table(columns), tmp_path / "in.parquet")
        server.reset()
        server.script = script
        label(tmp_path / "in.parquet", output, update=True, **settings)
        return sorted(server.texts)

    return run


def at_once(label, texts, tmp_path, **settings):
    """The bytes of a run that never saw another table."""
    pq.write_table(pa.table({"text": texts}), tmp_path / "all.parquet")
    label(tmp_path / "all.parquet", tmp_path / "at_once.parquet", overwrite=True, **settings)
    return (tmp_path / "at_once.parquet").read_bytes()


@pytest.mark.parametrize("top_k", [1, 2, "all"])
def test_only_what_is_new_or_changed_is_asked(night, label, output, tmp_path, top_k):
    """Rows that were added, changed, moved, repeated or removed; the bytes are those of one run."""
    first = night(TEXTS, top_k=top_k)
    assert first == sorted(TEXTS)
    second = ["new", *TEXTS[50:], "changed", "text 60", None, "new"]
    assert night(second, top_k=top_k) == ["changed", "new"]
    assert output.read_bytes() == at_once(label, second, tmp_path, top_k=top_k)
    # The third night has the answers of both.
    assert night([*second, "third"], top_k=top_k) == ["third"]


def test_a_table_that_has_changed_is_refused_with_the_way_that_costs_least(
    label, server, output, tmp_path
):
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": TEXTS}), source)
    label(source, output)
    pq.write_table(pa.table({"text": [*TEXTS, "new"]}), source)
    server.reset()
    with pytest.raises(ResumeRefused, match="Replace it with `update=True`, which sends only"):
        label(source, output)
    with pytest.raises(ResumeRefused, match="Replace it with `overwrite=True`, or"):
        label(source, output, top_k=2)  # none of its answers would serve
    assert server.requests == []


def test_a_directory_of_parts(label, server, tmp_path):
    output = tmp_path / "out"
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "in.parquet")
    label(tmp_path / "in.parquet", output, update=True)
    pq.write_table(pa.table({"text": [*TEXTS, "new"]}), tmp_path / "in.parquet")
    server.reset()
    label(tmp_path / "in.parquet", output, update=True)
    assert server.texts == ["new"]
    assert pq.read_table(output).num_rows == 101


def test_pairs(night, server):
    night(["a", "b"], pairs=["x", "y"], text_pair="pair")
    assert night(["b", "a", "b"], pairs=["y", "y", "x"], text_pair="pair") == ["a", "b"]
    assert len(server.requests) == 1


def test_the_same_table_again_does_nothing(night, output):
    night(TEXTS)
    before = output.stat().st_mtime_ns
    assert night(TEXTS) == []
    assert output.stat().st_mtime_ns == before


def test_rows_with_an_error_are_asked_again(night, server):
    def script(each):
        return server.reply(400, {"error": "bad"}) if "bad" in each.texts else None

    night(["good", "bad"], script=script, max_errors=1, batch_size=1)
    assert night(["good", "bad", "new"]) == ["bad", "new"]


def test_a_night_that_was_stopped_costs_nothing_again(night, label, server, output, tmp_path):
    """The output stands meanwhile; the next night, with other data again, has all answers."""
    night(TEXTS[:50])
    standing = output.read_bytes()
    with pytest.raises(StoppedEarly):
        night(TEXTS, max_requests=3, batch_size=5, concurrency=1)
    assert output.read_bytes() == standing
    answered = set(server.answered_texts)
    assert night([*TEXTS, "new"]) == sorted({*TEXTS[50:], "new"} - answered)
    assert output.read_bytes() == at_once(label, [*TEXTS, "new"], tmp_path)


@pytest.mark.parametrize(
    "failpoint", ["journal.synced", "log.written", "log.created", "renew.begun"]
)
def test_a_kill_while_it_begins_costs_nothing(cli, server, tmp_path, output, night, failpoint):
    night(TEXTS[:50])
    pq.write_table(pa.table({"text": [*TEXTS[:50], "new"]}), tmp_path / "in.parquet")
    command = ("run", "in.parquet", "-o", "out.parquet", "--endpoint", server.url, "--update")
    server.reset()
    killed = cli(*command, "--dialect", "hf", PIPELINE_FAILPOINT=failpoint)
    assert killed.code == 137, killed.stderr
    done = cli(*command, "--dialect", "hf")
    assert done.code == 0, done.stderr
    assert server.texts == ["new"]
    assert pq.read_table(output).num_rows == 51


def test_another_model_is_another_job(night, label, server, output):
    night(TEXTS, model="one")
    server.reset()
    with pytest.raises(ResumeRefused, match=r"other settings[\s\S]*model: 'two', was 'one'"):
        night([*TEXTS, "new"], model="two")
    assert server.requests == []


def test_a_model_that_has_moved_labels_all_rows_anew(night, server, output):
    """No output mixes revisions: what was answered by the older one does not count."""

    def told(digit):
        return lambda _: server.reply(headers={"x-sha": digit * 40})

    night(TEXTS, script=told("1"))
    assert night([*TEXTS, "new"], script=told("1")) == ["new"]
    assert set(night([*TEXTS, "newer"], script=told("2"))) == {*TEXTS, "newer"}


def test_what_cannot_be_updated_is_refused(label, server, output, tmp_path):
    pq.write_table(pa.table({"text": ["good"]}), tmp_path / "in.parquet")
    with pytest.raises(SettingsError, match="`update=True`: needs `dedup`"):
        label(tmp_path / "in.parquet", output, update=True, dedup=False)
    for other in ("overwrite", "ask_again", "retry_failed"):
        with pytest.raises(SettingsError, match=f"and `{other}=True` cannot be combined"):
            label(tmp_path / "in.parquet", output, update=True, **{other: True})
    with pytest.raises(SettingsError, match="the output is the input"):
        label(tmp_path / "in.parquet", tmp_path / "in.parquet", update=True)
    pq.write_table(pa.table({"text": ["else"]}), output)
    with pytest.raises(OutputError, match="not from a run that is recorded"):
        label(tmp_path / "in.parquet", output, update=True)
    assert server.requests == []


def test_an_output_that_is_another_one_by_now_is_refused(night, server, output, tmp_path):
    """Whatever lies there: its labels are not known to be the model's."""
    night(TEXTS)
    labelled = pq.read_table(output)
    changed = labelled.set_column(1, "label", pa.array(["mine"] * 100))
    strange = pa.table({"text": TEXTS})
    for other in (changed, strange):
        pq.write_table(other, output)
        with pytest.raises(ResumeRefused, match="is not what the run wrote"):
            night([*TEXTS, "new"])
        assert server.requests == []
    output.write_bytes(b"junk")
    with pytest.raises(ResumeRefused, match="is not what the run wrote"):
        night([*TEXTS, "new"])


def test_an_output_of_several_revisions_is_not_taken_for_one(night, server):
    """Unless that is accepted again."""

    def drifting(each):
        return server.reply(headers={"x-sha": ("1" if "text 0" in each.texts else "2") * 40})

    settings = {"allow_drift": True, "batch_size": 50, "concurrency": 1}
    night(TEXTS, script=drifting, **settings)
    assert len(server.requests) == 2
    with pytest.raises(ResumeRefused, match="labels of several revisions"):
        night([*TEXTS, "new"], script=drifting)
    assert server.requests == []
    assert night([*TEXTS, "new"], script=drifting, **settings) == ["new"]


def test_answers_of_a_cache_are_not_lost_with_the_setting(night, server, tmp_path):
    """A night with a cache is stopped, the next one has none."""
    night(TEXTS[:50])
    settings = {"max_requests": 3, "batch_size": 5, "concurrency": 1}
    with pytest.raises(StoppedEarly):
        night(TEXTS, cache=tmp_path / "answers.store", **settings)
    answered = set(server.answered_texts)
    assert len(answered) == 15
    assert night([*TEXTS, "new"]) == sorted({*TEXTS[50:], "new"} - answered)


def test_a_directory_between_its_renames_is_put_in_place_first(cli, server, tmp_path):
    """The kill comes after the old one was moved aside; neither is lost."""
    command = ("run", "in.parquet", "-o", "out", "--endpoint", server.url, "--dialect", "hf")
    for texts, failpoint in ((TEXTS, ""), ([*TEXTS, "new"], "output.moved aside")):
        pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
        cli(*command, "--update", PIPELINE_FAILPOINT=failpoint)
    assert not (tmp_path / "out").exists()
    pq.write_table(pa.table({"text": [*TEXTS, "new", "newer"]}), tmp_path / "in.parquet")
    server.reset()
    done = cli(*command, "--update", "--max-requests", "1")
    assert done.code == 0, done.stderr
    assert pq.read_table(tmp_path / "out").num_rows == 101
    assert cli(*command, "--update").code == 0
    assert server.texts == ["newer"]
    assert pq.read_table(tmp_path / "out").num_rows == 102


def test_an_unfinished_retry_is_finished_first(label, night, server, output, tmp_path):
    def script(each):
        return server.reply(400, {"error": "bad"}) if "bad" in each.texts else None

    night(["good", "bad"], script=script, max_errors=1, batch_size=1)
    server.script = lambda _: server.reply(503, {"error": "down"})
    with pytest.raises(StoppedEarly):
        label(tmp_path / "in.parquet", output, retry_failed=True, max_outage_s=0.1, max_errors=1)
    with pytest.raises(ResumeRefused, match="unfinished retry"):
        night(["good", "bad", "new"], max_errors=1)


def test_a_plan_knows_what_the_output_has(cli, night, server, tmp_path, output):
    night(TEXTS)
    pq.write_table(pa.table({"text": [*TEXTS, "new"]}), tmp_path / "in.parquet")
    settings = ("in.parquet", "-o", "out.parquet", "--endpoint", server.url, "--update", "--json")
    planned = cli("plan", *settings)
    assert planned.code == 0, planned.stderr
    assert (planned.json["distinct_inputs"], planned.json["cache_hits"]) == (101, 100)
    assert planned.json["requests"] == 1
