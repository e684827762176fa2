"""Labels on the screen: `classify try`, and a run with a limit and no output."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def lines(finished):
    return [line.split(maxsplit=2) for line in finished.stdout.splitlines()]


def test_each_text_gets_a_line(cli, tmp_path):
    done = cli("try", "I love it", "I hate it", "--endpoint", "local")
    assert done.code == 0, done.stderr
    first, second = lines(done)
    assert (first[0], first[2], second[0]) == ("positive", "I love it", "negative")
    assert 0.5 < float(first[1]) <= 1
    assert list(tmp_path.iterdir()) == []


def test_all_labels_of_a_text(cli, server, right_answer):
    done = cli("try", "good", "--endpoint", server.url, "--top-k", "all")
    shown = [line[0] for line in lines(done)]
    assert shown == [each["label"] for each in right_answer("good")]


def test_a_label_below_the_threshold_comes_first(cli, server, right_answer):
    names = [each["label"] for each in right_answer("good")]
    flags = ("--endpoint", server.url, "--top-k", "all", "--threshold")
    assert [line[0] for line in lines(cli("try", "good", *flags, "1"))] == ["unsure", *names]
    assert [line[0] for line in lines(cli("try", "good", *flags, "0"))] == names


def test_a_long_text_is_cut_and_a_control_character_does_nothing(cli, server):
    done = cli("try", "good " * 100, "go\x1b[31mod", "--endpoint", server.url, COLUMNS="80")
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "\x1b" not in done.stdout


def test_settings_are_those_of_a_run(cli, server, tmp_path):
    """Also from the environment and a file; nothing is sent if they are wrong."""
    done = cli("try", "good", CLASSIFY_ENDPOINT=server.url)
    assert done.code == 0, done.stderr
    server.requests.clear()
    done = cli("try", "good", "--endpoint", server.url, "--text-pair", "answer")
    assert done.code == 2
    assert "--text-pair: a TEXT of `classify try` has no pair" in done.stderr
    assert server.requests == []


def test_a_run_with_a_limit_and_no_output_shows_the_first_rows(cli, server, write_csv, tmp_path):
    source = write_csv("in.csv", ["good", "", "bad", "fine"])
    before = sorted(tmp_path.iterdir())
    done = cli("run", source, "--endpoint", server.url, "--limit", "3")
    assert done.code == 3, done.stderr
    assert [line[-1] for line in lines(done)][::2] == ["good", "bad"]
    assert done.stdout.splitlines()[1].startswith("error")
    assert set(server.texts) == {"good", "bad"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_as_many_files_are_read_as_have_the_rows(cli, server, tmp_path, suffix):
    """Also the first two have few, and nothing after the rows is read."""
    (tmp_path / "in").mkdir()
    texts = [["good"], ["bad", "fine"], ["poor", "unseen"]]
    for number, rows in enumerate(texts):
        text = ["text", *rows] if suffix == ".csv" else [f'{{"text":"{row}"}}' for row in rows]
        (tmp_path / "in" / f"{number}{suffix}").write_text("\n".join([*text, ""]))
    (tmp_path / "in" / f"9{suffix}").write_text("nonsense\n")
    done = cli("run", "in", "--endpoint", server.url, "--limit", "4")
    assert done.code == 0, done.stderr
    assert [line[-1] for line in lines(done)] == ["good", "bad", "fine", "poor"]


def test_more_rows_than_a_chunk_has(cli, server, write_csv):
    source = write_csv("in.csv", [f"text {i}" for i in range(900)])
    done = cli("run", source, "--endpoint", server.url, "--limit", "800", "--top-k", "2")
    assert done.code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1600


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--limit", "1001"],
        *(
            ["--limit", "1", *flags]
            for flags in (
                ["--json"],
                ["--retry-failed"],
                ["--cache", "c"],
                ["--metrics-file", "m.prom"],
                ["--run-dir", "r"],
            )
        ),
    ],
)
def test_without_an_output_only_a_few_rows_are_shown(cli, server, write_csv, options):
    done = cli("run", write_csv("in.csv", ["good"]), "--endpoint", server.url, *options)
    assert done.code == 2
    assert "--output: required" in done.stderr
    assert server.requests == []


def test_a_run_ends_with_what_came_of_it(cli, server, tmp_path):
    table = pa.table({"text": ["good"] * 3 + [None]})
    pq.write_table(table, tmp_path / "in.parquet")
    done = cli("run", "in.parquet", "-o", "my out.parquet", "--endpoint", server.url)
    assert done.code == 3
    shown = done.stdout.splitlines()
    assert shown[1].startswith("Labels: ")
    assert shown[1].endswith(" 3 (100%)")
    assert shown[2] == "Errors: null text 1"
    assert "--retry-failed" in shown[3]
    assert shown[4] == "The exit code is 3: 1 row with an error, and --max-errors allows 0."
    assert shown[5] == "Next: classify report 'my out.parquet'"


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--gold", "label"), ("--cache", "c"), ("--metrics-file", "m.prom"), ("--limit", "1"),
     ("--run-dir", "r"), ("--delimiter", ";")],
)  # fmt: skip
def test_what_only_a_table_has_a_use_for_is_refused(cli, server, flag, value):
    done = cli("try", "good", "--endpoint", server.url, flag, value)
    assert done.code == 2
    assert f"{flag}: `classify try` reads no table and keeps nothing." in done.stderr
    assert server.requests == []


def test_what_a_nightly_config_keeps_is_not_touched(cli, server, tmp_path):
    (tmp_path / "n.yaml").write_text(
        f"endpoint: {server.url}\nmetrics_file: a.prom\ncache: b\ngold: label\nlimit: 1\n"
    )
    done = cli("try", "good", "--config", "n.yaml")
    assert done.code == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["n.yaml"]
