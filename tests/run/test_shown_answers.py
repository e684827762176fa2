"""Names of labels, a threshold and columns of scores: applied to stored answers, which stay raw."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import classify_pipeline as cp
from pipeline.errors import (
    EndpointRefused,
    InputError,
    ResumeRefused,
    SettingsError,
    StoppedEarly,
)
from pipeline.events import LabelsNotGiven, LabelsShareNames

TEXTS = [f"text {i}" for i in range(100)]
NAMES = {"negative": "bad", "positive": "good"}
# Of these texts, some have a lower best score and some a higher one.
THRESHOLD = 0.75


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.parquet"


@pytest.fixture
def table(tmp_path):
    """Write a table of these texts."""

    def write(texts):
        pq.write_table(pa.table({"text": texts}), tmp_path / "in.parquet")
        return tmp_path / "in.parquet"

    return write


@pytest.fixture
def expected(right_answer):
    """Return what a text gets: label, score, predictions by name."""

    def of(text, threshold=0.0, names=NAMES):
        answer = [(each["label"], each["score"]) for each in right_answer(text)]
        found = [(names.get(name, name), score) for name, score in answer]
        label, score = found[0]
        return ("unsure" if score < threshold else label, score, found)

    return of


def test_names_threshold_and_columns_of_scores(label, server, table, output, expected):
    texts = [*TEXTS, None, "text 3", ""]
    summary = label(
        table(texts), output, label_map=NAMES, threshold=THRESHOLD,
        score_labels=["good", "bad", "neutral"],
    )  # fmt: skip
    found = pq.read_table(output)
    assert found.column_names == [
        "text", "label", "score", "error", "score_good", "score_bad", "score_neutral",
        "predictions",
    ]  # fmt: skip
    counts: dict[str, int] = {}
    for row in found.to_pylist():
        if row["text"] is None:
            assert row["error"] == "null text"
            assert {row[name] for name in found.column_names if name != "error"} == {None}
            continue
        name, score, pairs = expected(row["text"], THRESHOLD)
        counts[name] = counts.get(name, 0) + 1
        assert (row["label"], row["score"], row["error"]) == (name, score, None)
        assert [(each["label"], each["score"]) for each in row["predictions"]] == pairs
        assert {f"score_{name}": score for name, score in pairs}.items() <= row.items()
    assert set(counts) == {"good", "bad", "neutral", "unsure"}
    assert summary["labels"] == dict(sorted(counts.items()))


def test_a_label_that_no_answer_has_is_told_of_once(label, server, table, output, small_chunks):
    told = []
    notices = (lambda event: told.append(event) if isinstance(event, LabelsNotGiven) else None,)
    shown = {"label_map": NAMES, "score_labels": ["god", "bad"]}
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if "text 1" in each.texts else None
    )
    label(table(TEXTS), output, observers=notices, max_errors=1, **shown)
    assert told == [LabelsNotGiven(["god"], ["bad", "good", "neutral"])]
    label(table(TEXTS), output, observers=notices, overwrite=True, top_k=2, score_labels="god")
    assert len(told) == 1


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"label_map": {"positive": "negative"}}, ["negative"]),
        ({"threshold": THRESHOLD, "unsure_label": "neutral"}, ["neutral"]),
        ({"label_map": {"positive": "negative", "negative": "positive"}}, None),
        ({"threshold": THRESHOLD, "unsure_label": "neutral", "label_map": {"neutral": "n"}}, None),
        ({"unsure_label": "neutral"}, None),
    ],
)
@pytest.mark.parametrize("top_k", [1, "all"])
def test_two_labels_of_one_name_are_told_of_once(
    label, table, output, small_chunks, shown, expected, top_k
):
    told = []
    notices = (lambda event: told.append(event) if isinstance(event, LabelsShareNames) else None,)
    label(table(TEXTS), output, observers=notices, top_k=top_k, **shown)
    assert told == ([LabelsShareNames(expected)] if expected else [])


def test_a_name_for_unsure_rows_that_a_label_has_is_refused(label, server, table, output):
    with pytest.raises(SettingsError, match="`label_map` calls the label 'negative' 'unsure', too"):
        label(table(TEXTS), output, threshold=THRESHOLD, label_map={"negative": "unsure"})
    assert server.requests == []


def test_a_label_beyond_those_asked_for_has_no_score(label, table, output, expected):
    label(table(TEXTS), output, label_map=NAMES, score_labels="good", top_k=2)
    for row in pq.read_table(output).to_pylist():
        best_two = dict(expected(row["text"])[2][:2])
        assert row["score_good"] == best_two.get("good")
    assert 0 < pq.read_table(output).column("score_good").null_count < 100


def test_a_table_without_rows(label, table, output):
    label(
        table(pa.array([], pa.string())), output, label_map=NAMES, threshold=0.5, score_labels="a"
    )
    assert pq.read_table(output).column_names[-2:] == ["score_a", "predictions"]


SHOWN = [
    {"threshold": THRESHOLD},
    {"threshold": 0.9, "unsure_label": "perhaps"},
    {"label_map": NAMES},
    {"label_map": {"negative": "positive", "positive": "negative"}, "threshold": 0.6},
    {},
    {"threshold": THRESHOLD},
]


@pytest.mark.parametrize("top_k", [1, "all"])
@pytest.mark.parametrize("how", ["overwrite", "update"])
def test_another_way_to_show_answers_asks_nothing_again(
    label, server, table, output, tmp_path, how, top_k
):
    """From raw labels to others and back, each output is the one of a run that began so."""
    source = table(TEXTS)
    label(source, output, top_k=top_k)
    for number, shown in enumerate(SHOWN):
        server.reset()
        with pytest.raises(ResumeRefused, match="overwrite=True`, which uses its answers again"):
            label(source, output, top_k=top_k, **shown)
        label(source, output, top_k=top_k, **shown, **{how: True})
        assert server.requests == [], shown
        label(source, output, top_k=top_k, **shown)  # does nothing, and forgets nothing
        fresh = tmp_path / f"{number}.parquet"
        label(source, fresh, top_k=top_k, **shown)
        assert output.read_bytes() == fresh.read_bytes()
        server.reset()


@pytest.mark.parametrize("shown", [{"threshold": THRESHOLD}, {"label_map": NAMES}])
def test_an_update_asks_for_new_texts_only(label, server, table, output, tmp_path, shown):
    """Neither mapped labels nor `unsure` are taken for what the model answered."""
    label(table(TEXTS), output, **shown)
    server.reset()
    label(table([*TEXTS[50:], "new"]), output, update=True, **shown)
    assert server.texts == ["new"]
    server.reset()
    other = {"threshold": 0.55}
    label(table([*TEXTS[50:], "new", "newer"]), output, update=True, **other)
    assert server.texts == ["newer"]
    label(tmp_path / "in.parquet", tmp_path / "fresh.parquet", **other)
    assert output.read_bytes() == (tmp_path / "fresh.parquet").read_bytes()


def test_where_its_answers_are_gone_an_update_is_refused(label, server, table, output, tmp_path):
    label(table(TEXTS), output, threshold=THRESHOLD)
    (tmp_path / "out.parquet.run" / "responses.journal").unlink()
    source = table([*TEXTS, "new"])
    server.reset()
    with pytest.raises(ResumeRefused, match=r"are stored separately, and .* is missing"):
        label(source, output, threshold=THRESHOLD, update=True)
    assert server.requests == []
    label(source, output, threshold=THRESHOLD, overwrite=True)
    assert sorted(server.texts) == sorted([*TEXTS, "new"])


def test_answers_in_a_cache_are_used_from_there(label, server, table, output, tmp_path):
    cache = tmp_path / "cache"
    label(table(TEXTS), output, threshold=THRESHOLD, cache=cache)
    server.reset()
    label(table([*TEXTS, "new"]), output, threshold=0.6, cache=cache, update=True)
    assert server.texts == ["new"]


def test_a_cache_that_is_not_given_again_is_found(label, server, table, output, tmp_path):
    """Also by a run after the next one: where answers are is kept."""
    label(table(TEXTS), output, threshold=THRESHOLD, cache=tmp_path / "cache")
    for number, threshold in enumerate((0.6, 0.55)):
        server.reset()
        texts = [*TEXTS, *(f"new {each}" for each in range(number + 1))]
        label(table(texts), output, threshold=threshold, update=True)
        assert server.texts == [f"new {number}"]


@pytest.mark.parametrize("gone", [(0,), (1,), (0, 1)])
def test_each_cache_of_a_run_is_needed(label, server, table, output, tmp_path, gone):
    """It went on with another one, so some answers are in this and some in that."""
    source, caches = table(TEXTS), [tmp_path / "one", tmp_path / "two"]
    server.script = lambda request: server.reply(401) if request.number > 3 else None
    with pytest.raises(EndpointRefused):
        label(source, output, threshold=THRESHOLD, cache=caches[0], batch_size=8)
    server.script = lambda _: None
    label(source, output, threshold=THRESHOLD, cache=caches[1], batch_size=8)
    for each in gone:
        caches[each].rename(caches[each].with_suffix(".away"))
    server.reset()
    names = " and ".join(str(caches[each]) for each in gone)
    with pytest.raises(
        ResumeRefused, match=f"{names} (is|are) missing. Put (it|them) back"
    ) as told:
        label(table([*TEXTS, "new"]), output, threshold=0.6, update=True)
    left = [str(each) for number, each in enumerate(caches) if number not in gone]
    assert str(told.value).endswith(
        f'with `overwrite=True` and `cache="{left[0]}"`.' if left else "with `overwrite=True`."
    )
    assert server.requests == []
    for each in gone:
        caches[each].with_suffix(".away").rename(caches[each])
    label(table([*TEXTS, "new"]), output, threshold=0.6, update=True)
    assert server.texts == ["new"]


def test_a_cache_that_could_not_be_opened_is_not_needed(label, server, table, output, tmp_path):
    """The run went on without it, so no answer is there."""
    cache = tmp_path / "cache"
    cache.symlink_to(tmp_path / "missing" / "cache")
    with pytest.raises(StoppedEarly):
        label(table(TEXTS), output, threshold=THRESHOLD, cache=cache)
    label(table(TEXTS), output, threshold=THRESHOLD)
    server.reset()
    label(table([*TEXTS, "new"]), output, threshold=0.6, update=True)
    assert server.texts == ["new"]


def test_answers_that_were_deleted_are_named(label, server, table, output):
    label(table(TEXTS), output, threshold=THRESHOLD)
    journal = output.with_name("out.parquet.run") / "responses.journal"
    journal.unlink()
    server.reset()
    with pytest.raises(ResumeRefused, match=f"{journal} is missing. Put it back, or label"):
        label(table([*TEXTS, "new"]), output, threshold=0.6, update=True)
    assert server.requests == []


def test_another_cache_is_not_taken_for_the_one_of_the_run(label, server, table, output, tmp_path):
    """It has none of the answers, so the whole table would be paid for again."""
    source, cache, other = table(TEXTS), tmp_path / "cache", tmp_path / "other"
    label(source, output, threshold=THRESHOLD, cache=cache)
    label(source, tmp_path / "else.parquet", text_pair="text", cache=other)
    cache.unlink()
    server.reset()
    with pytest.raises(ResumeRefused, match=f"{cache} is missing. Put it back"):
        label(table([*TEXTS, "new"]), output, threshold=0.6, cache=other, update=True)
    with pytest.raises(ResumeRefused, match="Replace it with `overwrite=True`, or choose"):
        label(source, output, threshold=0.6, cache=other)
    assert server.requests == []


def test_an_output_that_was_changed_is_asked_for_again(label, server, table, output):
    """Its labels may be somebody's own."""
    source = table(TEXTS)
    label(source, output)
    changed = pq.read_table(output)
    pq.write_table(changed.set_column(1, "label", pa.array(["mine"] * 100)), output)
    server.reset()
    label(source, output, threshold=THRESHOLD, overwrite=True)
    assert sorted(server.texts) == sorted(TEXTS)


