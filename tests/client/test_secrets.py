"""Secrets are in nothing that is written, foreign text does nothing to a terminal (fault 28)."""

from __future__ import annotations

import json
import re

import pyarrow.parquet as pq
import pytest

from pipeline import addresses
from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.foreign import keep_secret, redacted, safe_json

pytestmark = pytest.mark.fault(28)

TOKEN, KEY, CODE = "hf_nobodyTellsThis", "gateway-key-1", "c0de/of=Azure"
SECRETS = (TOKEN, KEY, CODE)
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b]52;c;aGk=\x07\x9b2J\u202e"


def assert_no_secret(tmp_path, *said):
    """In no file of the run, neither as it is nor within a table."""
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            content += repr((table.to_pylist(), table.schema.metadata)).encode()
        said = (*said, content.decode("utf-8", "replace"))
    for text in said:
        for secret in SECRETS:
            assert secret not in text
            assert secret.replace("/", "%2F").replace("=", "%3D") not in text


@pytest.fixture
def job(write_csv, server):
    table = write_csv("in.csv", [f"text {i}" for i in range(40)])
    return (
        *("run", table, "-o", "out.parquet", "--endpoint", f"{server.url}/x?code={CODE}&version=2"),
        *("--header-from", "x-api-key=env:GATEWAY_KEY", "--metrics-file", "run.prom"),
        *("--batch-size", "4"),
    )


@pytest.fixture
def secret(cli):
    """Run a command with all secrets set."""
    return lambda *arguments: cli(*arguments, HF_TOKEN=TOKEN, GATEWAY_KEY=KEY)


def echo(server, *, sometimes):
    """Answer with all secrets in labels, revisions and errors."""
    every = " ".join(SECRETS)

    def script(request):
        headers = {"x-sha": TOKEN}
        if request.number == 2:
            return server.reply(429, {"error": every}, {"Retry-After": "0"})
        if request.number == 3:
            return server.reply(503, {"error": f"loading {every}", "estimated_time": 0.01})
        if "text 7" in request.texts:
            return server.reply(400, {"error": f"too long: {every}"}, headers)
        if request.number > 6 and not sometimes:
            return server.reply(403, json.dumps({"error": every}).replace("_", "\\u005f"))
        labels = [[{"label": f"so {every}", "score": 0.5}]] * len(request.texts)
        return server.reply(200, labels, headers)

    server.script = script


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_echoes_secrets_leaves_none_in_a_complete_run(
    job, secret, server, tmp_path, log_format
):
    echo(server, sometimes=True)
    done = secret(*job, "--json", "--log-format", log_format)
    assert done.code == 3, done.stderr
    assert done.json["labels"] == {"so *** *** ***": 39}
    assert done.json["model_revision"] == "***"
    assert done.json["endpoint"] == f"{server.url}/x?version=2"
    secret("report", "out.parquet")
    status = secret("status", "out.parquet")
    assert_no_secret(tmp_path, done.stdout, done.stderr, status.stdout)


def test_what_echoes_secrets_leaves_none_in_a_run_that_stops(job, secret, server, tmp_path):
    echo(server, sometimes=False)
    done = secret(*job)
    assert done.code == 4, done.stderr
    assert "***" in done.stderr
    status = secret("status", "out.parquet", "--json")
    assert_no_secret(tmp_path, done.stdout, done.stderr, status.stdout)


def test_a_probe_and_a_plan_tell_no_secret(job, secret, server, tmp_path):
    echo(server, sometimes=True)
    for as_json in ((), ("--json",)):
        probe, plan = secret("probe", *job[1:], *as_json), secret("plan", *job[1:], *as_json)
        assert f"{server.url}/x?version=2" in probe.stdout
        assert_no_secret(tmp_path, *(probe.stdout + probe.stderr, plan.stdout + plan.stderr))


def test_a_run_goes_on_with_another_key_in_its_address(cli, write_csv, server):
    """It was rotated: the same run, and the same answers of a cache. Other parameters count."""
    table = write_csv("in.csv", [f"text {i}" for i in range(40)])
    start = ("run", table, "--batch-size", "4", "--cache", "answers")

    def run(output, query, *more):
        return cli(*start, "-o", output, "--endpoint", f"{server.url}/{query}", *more)

    stopped = run("out.parquet", "?code=firstfirst&v=2", "--max-requests", "3")
    assert stopped.code == 75
    assert run("out.parquet", "?v=2&subscription-key=another").code == 0
    assert run("other.parquet", "?v=2&code=thirdthird").code == 0
    assert len(server.texts) == len(set(server.texts)) == 40
    refused = run("out.parquet", "?code=firstfirst&v=3")
    assert refused.code == 2
    assert "firstfirst" not in refused.stderr


