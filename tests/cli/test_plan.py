"""`classify plan`: its numbers are those of the run after it, which tells both; nothing is sent."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.errors import EndpointRefused, OutputBusy, StoppedEarly
from pipeline.job import kept as kept_plan
from pipeline.plan import forecast as planning
from pipeline.responses import index
from pipeline.store import LocalStore

# 100 distinct ones: squares modulo a prime.
TEXTS = [f"text {i * i % 199}" for i in range(200)]
# What a plan and the summary of the run after it must agree on.
SAME = ("rows", "resumed_rows", "distinct_inputs", "cache_hits", "requests")


@pytest.fixture
def plan(server, listing):
    """Plan a job against the scripted server, with nothing sent and nothing written."""

    def run(source, output, *, price=None, restart=False, overwrite=False, retry_failed=False,
            ask_again=False, **settings):  # fmt: skip
        given = {"input": str(source), "output": output, "endpoint": server.url, "dialect": "hf"}
        given["exact_scores"] = True  # as `label` does
        before, sent = listing(), len(server.requests)
        found = planning.forecast(
            RunConfig(**{**given, **settings}), price=price, restart=restart, overwrite=overwrite,
            retry_failed=retry_failed, ask_again=ask_again,
        )  # fmt: skip
        assert (listing(), len(server.requests)) == (before, sent)
        return found

    return run


@pytest.fixture
def same(plan, label, server):
    """Plan a job and run it; they must agree. Gives both."""

    def check(source, output, **arguments):
        found, sent = plan(source, output, **arguments), len(server.requests)
        summary = label(source, output, **arguments)
        assert {name: getattr(found, name) for name in SAME} == {
            name: summary[name] for name in SAME
        }
        assert found.requests == len(server.requests) - sent
        return found, summary

    return check


def _table(tmp_path, **columns):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(params=["small chunks", "large chunks"])
def _chunks(request):
    if request.param == "small chunks":
        request.getfixturevalue("small_chunks")


SHAPES = {
    "duplicates": ({"text": TEXTS}, {}),
    "one a request": ({"text": TEXTS}, {"batch_size": 1}),
    "batches of 7": ({"text": TEXTS}, {"batch_size": 7}),
    "nulls": ({"text": [None if i % 5 == 0 else text for i, text in enumerate(TEXTS)]}, {}),
    "nulls only": ({"text": pa.array([None] * 50, pa.string())}, {}),
    "no rows": ({"text": pa.array([], pa.string())}, {}),
    "one row": ({"text": ["good"]}, {}),
    "pairs": (
        {"text": TEXTS, "b": [None if i % 9 == 0 else f"b {i % 3}" for i in range(200)]},
        {"text_pair": "b"},
    ),
    "a dictionary": ({"text": pa.array(TEXTS).dictionary_encode()}, {}),
    "without dedup": ({"text": [*TEXTS, None]}, {"dedup": False}),
    "pairs without dedup": ({"text": TEXTS, "b": TEXTS}, {"text_pair": "b", "dedup": False}),
    "a limit": ({"text": TEXTS}, {"limit": 33}),
    "single": ({"text": TEXTS}, {"dialect": "single"}),
    "auto": ({"text": TEXTS}, {"dialect": "auto"}),
    "auto, one row": ({"text": ["good"]}, {"dialect": "auto"}),
    "auto, one batch": ({"text": ["good", "bad"]}, {"dialect": "auto"}),
    "longer than a request": ({"text": ["x" * 2_000_000, "good", "é" * 1_000_000]}, {}),
    "batches full of bytes": ({"text": [f"é {i} " + "x" * 50_000 for i in range(40)]}, {}),
    "of unequal bytes": ({"text": ["é" * (i * 997 % 40_000) for i in range(90)]}, {}),
}


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_run_sends_what_the_plan_says(same, tmp_path, shape):
    columns, settings = SHAPES[shape]
    found, summary = same(_table(tmp_path, **columns), tmp_path / "out.parquet", **settings)
    assert sum(found.unsendable.values()) == summary["errors"]
    rows = found.distinct_inputs + found.duplicates + summary["errors"]
    assert rows == found.rows == summary["rows"]
    assert found.asked == found.distinct_inputs


def test_what_cannot_be_sent_is_told_by_cause(plan, tmp_path):
    """In the words of the error column."""
    path = _table(tmp_path, text=["good", None, "x" * 2_000_000, None])
    assert plan(path, tmp_path / "out.parquet").unsendable == {
        "null text": 2,
        "text longer than a request may be (1,900,000 bytes)": 1,
    }


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("settings", [{}, {"dedup": False}], ids=str)
def test_of_a_stopped_run_what_is_left(same, label, write_csv, tmp_path, settings):
    """Rows that are committed are done, and answers of rows beyond them are known."""
    source, output = write_csv("in.csv", [f"t {i}" for i in range(160)]), tmp_path / "out.parquet"
    settings = {"batch_size": 5, "concurrency": 1, **settings}
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=11, **settings)
    found, _ = same(source, output, **settings)
    assert (found.resumed_rows, found.cache_hits, found.asked) == (48, 7, 105)


@pytest.mark.usefixtures("small_chunks")
def test_of_a_stopped_run_that_is_thrown_away_all(same, label, write_csv, tmp_path):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=5, max_requests=3)
    found, _ = same(source, output, restart=True)
    assert (found.resumed_rows, found.cache_hits) == (0, 15)
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=5, max_requests=3, overwrite=True)
    found, _ = same(source, output, ask_again=True, overwrite=True)
    assert (found.resumed_rows, found.cache_hits) == (0, 0)


@pytest.mark.usefixtures("small_chunks")
def test_a_damaged_part_is_planned_anew(same, label, write_csv, tmp_path):
    """Its answers are known, so it costs no request."""
    source, output = write_csv("in.csv", [f"t {i}" for i in range(160)]), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=4, concurrency=1, max_requests=20)
    parts = sorted((tmp_path / "out.parquet.run" / "parts").iterdir())
    assert len(parts) > 2
    parts[1].write_bytes(b"damaged")
    found, _ = same(source, output, batch_size=4)
    assert (found.resumed_rows, found.asked) == (16 * (len(parts) - 1), 80)


@pytest.mark.usefixtures("small_chunks")
def test_answers_of_a_cache_are_known(same, label, write_csv, tmp_path):
    cache, output = tmp_path / "answers", tmp_path / "out.parquet"
    label(write_csv("first.csv", TEXTS[:60]), tmp_path / "first.parquet", cache=cache)
    found, _ = same(write_csv("in.csv", [*TEXTS, "new"]), output, cache=cache)
    assert found.cache_hits == len(set(TEXTS[:60]))
    # Without it they are not, unless an attempt at this run used it.
    again, _ = same(write_csv("again.csv", [*TEXTS, "new"]), tmp_path / "again.parquet")
    assert again.cache_hits == 0


@pytest.mark.usefixtures("small_chunks")
def test_a_cache_that_an_earlier_attempt_used_counts(same, label, write_csv, tmp_path):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(
            source, output, cache=tmp_path / "answers", batch_size=5, concurrency=1, max_requests=7
        )
    found, _ = same(source, output, batch_size=5)
    assert found.cache_hits + len(set(TEXTS[: found.resumed_rows])) >= 35


def test_a_cache_that_is_not_there_yet_is_not_made(same, write_csv, tmp_path):
    same(write_csv("in.csv", TEXTS), tmp_path / "out.parquet", cache=tmp_path / "answers")


@pytest.mark.usefixtures("small_chunks")
def test_answers_of_another_revision_are_asked_again(same, label, server, write_csv, tmp_path):
    """As the run does once the endpoint has told its revision."""
    cache, output = tmp_path / "answers", tmp_path / "out.parquet"
    source = write_csv("in.csv", TEXTS)
    server.script = lambda _: server.reply(headers={"x-sha": "old"})
    label(source, tmp_path / "old.parquet", cache=cache)
    server.script = lambda _: server.reply(headers={"x-sha": "new"})
    with pytest.raises(StoppedEarly):
        label(source, output, batch_size=5, concurrency=1, max_requests=5)
    found, _ = same(source, output, cache=cache, batch_size=5)
    assert found.asked > 0


@pytest.mark.usefixtures("small_chunks")
def test_of_a_retry_the_rows_with_an_error(same, plan, label, server, write_csv, tmp_path):
    source, output = write_csv("in.csv", [*TEXTS, *(["bad"] * 3), ""]), tmp_path / "out.parquet"
    server.script = lambda each: server.reply(400, {"error": "no"}) if "bad" in each.texts else None
    label(source, output, batch_size=1)
    server.script = lambda _: None
    found, _ = same(source, output, retry_failed=True)
    assert (found.retried_rows, found.asked, found.duplicates) == (4, 1, 2)
    assert found.unsendable == {"null text": 1}
    assert plan(source, output).state == "complete"


def test_of_a_complete_output_nothing(same, label, write_csv, tmp_path):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    label(source, output)
    found, _ = same(source, output)
    assert (found.state, found.resumed_rows, found.requests) == ("complete", len(TEXTS), 0)
    assert found.seconds == (0, 0)
    found, _ = same(source, output, overwrite=True)
    assert (found.state, found.asked) == ("planned", len(set(TEXTS)))


def test_of_an_output_in_the_place_of_its_input(same, tmp_path):
    path = _table(tmp_path, text=TEXTS)
    found, _ = same(path, path, overwrite=True)
    assert found.asked == len(set(TEXTS))
    found, _ = same(path, path, overwrite=True)
    assert (found.state, found.asked) == ("complete", 0)


def test_the_embedded_endpoint_needs_no_canary(plan, write_csv, tmp_path):
    found = plan(
        write_csv("in.csv", TEXTS), tmp_path / "out.parquet", endpoint="local", dialect="auto"
    )
    assert (found.canaries, found.requests) == (0, math.ceil(len(set(TEXTS)) / 32))


def test_distinct_inputs_are_counted_beyond_the_memory(plan, write_csv, tmp_path, monkeypatch):
    """What was met is kept sorted, and in files without a name once there is much of it."""
    monkeypatch.setattr(index, "LARGE_ENTRIES", 200)
    texts = [f"text {i % 7_001}" for i in range(20_000)]
    found = plan(write_csv("in.csv", texts), tmp_path / "out.parquet")
    assert (found.distinct_inputs, found.duplicates) == (7_001, 12_999)


def test_the_rate_bounds_the_duration(plan, write_csv, tmp_path):
    source, output = write_csv("in.csv", [f"t {i}" for i in range(200)]), tmp_path / "out.parquet"
    found = plan(source, output, batch_size=1, rate=4)
    assert (found.seconds, "guess" in found.seconds_are) == ((50, 50), False)
    found = plan(source, output, batch_size=1, rate=100, concurrency=10)
    assert (found.seconds[0], "guess" in found.seconds_are) == (2, True)
    found = plan(source, output, batch_size=1)
    assert found.seconds[0] < found.seconds[1]
    assert "guess" in found.seconds_are


def test_the_cost_counts_requests_or_texts(plan, write_csv, tmp_path):
    """The canary is one of both."""
    source, output = write_csv("in.csv", [f"t {i}" for i in range(100)]), tmp_path / "out.parquet"
    settings = {"batch_size": 10, "dialect": "auto"}
    assert plan(source, output, **settings).cost is None
    by_request = plan(source, output, price=planning.Price(per_request=0.5), **settings)
    assert by_request.cost == pytest.approx(5.5)
    by_text = plan(source, output, price=planning.Price(per_text=0.5), **settings)
    assert by_text.cost == pytest.approx(50.5)


def test_another_run_on_the_output_is_named(plan, write_csv, tmp_path):
    """Its progress would make the numbers untrue."""
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    lease = LocalStore(output).lease
    lease.acquire(create=True)
    with pytest.raises(OutputBusy, match="another run holds this output"):
        plan(source, output)
    lease.release()
    assert plan(source, output).asked == len(set(TEXTS))


def _planned(server, source, *arguments):
    output = str(source.with_name("out.parquet"))
    given = ["plan", str(source), "--endpoint", server.url, "-o", output, *arguments]
    return CliRunner().invoke(main, given)


def test_json_is_one_object_on_stdout(server, write_csv):
    ended = _planned(server, write_csv("in.csv", TEXTS), "--price-per-thousand", "2", "--json")
    assert ended.exit_code == 0
    found = json.loads(ended.stdout)
    assert found["asked"] == len(set(TEXTS))
    assert (found["requests"], found["canaries"]) == (5, 1)
    assert found["cost"] == pytest.approx((len(set(TEXTS)) + 1) * 0.002)
    assert len(found["seconds"]) == 2
    assert ended.stderr == ""


def test_words_for_people(server, write_csv):
    ended = _planned(server, write_csv("in.csv", [*TEXTS, ""]), "--price-per-request", "0.25")
    assert ended.exit_code == 0
    told = " ".join(ended.stdout.split())
    for words in ("rows 201", "duplicates 100", "cannot be sent null text 1",
                  "requests 5", "a guess", "cost 1.25", "Nothing was sent"):  # fmt: skip
        assert words in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--price-per-request", "-1"), "--price-per-request: -1"),
        (("--price-per-thousand", "nan"), "--price-per-thousand: nan"),
        (("--price-per-request", "1", "--price-per-thousand", "1"), "one of the two"),
    ],
)
def test_a_price_that_is_none_is_refused(server, write_csv, arguments, named):
    ended = _planned(server, write_csv("in.csv", TEXTS), *arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert named in ended.stderr


def test_the_installed_command_sends_nothing_and_writes_the_plan_alone(
    cli, server, write_csv, listing
):
    source = write_csv("in.csv", TEXTS)
    before = listing()
    ended = cli("plan", source, "--endpoint", server.url, "-o", "new/out.parquet", "--json")
    assert (ended.code, ended.json["rows"], ended.stderr) == (0, len(TEXTS), "")
    assert server.requests == []
    directory = "new/out.parquet.run"
    new = {"new", directory, f"{directory}/plan.json", f"{directory}/lock"}
    assert set(listing()) - set(before) == new
    # It is no run yet, and keeps none from beginning.
    status = cli("status", "new/out.parquet", "--json")
    assert (status.code, status.json["state"]) == (2, "none")
    ran = cli("run", source, "--endpoint", server.url, "-o", "new/out.parquet", "--json")
    assert (ran.code, ran.json["plan"]["requests"]) == (0, ran.json["requests"])


KEYS = {"distinct_inputs", "cache_hits", "requests", "seconds", "cost"}


@pytest.fixture
def kept(plan, tmp_path):
    """Plan a job, and keep the plan for the run as the command does."""

    def run(source, output, **settings):
        found = plan(source, output, **settings)
        assert kept_plan.keep(LocalStore(Path(output)), found.made_for, found.to_json()) is None
        return found

    return run


@pytest.fixture
def kept_file(tmp_path):
    return tmp_path / "out.parquet.run" / "plan.json"


def test_the_summary_tells_the_plan(kept, label, write_csv, tmp_path, kept_file):
    """With exactly these keys: a page of the run reads them. It is done then, and forgotten."""
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    price = planning.Price(per_request=0.5)
    found = kept(source, output, price=price)
    assert kept_file.exists()
    summary = label(source, output)
    assert set(summary["plan"]) == KEYS
    assert summary["plan"] == {
        "distinct_inputs": 100, "cache_hits": 0, "requests": 4, "seconds": list(found.seconds),
        "cost": 2.0,
    }  # fmt: skip
    assert json.loads(kept_file.with_name("summary.json").read_bytes())["plan"] == summary["plan"]
    assert not kept_file.exists()
    # Nothing to do, and done once more: no plan was made for either.
    assert label(source, output)["plan"] is None
    assert label(source, output, overwrite=True)["plan"] is None


def test_without_a_plan_there_is_none(label, write_csv, tmp_path):
    assert label(write_csv("in.csv", TEXTS), tmp_path / "out.parquet")["plan"] is None


OTHERS = [
    ({"top_k": 2}, TEXTS),
    ({"limit": 10}, TEXTS),
    ({"batch_size": 7}, TEXTS),
    ({"concurrency": 3}, TEXTS),
    ({"rate": 1000}, TEXTS),
    ({"dedup": False}, TEXTS),
    ({}, [*TEXTS, "one more"]),
]


@pytest.mark.parametrize(("settings", "texts"), OTHERS, ids=lambda each: str(each)[:20])
def test_a_plan_of_another_run_is_not_compared(
    kept, label, write_csv, tmp_path, kept_file, settings, texts
):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    kept(source, output)
    source.unlink()
    assert label(write_csv("in.csv", texts), output, **settings)["plan"] is None


def test_a_cache_that_was_filled_meanwhile_makes_it_another_run(kept, label, write_csv, tmp_path):
    cache, output = tmp_path / "answers", tmp_path / "out.parquet"
    source = write_csv("in.csv", TEXTS)
    kept(source, output, cache=cache)
    label(write_csv("other.csv", TEXTS[:9]), tmp_path / "other.parquet", cache=cache)
    assert label(source, output, cache=cache)["plan"] is None


def test_a_cache_that_is_as_it_was_does_not(kept, label, write_csv, tmp_path):
    cache, output = tmp_path / "answers", tmp_path / "out.parquet"
    source = write_csv("in.csv", TEXTS)
    label(write_csv("other.csv", TEXTS[:9]), tmp_path / "other.parquet", cache=cache)
    kept(source, output, cache=cache)
    summary = label(source, output, cache=cache)
    assert summary["plan"]["cache_hits"] == summary["cache_hits"] == 9


@pytest.mark.usefixtures("small_chunks")
def test_each_attempt_has_a_plan_of_its_own(kept, label, write_csv, tmp_path, kept_file):
    """What a stopped run did is no longer to be done: its plan is not that of the next attempt."""
    source, output = write_csv("in.csv", [f"t {i}" for i in range(160)]), tmp_path / "out.parquet"
    settings = {"batch_size": 5, "concurrency": 1}
    whole = kept(source, output, **settings)
    with pytest.raises(StoppedEarly) as stopped:
        label(source, output, max_requests=11, **settings)
    assert stopped.value.summary["plan"]["requests"] == whole.requests == 32
    with pytest.raises(StoppedEarly) as stopped:
        label(source, output, max_requests=3, **settings)
    assert stopped.value.summary["plan"] is None
    rest = kept(source, output, **settings)
    summary = label(source, output, **settings)
    assert summary["plan"]["requests"] == summary["requests"] == rest.requests < 21
    assert not kept_file.exists()


def test_an_attempt_that_came_to_nothing_leaves_the_plan(kept, label, server, write_csv, tmp_path):
    """Such as one without a token: what there is to do is what it was."""
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    kept(source, output)
    server.script = lambda _: server.reply(401, {"error": "no token"})
    with pytest.raises(EndpointRefused):
        label(source, output)
    server.script = lambda _: None
    assert label(source, output)["plan"]["requests"] == 4


@pytest.mark.parametrize(("flag", "requests"), [("restart", 3), ("ask_again", 4)])
def test_a_run_that_is_thrown_away_has_the_plan_for_that(
    kept, label, write_csv, tmp_path, flag, requests
):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=1)
    kept(source, output, **{flag: True})
    assert label(source, output, **{flag: True})["plan"]["requests"] == requests


def test_a_retry_has_the_plan_of_a_retry(kept, label, server, write_csv, tmp_path):
    source, output = write_csv("in.csv", [*TEXTS, "bad"]), tmp_path / "out.parquet"
    server.script = lambda each: server.reply(400, {"error": "no"}) if "bad" in each.texts else None
    label(source, output, batch_size=1)
    server.script = lambda _: None
    kept(source, output, retry_failed=True)
    assert label(source, output, retry_failed=True)["plan"]["distinct_inputs"] == 1


def test_of_an_output_in_the_place_of_its_input_too(kept, label, tmp_path):
    path = _table(tmp_path, text=TEXTS)
    kept(path, path, overwrite=True)
    assert label(path, path, overwrite=True)["plan"]["requests"] == 4


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"made_for": 1, "plan": 2}'])
def test_a_plan_that_cannot_be_read_is_none(kept, label, write_csv, tmp_path, kept_file, content):
    source, output = write_csv("in.csv", TEXTS), tmp_path / "out.parquet"
    kept(source, output)
    kept_file.write_bytes(content)
    assert label(source, output)["plan"] is None


def test_a_plan_that_cannot_be_kept_is_told_all_the_same(cli, server, write_csv, tmp_path):
    source = write_csv("in.csv", TEXTS)
    (tmp_path / "out.parquet.run" / "plan.json").mkdir(parents=True)
    ended = cli("plan", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    assert (ended.code, ended.json["asked"]) == (0, 100)
    assert "could not be kept" in ended.stderr
    assert ended.json["notices"] == [ended.stderr.strip()]
    ended = cli("run", source, "--endpoint", server.url, "-o", "out.parquet", "--json")
    assert (ended.code, ended.json["plan"]) == (0, None)


def test_words_of_plan_and_actual(cli, server, write_csv):
    source = write_csv("in.csv", TEXTS)
    given = (source, "--endpoint", server.url, "-o", "out.parquet")
    assert cli("plan", *given, "--price-per-request", "0.5").code == 0
    server.script = lambda each: server.reply(500) if each.number == 0 else None
    ended = cli("run", *given)
    assert ended.code == 0
    told = " ".join(ended.stdout.split())
    for words in ("planned actual", "distinct inputs 100 100", "known already 0 0",
                  "requests 4 5, 1 of them retries", "duration", "cost 2.00"):  # fmt: skip
        assert words in told


@pytest.fixture
def probed(server, write_csv):
    """Plan with a probe, through the command; gives what it printed as JSON."""

    def run(texts, *arguments, output="out.parquet"):
        source = write_csv("in.csv", texts)
        ended = CliRunner().invoke(
            main, ["plan", str(source), "--endpoint", server.url, "-o",
                   str(source.with_name(output)), "--probe", "--json", "--exact-scores",
                   *arguments],
        )  # fmt: skip
        return ended.exit_code, json.loads(ended.stdout)

    return run


def test_a_probe_measures_what_several_requests_at_once_do(probed, server):
    """All that it takes is counted and bounded, and the duration follows from it."""
    server.script = lambda _: server.reply(delay_s=0.1)
    given = ("--concurrency", "4", "--batch-size", "32")
    code, found = probed([f"t {i}" for i in range(3200)], *given)
    assert (code, found["requests"], found["requests_are"]) == (0, 101, "exact")
    probe, estimate = found["probe"], found["probe"]["estimate"]
    assert probe["dialect"] == "hf"
    assert probe["latency_s"] >= 0.1
    # Two pages of servers that it is not are asked for, too.
    assert probe["requests"] == len(server.requests) + 1 <= probe["most_requests"] == 30
    assert server.peak_in_flight == 4
    assert (estimate["texts"], estimate["at_once"], len(estimate["waves"])) == (32, 4, 3)
    assert 0 < estimate["least"] < estimate["texts_per_second"] < 4 * 32 / 0.1
    assert estimate["most"] > estimate["texts_per_second"]
    assert "requests of 32 texts, 4 at once" in estimate["words"]
    assert found["seconds"] == pytest.approx(
        [3200 / estimate["most"], 3200 / estimate["least"]], abs=0.1
    )
    assert "guess" not in found["seconds_are"]


def test_the_requests_of_a_probe_are_a_setting(probed, server):
    code, found = probed([f"t {i}" for i in range(3200)], "--probe-requests", "8")
    assert (code, found["probe"]["most_requests"], found["probe"]["estimate"]["waves"]) == (
        0,
        8,
        [],
    )
    assert found["probe"]["requests"] <= 8
    assert found["probe"]["estimate"]["most"] is None
    server.reset()
    code, found = probed([f"t {i}" for i in range(3200)], "--probe-requests", "12")
    assert (code, 8 < found["probe"]["requests"] <= 12) == (0, True)


@pytest.mark.parametrize(
    "arguments", [("--probe-requests", "7", "--probe"), ("--probe-requests", "30")]
)
def test_requests_of_no_probe_are_refused(server, write_csv, arguments):
    ended = _planned(server, write_csv("in.csv", TEXTS), *arguments)
    assert (ended.exit_code, server.requests) == (2, [])
    assert "--probe" in ended.stderr


def test_with_auto_the_number_of_requests_is_said_to_be_open(plan, probed, server, write_csv):
    """It depends on the batch size that the run finds; with one that is given it does not."""
    source = write_csv("in.csv", texts := [f"t {i}" for i in range(3200)])
    found = plan(source, source.with_name("out.parquet"))
    assert (found.requests, found.requests_are) == (100, "about; fewer if larger batches do more")
    found = plan(source, source.with_name("out.parquet"), batch_size=32)
    assert (found.requests, found.requests_are) == (100, "exact")
    found = plan(source, source.with_name("out.parquet"), dialect="single")
    assert (found.requests, found.requests_are) == (3200, "exact")
    server.script = lambda _: server.reply(delay_s=0.1)
    _, found = probed(texts)
    assert found["requests_are"] == "about; fewer if larger batches do more: 25 with 128"


def test_a_probe_finds_the_dialect_that_the_requests_depend_on(probed, server, label, tmp_path):
    """A server that takes one text a request gets as many as there are texts; the run agrees."""

    def script(each):
        wrong = {"error": "inputs must be a string"}
        return server.reply(422, wrong) if each.in_list else None

    server.script = script
    code, found = probed([f"t {i}" for i in range(40)])
    assert (code, found["probe"]["dialect"], found["texts_per_request"]) == (0, "single", 1)
    assert any("Not honoured" in notice for notice in found["notices"])
    before = len(server.requests)
    summary = label(tmp_path / "in.csv", tmp_path / "out.parquet", dialect="auto")
    assert summary["requests"] == len(server.requests) - before == found["requests"]
    assert summary["plan"]["requests"] == summary["requests"]


def test_the_rate_holds_with_a_probe_too(probed):
    code, found = probed([f"t {i}" for i in range(320)], "--rate", "5")
    assert code == 0
    assert found["seconds"] == [2.2, 2.2]


def test_where_nothing_is_left_nothing_is_probed(probed, server, label, write_csv, tmp_path):
    label(write_csv("in.csv", TEXTS), tmp_path / "out.parquet", dialect="auto")
    before = len(server.requests)
    code, found = probed(TEXTS)
    assert (code, found["state"], found["probe"]) == (0, "complete", None)
    assert len(server.requests) == before


def test_an_endpoint_that_throttles_the_probe_makes_no_promise(probed, server):
    again = {"Retry-After": "0.2"}
    server.script = lambda each: (
        server.reply(429, {"error": "slow down"}, again) if each.number == 1 else None
    )
    code, found = probed(TEXTS)
    assert code == 0
    assert "throttled" in found["probe"]["estimate"]["words"]


def test_a_retry_is_probed_with_the_rows_that_it_asks_for(
    probed, label, server, write_csv, tmp_path
):
    """The input may be gone by then, or be what the output has replaced."""
    source, output = write_csv("in.csv", [*TEXTS, "bad"]), tmp_path / "out.parquet"
    server.script = lambda each: server.reply(400, {"error": "no"}) if "bad" in each.texts else None
    label(source, output, batch_size=1)
    server.reset()
    code, found = probed([*TEXTS, "bad"], "--retry-failed")
    assert (code, found["requests"]) == (0, 1)
    assert set(server.texts) == {"bad"}


def test_what_is_done_is_not_probed_with(probed, label, server, write_csv, tmp_path, small_chunks):
    source, output = write_csv("in.csv", [f"t {i}" for i in range(64)]), tmp_path / "out.parquet"
    with pytest.raises(StoppedEarly):
        label(source, output, max_requests=2, batch_size=16, concurrency=1)
    server.reset()
    code, found = probed([f"t {i}" for i in range(64)], "--batch-size", "16")
    assert (code, found["resumed_rows"] > 0) == (0, True)
    assert set(server.texts) <= {f"t {i}" for i in range(found["resumed_rows"], 64)}


def test_a_probe_that_is_refused_ends_the_plan_as_the_run_would(probed, server, kept_file):
    server.script = lambda _: server.reply(403, {"error": "not yours"})
    code, found = probed(TEXTS)
    assert (code, found["exit_code"]) == (4, 4)
    assert "token: " in found["message"]
    assert "permission" in found["message"]
    assert not kept_file.exists()
    server.script = lambda _: server.reply(502, "bad gateway")
    assert probed(TEXTS)[0] == 75


def test_words_of_a_probe(cli, server, write_csv):
    source = write_csv("in.csv", TEXTS)
    ended = cli("plan", source, "--endpoint", server.url, "-o", "out.parquet", "--probe")
    assert ended.code == 0
    assert "at most 30 requests" in ended.stderr
    told = " ".join(ended.stdout.split())
    assert "To measure, 3 requests were sent, of at most 30, with 96 texts" in told
    assert "measured 3 requests of 32 texts, one at a time" in told
    assert "Nothing was sent" not in ended.stdout