def test_another_model_asks_again_and_leaves_no_old_answers(label, server, table, output, tmp_path):
    label(table(TEXTS), output, threshold=THRESHOLD, model="one")
    journal = tmp_path / "out.parquet.run" / "responses.journal"
    before = journal.stat().st_size
    server.reset()
    label(tmp_path / "in.parquet", output, threshold=THRESHOLD, model="two", overwrite=True)
    assert sorted(server.texts) == sorted(TEXTS)
    assert journal.stat().st_size == before
    label(tmp_path / "in.parquet", output, model="two", overwrite=True)
    assert not journal.exists()  # the output holds them now
    assert sorted(server.texts) == sorted(TEXTS)


def test_to_ask_again_is_possible(label, server, table, output):
    source = table(TEXTS)
    label(source, output, threshold=THRESHOLD)
    server.reset()
    label(source, output, threshold=0.6, overwrite=True, ask_again=True)
    assert sorted(server.texts) == sorted(TEXTS)


def test_an_unfinished_run_goes_on_with_its_own_threshold_only(
    label, server, table, output, small_chunks, expected
):
    source = table(TEXTS)
    few = {"batch_size": 5, "concurrency": 1}
    with pytest.raises(StoppedEarly):
        label(source, output, threshold=THRESHOLD, max_requests=8, **few)
    answered = set(server.answered_texts)
    server.reset()
    with pytest.raises(ResumeRefused, match=r"threshold: 0\.6, was 0\.75"):
        label(source, output, threshold=0.6, **few)
    assert server.requests == []
    label(source, output, threshold=0.6, restart=True, **few)
    assert sorted(server.texts) == sorted(set(TEXTS) - answered)
    for row in pq.read_table(output).to_pylist():
        assert row["label"] == expected(row["text"], 0.6, names={})[0]


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_rows_that_are_retried_are_shown_as_the_others(
    label, server, table, tmp_path, name, small_chunks, expected
):
    texts = [f"poison {i}" if i % 7 == 3 else f"text {i}" for i in range(100)]
    server.script = lambda each: (
        server.reply(400, {"error": "no"}) if any("poison" in t for t in each.texts) else None
    )
    shown = {"label_map": NAMES, "threshold": THRESHOLD, "score_labels": "good"}
    source, output = table(texts), tmp_path / name
    failed = label(source, output, **shown)
    assert failed["errors"] == 14
    server.reset()
    server.script = lambda _: None
    with pytest.raises(ResumeRefused, match=r"threshold: 0\.6, was 0\.75"):
        label(source, output, retry_failed=True, **{**shown, "threshold": 0.6})
    assert label(source, output, retry_failed=True, **shown)["errors"] == 0
    assert sorted(server.texts) == sorted(t for t in texts if "poison" in t)
    for row in pq.read_table(output).to_pylist():
        label_, score, pairs = expected(row["text"], THRESHOLD)
        assert (row["label"], row["score"], row["score_good"]) == (
            label_,
            score,
            dict(pairs)["good"],
        )
    server.reset()
    label(source, output, overwrite=True, **{**shown, "threshold": 0.6})
    assert server.requests == []