@pytest.mark.parametrize("status", [200, 400, 403])
def test_foreign_text_does_nothing_to_a_terminal(cli, server, write_csv, status):
    """Of a server, and of the names in a file."""
    labels = [[{"label": HOSTILE, "score": 0.5}]]
    body = labels if status == 200 else {"error": HOSTILE}
    server.script = lambda request: server.reply(
        status, body * len(request.texts) if status == 200 else body, {"x-sha": "\x9b2J"}
    )
    table = write_csv("in.csv", ["a"])
    job = (table, "-o", "out.parquet", "--endpoint", server.url)
    said = [cli("probe", *job), cli("probe", *job, "--json"), cli("run", *job)]
    said += [cli("run", *job, "--json", "--log-format", "json", "--overwrite")]
    said += [cli("status", "out.parquet"), cli("status", "out.parquet", "--json")]
    hostile = table.with_name("hostile.csv")
    hostile.write_text(f"text,{HOSTILE},{HOSTILE}\na,b,c\n")
    said.append(cli("run", hostile, "-o", "o.parquet", "--endpoint", server.url))
    assert said[-1].code == 2
    for each in said:
        assert not CONTROL.search(each.stdout + each.stderr)


def test_json_that_is_printed_means_the_same():
    content = json.dumps({"a": HOSTILE + "\x7f\u2028 \u00e9"}, ensure_ascii=False)
    assert json.loads(safe_json(content.encode())) == json.loads(content)
    assert not CONTROL.search(safe_json(content.encode()))


def test_a_short_value_is_no_secret_that_words_could_hold():
    keep_secret("a")
    assert redacted("a banana") == "a banana"


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("?code=k", ""), ("?a=1&code=k", "?a=1"), ("?Subscription-Key=k&b=%2F", "?b=/"),
        ("?api_key=k", ""), ("?apikey=k", ""), ("?sig=k&se=2", "?se=2"), ("?access_token=k", ""),
        ("?X-Amz-Signature=k", ""), ("?model=a", "?model=a"), ("?language_code=de",) * 2, ("", ""),
    ],
)  # fmt: skip
def test_the_keys_of_an_address_are_not_shown(query, shown):
    config = RunConfig(input="a", output="o", endpoint=f"https://my.team/x{query}")
    assert config.public_endpoint == f"https://my.team/x{shown}"
    assert config.result_settings()["endpoint"] == config.public_endpoint


@pytest.mark.parametrize("address", ["https://my.team:x/", "https://me:pw@my.team/", "htps://a/"])
def test_an_address_that_is_refused_is_shown_without_its_query(address):
    with pytest.raises(SettingsError, match="endpoint") as refused:
        RunConfig(input="a", output="o", endpoint=f"{address}?code={CODE}")
    assert CODE not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("https://h", "https://h/info"), ("https://h/", "https://h/info"),
        ("https://h/predict?code=k", "https://h/info?code=k"),
        ("https://h/a/b/?x=1&code=k%3D%3D", "https://h/a/b/info?x=1&code=k%3D%3D"),
        ("https://h:1/a%2Fb/predict/", "https://h:1/a%2Fb/info"),
    ],
)  # fmt: skip
def test_a_page_of_the_same_server_keeps_the_query(address, page):
    assert addresses.beside(address, "info", ["predict"]) == page


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ("org/name", "org/name"), (" org/name \n", "org/name"), ("org/name/", "org/name"),
        ("https://huggingface.co/org/name", "org/name"), ("gpt2", "gpt2"),
        ("https://hf.co/org/name/?library=transformers#how", "org/name"),
        ("http://www.huggingface.co/org/name/tree/main", "org/name"),
        ("org/na-me_1.0", "org/na-me_1.0"),
    ],
)  # fmt: skip
def test_what_was_copied_with_a_model_id_is_left_out(given, model):
    config = RunConfig(input="a", output="o", model=given)
    assert config.model == config.result_settings()["model"] == model


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("org/name:provider", '`model="org/name"`'), ("../../v1/x", "model's id"),
        ("org/..", "model's id"), ("org/name?x=1", "model's id"), ("org/name#a", "model's id"),
        ("a/b/c", "model's id"), ("org/na me", "model's id"), ("https://other.hub/org/name", "id"),
        ("org/%2e%2e", "model's id"), (" ", "a model id"), ("org/n\u00e4me", "model's id"),
        ("https://huggingface.co/org/name/tree/other", "model's id"),
    ],
)  # fmt: skip
def test_what_is_no_model_id_is_refused(given, fix):
    with pytest.raises(SettingsError, match="model") as refused:
        RunConfig(input="a", output="o", model=given)
    assert fix in str(refused.value)


def test_the_directory_of_a_model_is_no_model_id():
    assert RunConfig(input="a", output="o", endpoint="local", model="../m/").model == "../m/"
