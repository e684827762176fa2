"""Settings: where a value comes from, what it may be, and how a wrong one is answered."""

from pathlib import Path

import click
import pytest
import yaml

from pipeline.cli.settings import load_config, setting_options, table_arguments
from pipeline.config import RunConfig, takes
from pipeline.errors import SettingsError

GIVEN = {"input": "in.csv", "output": "out.parquet", "endpoint": "local"}


def _config(**settings):
    return RunConfig(**{**GIVEN, **settings})


@pytest.fixture
def file(tmp_path):
    """Write settings to a YAML file."""

    def write(content):
        path = tmp_path / "job.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize(
    ("flag", "environ", "in_file", "expected"),
    [
        (None, None, None, 32),
        (None, None, 2, 2),
        (None, "3", 2, 3),
        ("4", "3", 2, 4),
        ("4", None, 2, 4),
        ("4", "3", None, 4),
        (None, "3", None, 3),
    ],
)
def test_flag_over_environment_over_file_over_default(file, flag, environ, in_file, expected):
    found = RunConfig.load(
        {**GIVEN, **({"concurrency": flag} if flag else {})},
        file=file({"concurrency": in_file} if in_file else "# nothing\n"),
        environ={"CLASSIFY_CONCURRENCY": environ} if environ else {},
    )
    assert found.concurrency == expected


LISTS = {
    "endpoint": (["http://a", "http://b"], "http://a http://b"),
    "header_from": (["x-a=env:A", "x-b=file:b"], "x-a=env:A, x-b=file:b"),
    "label_map": (["0=bad", "1=good"], "0=bad,1=good"),
    "score_labels": (["good", "bad"], "good, bad"),
}


@pytest.mark.parametrize("key", LISTS)
def test_several_values_are_written_alike_everywhere(file, by_flags, monkeypatch, key):
    """One text with several, or a list with one each; a repeated flag is such a text, too."""
    several, text = LISTS[key]
    given = {**GIVEN, "model": "org/name"}
    expected = getattr(RunConfig(**{**given, key: several}), key)
    assert len(expected) == 2
    command = ["in.csv", "-o", "out.parquet", "--model", "org/name"]
    command += [] if key == "endpoint" else ["--endpoint", "local"]
    flag = "--" + key.replace("_", "-")
    found = [
        RunConfig(**{**given, key: text}),
        RunConfig.load(given | {key: text}, environ={}),
        *(
            RunConfig.load({"model": "m"}, file=file({**given, key: each}), environ={})
            for each in (text, several)
        ),
        by_flags(*command, flag, text),
        by_flags(*command, *(word for each in several for word in (flag, each))),
    ]
    if key != "header_from":  # of which each is given once
        found.append(by_flags(*command, flag, text, flag, several[0]))
    monkeypatch.setenv(f"CLASSIFY_{key.upper()}", text)
    found.append(by_flags(*command))
    assert [getattr(each, key) for each in found] == [expected] * len(found)


def test_an_item_of_a_list_is_one_value():
    """So that a label or a path may have a comma."""
    places = {"x-a": "file:a,b"}
    assert _config(header_from=["x-a=file:a,b"]).header_from == places
    assert _config(score_labels=["a, b"]).score_labels == ("a, b",)
    for given in ("x-a=env:A,", ["x-a=env:A", ""]):
        with pytest.raises(SettingsError, match="no name of a header"):
            _config(header_from=given)


def test_other_variables_are_nobodys_settings():
    assert RunConfig.load(GIVEN, environ={"CONCURRENCY": "x", "HF_TOKEN": "x"}).concurrency == 32


EVERY = {
    "input": ["a.csv", "b/*.parquet"],
    "output": "out.parquet",
    "run_dir": "s3://bucket/run",
    "text": "review",
    "text_pair": "title",
    "endpoint": "https://x.example/predict?a=b",
    "model": "org/name",
    "dialect": "hf",
    "top_k": 3,
    "function_to_apply": "sigmoid",
    "bill_to": "org",
    "token_file": "secrets/token",
    "header_from": "x-api-key=env:GATEWAY_KEY, x-team=file:team",
    "allow_drift": True,
    "truncate": True,
    "server_cache": False,
    "exact_scores": True,
    "batch_size": 7,
    "concurrency": 5,
    "rate": 1.5,
    "timeout_s": "2m",
    "max_loading_s": "1h",
    "max_outage_s": 90,
    "dedup": True,
    "cache": "answers.sqlite",
    "max_errors": "1%",
    "deadline": "7h",
    "max_requests": 1000,
    "grace_s": 5,
    "metrics_file": "classify.prom",
    "limit": 100,
    "delimiter": ";",
    "encoding": "latin-1",
    "csv_escape": "\\",
    "label_column": "a",
    "score_column": "b",
    "error_column": "c",
    "predictions_column": "d",
    "label_map": "LABEL_0=bad, LABEL_1=good",
    "threshold": 0.5,
    "unsure_label": "perhaps",
    "score_labels": "bad, good",
    "gold": "truth",
    "engine": "ray",
    "workers": 3,
    "ray_address": "head:6379",
}