def test_a_kill_between_completion_and_tidying_up_keeps_answers(cli, server, table, output):
    source = table(TEXTS)
    command = ("run", source, "-o", output, "--endpoint", server.url, "--threshold", "0.75")
    assert cli(*command, PIPELINE_FAILPOINT="finish.complete").code == 137
    assert cli(*command).code == 0
    server.reset()
    again = cli(*command[:-1], "0.6", "--overwrite", "--label-map", "negative=bad",
                "--label-map", "positive=good", "--json")  # fmt: skip
    assert again.code == 0, again.stderr
    assert set(again.json["labels"]) == {"bad", "good", "neutral", "unsure"}
    assert server.requests == []
    planned = cli("plan", *command[1:-1], "0.7", "--overwrite", "--json")
    assert (planned.json["requests"], planned.json["cache_hits"]) == (0, 100)


@pytest.mark.parametrize("begun", [(), ("--threshold", "0.6")])
@pytest.mark.parametrize(
    "failpoint",
    ["journal.synced", "begin.abandoned", "begin.cleared", "renew.begun", "finish.assembled"],
)
def test_a_kill_while_answers_are_shown_otherwise_costs_nothing(
    cli, server, table, output, tmp_path, failpoint, begun
):
    """They are in the old output, or in the run directory, until the new output has its place."""
    command = ("run", table(TEXTS), "-o", output, "--endpoint", server.url)
    assert cli(*command, *begun).code == 0
    server.reset()
    other = (*command, "--threshold", "0.75", "--overwrite")
    cli(*other, PIPELINE_FAILPOINT=failpoint)  # not each of them is passed on each of both ways
    done = cli(*other)
    assert done.code == 0, done.stderr
    assert server.requests == []
    fresh = tmp_path / "fresh.parquet"
    assert cli(*command[:3], fresh, *command[4:], "--threshold", "0.75").code == 0
    assert output.read_bytes() == fresh.read_bytes()


