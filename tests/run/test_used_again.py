"""A run that asks for the same as the one before uses its answers, whatever else is another."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import classify_pipeline as cp
from pipeline.errors import ResumeRefused, StoppedEarly

TEXTS = [f"text {i}" for i in range(100)]
THRESHOLD = 0.75
USED_AGAIN = "overwrite=True`, which uses its answers again"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def source(tmp_path):
    pq.write_table(pa.table({"text": TEXTS, "other": TEXTS[::-1]}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out"])
@pytest.mark.parametrize("shown", [{}, {"threshold": THRESHOLD}, {"top_k": 2}])
@pytest.mark.parametrize("how", ["overwrite", "update"])
def test_after_a_limit_the_whole_run_asks_for_the_rest_only(
    label, server, source, tmp_path, name, shown, how
):
    output = tmp_path / name
    label(source, output, limit=40, **shown)
    with pytest.raises(ResumeRefused, match=USED_AGAIN):
        label(source, output, **shown)
    label(source, output, **shown, **{how: True})
    assert sorted(server.texts) == sorted(TEXTS)
    label(source, tmp_path / f"fresh-{name}", **shown)
    assert _content(output) == _content(tmp_path / f"fresh-{name}")


def _content(output):
    files = sorted(output.glob("*.parquet")) if output.is_dir() else [output]
    return [file.read_bytes() for file in files]


def test_on_the_command_line(cli, server, source):
    command = (source, "-o", "out.parquet", "--endpoint", server.url)
    assert cli("run", *command, "--limit", "40").code == 0
    refused = cli("run", *command)
    assert refused.code == 2
    assert "Replace it with --overwrite, which uses its answers again" in refused.stderr
    planned = cli("plan", *command, "--overwrite", "--json").json
    assert (planned["cache_hits"], planned["distinct_inputs"]) == (40, 100)
    assert cli("run", *command, "--overwrite").code == 0
    assert sorted(server.texts) == sorted(TEXTS)


def test_fewer_rows_and_other_names_of_columns_ask_nothing(label, server, source, output):
    label(source, output)
    server.reset()
    for other in (
        {"limit": 7},
        {"limit": 7, "label_column": "a", "score_column": "b"},
        {"limit": 7, "error_column": "c", "threshold": THRESHOLD},
        {"limit": 5},
    ):
        with pytest.raises(ResumeRefused, match=USED_AGAIN):
            label(source, output, **other)
        label(source, output, overwrite=True, **other)
    assert server.requests == []
    assert pq.read_table(output).column_names == ["text", "other", "label", "score", "error"]
    assert pq.read_table(output).num_rows == 5


def test_other_names_of_predictions_ask_nothing(label, server, source, output):
    label(source, output, top_k=2)
    server.reset()
    label(source, output, top_k=2, predictions_column="best two", overwrite=True)
    assert server.requests == []
    assert "best two" in pq.read_schema(output).names


@pytest.mark.parametrize("other", [{"limit": 40}, {"threshold": THRESHOLD}])
def test_to_ask_again_is_possible(label, server, source, output, other):
    """Also where the output that is replaced holds the answers."""
    label(source, output)
    server.reset()
    label(source, output, overwrite=True, ask_again=True, **other)
    assert sorted(server.texts) == sorted(TEXTS[: other.get("limit")])


def test_answers_in_a_cache_are_promised(label, server, source, output, tmp_path):
    """Whether it is named again or not: where answers are is recorded."""
    cache = {"cache": tmp_path / "cache"}
    label(source, output, threshold=THRESHOLD, **cache)
    server.reset()
    for number, named in enumerate((cache, {})):
        with pytest.raises(ResumeRefused, match=USED_AGAIN):
            label(source, output, threshold=0.6 + number / 100, **named)
        label(source, output, threshold=0.6 + number / 100, overwrite=True, **named)
    assert server.requests == []


def test_answers_that_are_gone_are_not_promised(label, server, source, output, tmp_path):
    label(source, output)
    changed = pq.read_table(output)
    pq.write_table(changed.set_column(2, "label", pa.array(["mine"] * 100)), output)
    with pytest.raises(ResumeRefused, match=r"answers again \(all texts are sent again if"):
        label(source, output, threshold=THRESHOLD)
    other = tmp_path / "other.parquet"
    label(source, other, threshold=THRESHOLD)
    (tmp_path / "other.parquet.run" / "responses.journal").unlink()
    with pytest.raises(ResumeRefused, match="Replace it with `overwrite=True`, or choose"):
        label(source, other, threshold=0.6)


def test_a_stopped_run_says_how_its_answers_are_used_again(
    label, server, source, output, small_chunks
):
    few = {"batch_size": 5, "concurrency": 1}
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=8, limit=60, **few)
    told = "start over with `restart=True`, which uses its answers again"
    for other in ({}, {"limit": 60, "threshold": THRESHOLD}):
        with pytest.raises(ResumeRefused, match=told):
            label(source, output, **other, **few)
    with pytest.raises(ResumeRefused, match="throw it away with `restart=True`, or"):
        label(source, output, limit=60, model="another", **few)
    label(source, output, restart=True, **few)
    assert sorted(server.texts) == sorted(TEXTS)


@pytest.fixture
def classify(server, tmp_path):
    def call(table, **settings):
        return cp.classify(
            table, endpoint=server.url, dialect="hf", checkpoint=tmp_path / "kept", **settings
        )

    return call


SHOWN = [
    {"threshold": THRESHOLD},
    {"threshold": 0.9, "unsure_label": "perhaps"},
    {"label_map": {"negative": "bad", "positive": "good"}},
    {"label_map": {"negative": "bad"}, "threshold": 0.6, "label_column": "mood"},
    {},
]


@pytest.mark.parametrize("top_k", [1, "all"])
def test_a_checkpoint_shows_its_answers_as_each_call_says(server, classify, tmp_path, top_k):
    table = pd.DataFrame({"text": TEXTS})
    classify(table, top_k=top_k)
    server.reset()
    scores = [{"score_labels": ["positive"]}] if top_k == "all" else []
    for shown in [*SHOWN, *scores, *reversed(SHOWN)]:
        found = classify(table, top_k=top_k, **shown)
        assert server.requests == [], shown
        fresh = cp.classify(table, endpoint=server.url, dialect="hf", top_k=top_k, **shown)
        pd.testing.assert_frame_equal(found, fresh)
        server.reset()


async def test_also_beside_other_work(server, tmp_path):
    call = {"endpoint": server.url, "dialect": "hf", "checkpoint": tmp_path / "kept"}
    await cp.aclassify(TEXTS, **call)
    server.reset()
    found = await cp.aclassify(TEXTS, threshold=1.0, **call)
    assert (server.requests, set(found["label"])) == ([], {"unsure"})


def test_a_checkpoint_that_is_not_complete_keeps_its_answers(server, classify, small_chunks):
    few = {"batch_size": 5, "concurrency": 1}
    with pytest.raises(StoppedEarly):
        classify(TEXTS, max_requests=8, **few)
    answered = server.answered_texts
    found = classify(TEXTS, threshold=1.0, **few)
    assert len(answered) == 40
    assert sorted(server.texts) == sorted(TEXTS)
    assert set(found["label"]) == {"unsure"}


def test_a_checkpoint_of_the_first_rows_serves_all(server, classify):
    first = classify(TEXTS, limit=40)
    found = classify(TEXTS)
    assert (len(first), len(found)) == (40, 100)
    assert sorted(server.texts) == sorted(TEXTS)


def test_a_checkpoint_is_of_one_table_and_of_what_was_asked(server, classify, tmp_path):
    """So that no other call can take its place by mistake."""
    classify(TEXTS, limit=40)
    server.reset()
    for table, other in (
        (TEXTS[1:], {}),
        (TEXTS[1:], {"threshold": THRESHOLD}),
        ([*TEXTS[:40], "new"], {"limit": 40, "model": "another"}),
        (TEXTS, {"top_k": 2}),
    ):
        with pytest.raises(ResumeRefused, match="Give another `checkpoint`, or delete"):
            classify(table, **other)
    assert server.requests == []


def test_where_each_row_was_asked_for_itself_its_labels_are_not_taken(server, classify):
    """Equal texts have answers of their own then, which only the journal of a run tells apart."""
    classify(["a", "a"], dedup=False)
    server.reset()
    with pytest.raises(ResumeRefused, match=r"threshold: 0\.5, was None"):
        classify(["a", "a"], dedup=False, threshold=0.5)
    assert server.requests == []
