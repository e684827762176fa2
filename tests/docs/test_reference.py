"""The reference is what the code gives, and what the code gives is what runs give."""

import importlib.util
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.job.status import Status
from pipeline.job.summary import Origin, Summary
from pipeline.plan.forecast import Forecast
from pipeline.probing import Probe

ROOT = Path(__file__).resolve().parents[2]
KINDS = {
    "count": int,
    "seconds": float,
    "per second": float,
    "money": float,
    "text": str,
    "true or false": bool,
    "list": list,
    "counts": dict,
    "object": dict,
}


@pytest.fixture(scope="module")
def generate():
    """The script that writes the reference."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_gives(generate):
    """A setting, command, code or key that changes is in the reference, or this fails."""
    pages = generate.pages()
    assert {page.stem for page in pages} >= {"settings", "commands", "exit-codes", "output"}
    for page, text in pages.items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is old: run `make docs`"


def test_each_table_has_its_place(generate):
    """What the script can make stands somewhere, once."""
    text = "".join(generate.pages().values())
    for name in generate.MADE:
        assert text.count(f"<!-- {name} -->") == 1, name


def assert_known(found, known):
    """Each key of an object has a meaning, and its value is of the kind that is told."""
    assert set(found) <= set(known), "give the field a meaning, then `make docs`"
    for key, value in found.items():
        kind, nullable, _ = known[key][0].partition(" or null")
        assert (value is None and nullable) or isinstance(value, KINDS[kind]), (key, value)


def test_the_keys_of_json_have_a_meaning(cli, server, write_csv, generate):
    """Of a summary (complete, stopped), a plan and a status, each key is told, and rightly."""
    made = {kind: generate.meanings_of(kind) for kind in (Forecast, Probe, Summary, Status)}
    table = write_csv("in.csv", [f"text {i % 90}" for i in range(100)])
    job = (table, "-o", "out.parquet", "--endpoint", server.url, "--json", "--top-k", "2")
    found = cli("plan", *job, "--price-per-request", "0.5").json
    assert_known(found, made[Forecast])
    assert list(found) == list(made[Forecast])
    assert_known(cli("probe", *job).json, made[Probe])
    stopped = cli("run", *job, "--max-requests", "1").json
    assert stopped["state"] == "stopped"
    assert list(stopped) == list(made[Summary])
    assert_known(stopped, made[Summary])
    assert_known(cli("status", "out.parquet", "--json").json, made[Status])
    complete = cli("run", *job).json
    assert list(complete) == [key for key in made[Summary] if key != "message"]
    assert_known(complete, made[Summary])
    assert_known(cli("status", "out.parquet", "--json").json, made[Status])


def test_the_metadata_of_an_output_has_a_meaning(label, write_csv, tmp_path, generate):
    label(write_csv("in.csv", ["a text"]), tmp_path / "out.parquet")
    found = pq.read_schema(tmp_path / "out.parquet").metadata
    assert {key for key in found if key.startswith(b"classify.")} == {
        f"classify.{name}".encode() for name in generate.meanings_of(Origin)
    }


def examples():
    """Every command in the help of a command."""
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in text.split("```bash\n")[1:]]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_the_examples_of_the_help_are_accepted(words):
    """Their options exist, and what they set is allowed; curl's request is one of README's kind."""
    if words[0] == "curl":
        assert words[2] == "-d"
        return
    if words[0] == "eval":
        words = shlex.split(words[1].removeprefix("$(").removesuffix(")"))
    if ">" in words:
        words = words[: words.index(">")]
    assert words[0] == "classify"
    command = main.get_command(None, words[1])
    given = command.make_context(words[1], words[2:]).params
    if given.get("inputs"):
        settings = {name: given[name] for name in RunConfig.model_fields if given.get(name)}
        RunConfig(**{"output": "out", **settings, "input": given["inputs"]})