def test_a_table_in_memory(server, expected):
    labelled = cp.classify(
        TEXTS, endpoint=server.url, dialect="hf", label_map=NAMES, threshold=THRESHOLD,
        score_labels=["good"],
    ).to_dict("records")  # fmt: skip
    for text, row in zip(TEXTS, labelled, strict=True):
        name, score, pairs = expected(text, THRESHOLD)
        assert (row["label"], row["score"], row["score_good"]) == (name, score, dict(pairs)["good"])


def test_what_cannot_be_is_refused_before_anything_is_sent(cli, server, tmp_path):
    pq.write_table(pa.table({"text": ["a"], "score_good": [1.0]}), tmp_path / "in.parquet")
    command = ("run", "in.parquet", "-o", "out.parquet", "--endpoint", server.url)
    for more, words in (
        (("--label-map", "a=x", "--label-map", "b=x"), "would both be called 'x'"),
        (("--label-map", "a"), "--label-map"),
        (("--threshold", "2"), "--threshold: '2' is not allowed"),
        (("--score-labels", "good"), "--score-column NAME"),
    ):
        refused = cli(*command, *more)
        assert (refused.code, server.requests) == (2, []), more
        assert words in refused.stderr
    assert cli(*command, "--score-labels", "good", "--score-column", "p").code == 0
    assert "p_good" in pq.read_schema(tmp_path / "out.parquet").names


def test_a_server_that_gives_one_label_only_is_refused(label, server, table, output):
    with pytest.raises((SettingsError, InputError), match="top_k"):
        label(table(TEXTS), output, score_labels="good", dialect="vllm")
    assert server.requests == []
