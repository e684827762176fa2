"""`classify probe`: a verdict for each check, in words and in JSON; it writes nothing."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.endpoint.process import EndpointProcess
from pipeline.probing import MOST_REQUESTS

CHECKS = ["token", "address", "model", "dialect", "batching", "texts", "labels", "revision",
          "parameters", "latency"]  # fmt: skip


def _probed(*arguments):
    return CliRunner().invoke(main, ["probe", *map(str, arguments)])


@pytest.fixture
def good(server):
    """The scripted server, telling a revision."""
    server.script = lambda _: server.reply(headers={"x-sha": "0123abcd"})
    return server


def test_json_is_one_object_on_stdout_and_nothing_is_written(cli, good, write_csv, listing):
    source = write_csv("in.csv", [f"t {i}" for i in range(200)])
    before = listing()
    ended = cli("probe", source, "--endpoint", good.url, "-o", "new/out.parquet", "--json",
                CLASSIFY_DIALECT="auto")  # fmt: skip
    assert (ended.code, ended.stderr) == (0, "")
    found = ended.json
    assert found["state"] == "ok"
    assert [check["name"] for check in found["checks"]] == CHECKS
    assert {check["verdict"] for check in found["checks"]} == {"ok"}
    assert all(set(check) == {"name", "verdict", "seen", "mend"} for check in found["checks"])
    # Asking what it is is not answered by this server, and not counted by it either.
    assert found["requests"] == len(good.requests) + 1 <= MOST_REQUESTS
    assert found["texts"] == len(good.texts)
    assert set(good.texts) == {f"t {i}" for i in range(96)}
    assert listing() == before


def test_words_for_people(good):
    ended = _probed("--endpoint", good.url, "--dialect", "hf")
    assert ended.exit_code == 0
    told = " ".join(ended.stdout.split())
    for words in ("ok token", "None was found", "plain ones", "Sent 3 requests, with 12 texts",
                  "one at a time", "All is well"):  # fmt: skip
        assert words in told


def test_without_input_texts_are_plain_and_no_two_the_same(good):
    """A server may remember what it answered."""
    assert _probed("--endpoint", good.url).exit_code == 0
    assert len(set(good.texts)) == 12


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_only_the_first_rows_are_read(good, tmp_path, kind):
    """A large input takes no longer: what is wrong further down is for the plan and the run."""
    texts = [f"t {i}" for i in range(30_000)]
    if kind == "csv":
        path = tmp_path / "in.csv"
        path.write_text("text,n\n" + "".join(f"{text},1\n" for text in texts) + "ragged\n")
    else:
        path = tmp_path / "in.parquet"
        pq.write_table(pa.table({"text": texts}), path, row_group_size=1000)
        content = bytearray(path.read_bytes())
        at = content.index(b"t 25000")
        content[at - 200 : at] = b"\xff" * 200
        path.write_bytes(content)
    ended = _probed(path, "--endpoint", good.url, "--json")
    assert ended.exit_code == 0
    assert json.loads(ended.stdout)["texts"] == 97
    assert set(good.texts) == set(texts[:96])


def test_an_input_without_a_text_is_replaced_by_plain_ones(good, tmp_path):
    for name, texts in (
        ("a.parquet", pa.nulls(5, pa.string())),
        ("b.parquet", pa.array([], pa.string())),
    ):
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
        ended = _probed(tmp_path / name, "--endpoint", good.url)
        assert ended.exit_code == 0
        assert "plain ones" in ended.stdout


def test_the_first_file_with_rows_is_taken(good, tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["good", "bad"]}), tmp_path / "b.parquet")
    assert _probed(tmp_path, "--endpoint", good.url).exit_code == 0
    assert set(good.texts) == {"good", "bad"}


def test_input_and_settings_come_from_a_config_too(good, write_csv, tmp_path):
    source, config = write_csv("in.csv", ["good", "bad"]), tmp_path / "job.yaml"
    config.write_text(f"input: {source}\noutput: {tmp_path}/o.parquet\nendpoint: {good.url}\n")
    assert _probed("--config", config).exit_code == 0
    assert set(good.texts) == {"good", "bad"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dialect", "x"), "dialect: 'x'"),
        (("in.csv", "--text", "missing"), "no column 'missing'"),
        (("no.csv",), "no.csv"),
        (("--token-file", "no such file"), "--token-file: "),
        (("--endpoint", "hf"), "--endpoint: "),
    ],
)
def test_wrong_settings_end_with_2_and_nothing_is_sent(
    good, write_csv, tmp_path, monkeypatch, arguments, named
):
    write_csv("in.csv", ["good"])
    monkeypatch.chdir(tmp_path)
    ended = _probed("--endpoint", good.url, *arguments)
    assert (ended.exit_code, ended.stdout, good.requests) == (2, "", [])
    assert named in ended.stderr
    ended = _probed("--endpoint", good.url, *arguments, "--json")
    assert json.loads(ended.stdout)["state"] == "refused"


def test_a_refusal_ends_with_4_and_keeps_the_token_to_itself(cli, server):
    server.script = lambda _: server.reply(401, {"error": "no: hf_secretsecret"})
    ended = cli("probe", "--endpoint", server.url, HF_TOKEN="hf_secretsecret")
    assert ended.code == 4
    assert "Check the token in HF_TOKEN" in " ".join(ended.stdout.split())
    assert "hf_secretsecret" not in ended.stdout + ended.stderr
    assert len(server.requests) == 1


def test_an_endpoint_that_is_down_ends_with_75(server):
    url = server.url
    server.script = lambda _: server.reply(502, "<html>bad gateway</html>")
    ended = _probed("--endpoint", url, "--json")
    found = json.loads(ended.stdout)
    assert (ended.exit_code, found["exit_code"], found["state"]) == (75, 75, "failed")
    assert found["dialect"] is None
    assert [check["verdict"] for check in found["checks"]].count("skipped") == 9
    told = " ".join(_probed("--endpoint", url).stdout.split())
    assert "failed address" in told
    assert "skipped the rest model, dialect, batching" in told


def test_a_cold_start_is_waited_for_in_words(cli):
    """On stderr, so that --json stays alone on stdout."""
    with EndpointProcess(arguments=["--cold-start", "1"]) as endpoint:
        ended = cli("probe", "--endpoint", endpoint.url, "--json")
    assert ended.code == 0
    assert "waiting: model loading" in ended.stderr
    (model,) = [check for check in ended.json["checks"] if check["name"] == "model"]
    assert "after loading for" in model["seen"]


def test_the_embedded_endpoint_is_started(cli):
    ended = cli("probe", "--endpoint", "local", "--json", CLASSIFY_DIALECT="auto")
    assert (ended.code, ended.json["state"]) == (0, "ok")
    assert ended.json["labels"]
