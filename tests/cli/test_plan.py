"""`classify plan`: its numbers are those of the run after it; it sends and writes nothing."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline import planning
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.errors import OutputBusy, StoppedEarly
from pipeline.responses import index
from pipeline.storage import Lock

# 100 distinct ones: squares modulo a prime.
TEXTS = [f"text {i * i % 199}" for i in range(200)]
# What a plan and the summary of the run after it must agree on.
SAME = ("rows", "resumed_rows", "distinct_inputs", "cache_hits", "requests")


@pytest.fixture
def plan(server, listing):
    """Plan a job against the scripted server, with nothing sent and nothing written."""

    def run(source, output, *, price=None, restart=False, overwrite=False, retry_failed=False,
            **settings):  # fmt: skip
        given = {"input": str(source), "output": output, "endpoint": server.url, "dialect": "hf"}
        before, sent = listing(), len(server.requests)
        found = planning.forecast(
            RunConfig(**{**given, **settings}), price=price, restart=restart, overwrite=overwrite,
            retry_failed=retry_failed,
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
    assert (found.resumed_rows, found.asked) == (16, 80)


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
    monkeypatch.setattr(index, "SMALL_ENTRIES", 100)
    monkeypatch.setattr(index, "SMALL_PER_LARGE", 2)
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
    (tmp_path / "out.parquet.run").mkdir()
    lock = Lock(tmp_path / "out.parquet.run" / "lock")
    lock.acquire()
    with pytest.raises(OutputBusy, match="another run holds this output"):
        plan(source, output)
    lock.release()
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


def test_the_installed_command_sends_and_writes_nothing(cli, server, write_csv, listing):
    source = write_csv("in.csv", TEXTS)
    before = listing()
    ended = cli("plan", source, "--endpoint", server.url, "-o", "new/out.parquet", "--json")
    assert (ended.code, ended.json["rows"], ended.stderr) == (0, len(TEXTS), "")
    assert (server.requests, listing()) == ([], before)