def _flags(settings):
    """Yield the arguments of a command line with these settings."""
    yield from settings["input"]
    yield from ("--output", settings["output"])
    for key, value in settings.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif key not in ("input", "output"):
            yield from (f"--{flag}", str(value))


@pytest.fixture
def by_flags():
    """Read settings as the command line does."""

    @click.command()
    @table_arguments()
    @setting_options
    def command(**given):
        return load_config(given)

    return lambda *arguments: command.main(list(arguments), standalone_mode=False)


def test_every_setting_means_the_same_in_flags_file_environment_and_python(file, by_flags):
    assert set(EVERY) == set(RunConfig.model_fields), "a setting is missing in this table"
    in_python = RunConfig(**EVERY)
    in_file = RunConfig.load({}, file=file(EVERY), environ={})
    in_environment = RunConfig.load(
        {"input": EVERY["input"]},
        environ={f"CLASSIFY_{k.upper()}": str(v) for k, v in EVERY.items() if k != "input"},
    )
    assert in_python == in_file == in_environment == by_flags(*_flags(EVERY))
    assert (in_python.timeout_s, in_python.max_loading_s, in_python.deadline) == (120, 3600, 25200)
    assert in_python.cache == Path("answers.sqlite")
    assert (in_python.truncate, in_python.server_cache) == (True, False)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(90, 90), (1.5, 1.5), ("90", 90), ("90s", 90), ("1.5m", 90), ("30m", 1800), ("7h", 25_200),
     ("1d", 86_400), (" 2 m ", 120)],
)  # fmt: skip
def test_durations(given, seconds):
    assert _config(deadline=given).deadline == seconds


@pytest.mark.parametrize(
    "given",
    ["", "m", "1w", "1h30m", "-5", "0", 0, -1, "1e3s", True, "inf", float("nan"), []],
)
def test_what_is_no_duration(given):
    with pytest.raises(SettingsError, match=r"^`deadline`: .* is not allowed\. It takes seconds"):
        _config(deadline=given)


@pytest.mark.parametrize(
    ("given", "rows", "most"),
    [(None, 100, None), (0, 100, 0), (7, 100, 7), ("7", 100, 7), ("1%", 250, 2), ("0%", 9, 0),
     ("100%", 9, 9), ("0.1%", 10_000, 10), (" 50 % ".replace(" %", "%"), 7, 3)],
)  # fmt: skip
def test_shares_and_counts_of_errors(given, rows, most):
    assert _config(max_errors=given).allowed_errors(rows) == most


@pytest.mark.parametrize("given", ["101%", "-1%", "%", "one%", "nan%", -1, 1.5, True, "many", ""])
def test_what_is_neither_a_count_nor_a_share(given):
    with pytest.raises(SettingsError, match=r"^`max_errors`: .* is not allowed"):
        _config(max_errors=given)


WRONG = {
    "input": [[], "", [""], 3],
    "text": ["", 3, None],
    "endpoint": ["", "localhost:80", "ftp://x", "http://", "https:///x", "http://x y", "LOCAL"],
    "top_k": [0, -1, 1.5, "most", True, None],
    "function_to_apply": ["tanh", "Sigmoid", True],
    "dialect": ["HF", "openai"],
    "truncate": ["perhaps", 2, None],
    "batch_size": [0, -1, "many", True, 1.5],
    "concurrency": [0, -1, "many", True, 1.5, None],
    "rate": [0, -1, "fast", True, float("inf"), float("nan")],
    "timeout_s": [0, "never", None],
    "max_requests": [0, True],
    "metrics_file": ["metrics.txt", "labelled.parquet", "", 3],
    "limit": [0, -5, True],
    "delimiter": ["", ";;"],
    "label_column": ["", 3],
    "label_map": ["LABEL_0", ["LABEL_0="], {"a": ""}, {"a": True}, {"a": None}, 3, ["a=x", "a=y"]],
    "threshold": [-0.1, 1.01, True, "half", float("nan")],
    "unsure_label": ["", None],
    "score_labels": ["good,", [True], [""], 3],
    "engine": ["spark"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_an_impossible_value_is_refused_with_key_value_and_what_is_allowed(key, value):
    with pytest.raises(SettingsError) as refused:
        _config(**{key: value})
    message = str(refused.value)
    assert message.startswith(f"`{key}`: {value!r} is not allowed.")
    assert takes(key).words in message
    assert message.count("\n") == 0


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(SettingsError) as refused:
        RunConfig(output="x.parquet", rate=-1, concurrency="many")
    lines = str(refused.value).splitlines()
    assert {line.partition(":")[0] for line in lines} == {"`input`", "`rate`", "`concurrency`"}


@pytest.mark.parametrize(
    ("unknown", "meant"),
    [("batchsize", "batch_size"), ("batch-size", "batch_size"), ("concurency", "concurrency"),
     ("max_error", "max_errors"), ("Timeout", "timeout_s"), ("lable_column", "label_column")],
)  # fmt: skip
def test_an_unknown_setting_suggests_the_nearest(file, unknown, meant):
    for load, where in (
        (lambda: _config(**{unknown: 1}), ""),
        (lambda: RunConfig.load(GIVEN, file=file({unknown: 1}), environ={}), r" in .*job\.yaml"),
    ):
        with pytest.raises(
            SettingsError, match=rf"^{unknown}: no such setting{where}\. Did you mean {meant}\?$"
        ):
            load()


def test_an_unknown_setting_without_a_near_one_suggests_nothing():
    with pytest.raises(SettingsError, match=r"^xyzzy: no such setting\.$"):
        _config(xyzzy=1)


@pytest.mark.parametrize("key", ["token", "hf_token", "HF_TOKEN", "api_token"])
def test_a_token_is_no_setting_and_its_value_is_not_repeated(file, key):
    with pytest.raises(SettingsError, match="HF_TOKEN") as refused:
        RunConfig.load(GIVEN, file=file({key: "hf_secret"}), environ={})
    assert "hf_secret" not in str(refused.value)


def test_settings_that_exclude_each_other():
    for settings, words in (
        ({"endpoint": "hf"}, "`model`: required"),
        ({"cache": "a", "dedup": False}, "`cache`: needs `dedup`"),
        ({"label_column": "x", "error_column": "x"}, "'x' names two output columns"),
        ({"predictions_column": "label", "top_k": 2}, "'label' names two output columns"),
        ({"score_labels": "x", "error_column": "score_x"}, "'score_x' names two output columns"),
        ({"label_map": ["a=x", "b=x"]}, "'a' and 'b' would both be called 'x'"),
        ({"label_map": ["a=x"], "score_labels": "a"}, "calls the label 'a' 'x'"),
    ):
        with pytest.raises(SettingsError, match=words):
            _config(**settings)
    assert _config(predictions_column="label").label_column == "label"


def test_settings_do_not_change_once_made():
    with pytest.raises(ValueError, match="frozen"):
        _config().concurrency = 3


def test_the_model_of_the_embedded_endpoint_has_a_default():
    assert _config().model_id == "sentiment"
    assert _config(endpoint="http://x").model_id is None
    assert _config(model="language").model_id == "language"


@pytest.mark.parametrize("name", ["sample", "serverless", "dedicated", "cron"])
def test_the_configs_of_the_repository_are_valid(name):
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    given = set(yaml.safe_load(path.read_text()))
    flags = {key: GIVEN[key] for key in ("input", "output") if key not in given}
    assert RunConfig.load(flags, file=path, environ={}).text == "review"


def test_labels_as_people_write_them():
    """A flag that is repeated, a mapping of YAML with numbers, and a text of the environment."""
    same = {"0": "bad", "1": "good"}
    for given in (["0=bad", "1=good"], {0: "bad", 1: "good"}, "0=bad,1=good", same):
        assert _config(label_map=given).label_map == same
    assert _config(label_map=["a=b=c, d"]).label_map == {"a": "b=c, d"}
    assert _config(label_map={}).label_map is None
    assert _config(score_labels=["a, b", "c"]).score_labels == ("a, b", "c")


def test_beside_true_labels_the_columns_have_other_names():
    found = _config(gold="label", error_column="why")
    names = (found.label_column, found.score_column, found.error_column)
    assert names == ("predicted_label", "predicted_score", "why")
    assert _config(gold="truth").label_column == "label"


def test_scores_of_labels_need_all_labels():
    assert _config(score_labels="good").top_k == "all"
    assert _config(score_labels="good", top_k=2).top_k == 2
    assert _config().top_k == 1
