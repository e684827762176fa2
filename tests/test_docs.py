"""The documentation is true: what it names exists, what exists is named, what it shows runs."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import pyarrow.parquet as pq
import pytest
import yaml
from pydantic_core import PydanticUndefined

from pipeline import errors
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.endpoint.process import EndpointProcess

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md"),
    *("benchmarks/README.md", "data/sample/README.md"),
    *("docs/how-to/cron.md", "docs/how-to/notebooks.md"),
]
STAGES = {"producer", "workers", "writer"}
SAMPLE_ROWS = 600


class Block(NamedTuple):
    """A fenced code block; `runs` where `<!-- run -->` stands before it, which no reader sees."""

    language: str
    code: str
    runs: bool

    def commands(self) -> list[list[str]]:
        """The words of each command line, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def code_blocks(text: str) -> list[Block]:
    found = re.findall(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, code, bool(mark)) for mark, language, code in found]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text, without their heads."""
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return [row for i, row in enumerate(cells) if i > 1]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def classify_commands() -> list[list[str]]:
    shell = [block for block in code_blocks(README) if block.language == "bash"]
    inline = [shlex.split(code) for code in re.findall(r"(?<!`)`(classify [^`\n]+)`", README)]
    commands = [words for block in shell for words in block.commands()] + inline
    return [words[1:] for words in commands if words[0] == "classify" and "--help" not in words]


def test_the_first_two_commands_are_make_run_and_make_test():
    """Whoever has a fresh checkout sees these two before anything else."""
    commands = [words for block in code_blocks(README) for words in block.commands()]
    assert commands[:2] == [["make", "run"], ["make", "test"]]


def test_each_setting_is_in_the_table_with_its_default():
    """The table of settings names every setting once, no other one, and the true defaults."""
    documented = {}
    for name_cell, default_cell, _ in table_rows(section("Commands and settings")):
        settings = names(name_cell)
        # A default is one for each name, or one for all.
        defaults = default_cell.replace("`,`", "`comma`").split(", ")
        defaults = defaults if len(defaults) == len(settings) else defaults * len(settings)
        for setting, default in zip(settings, defaults, strict=True):
            assert setting not in documented
            documented[setting] = default.strip("`").replace("comma", ",")
    assert documented == {
        name: spoken(field.default) for name, field in RunConfig.model_fields.items()
    }


def spoken(default: object) -> str:
    """How the table words a default."""
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "none"
    if isinstance(default, float):
        return f"{default:g}"
    return str(default).lower()


def test_each_command_and_each_of_its_switches_is_named():
    for command in main.list_commands(None):
        assert f"`classify {command}" in README, command
    run = main.get_command(None, "run")
    switches = [option.opts[-1] for option in run.params if isinstance(option, click.Option)]
    for switch in switches:
        if switch.lstrip("-").replace("-", "_") not in RunConfig.model_fields:
            assert f"`{switch}" in README, switch


def test_each_exit_code_is_in_the_table():
    """The table of exit codes holds those of the error tree, and no other."""
    documented = [
        int(code) for row in table_rows(section("Exit codes")) for code in row[0].split(",")
    ]
    tree = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ClassifyError)
    }
    signals = {errors.Interrupted("", number).exit_code for number in (2, 15)}
    assert documented == sorted({errors.EXIT_COMPLETE, errors.EXIT_ROWS_FAILED} | tree | signals)


@pytest.mark.parametrize("words", classify_commands(), ids=" ".join)
def test_commands_name_options_that_exist(words):
    """Every `classify ...` that the README shows has options and settings that are accepted."""
    given = main.get_command(None, words[0]).make_context(words[0], words[1:]).params
    if given.get("inputs"):
        settings = {name: given[name] for name in RunConfig.model_fields if given.get(name)}
        config = RunConfig(**settings, input=given["inputs"])
        assert config.text == "review"


def test_yaml_blocks_are_settings():
    blocks = [block.code for block in code_blocks(README) if block.language == "yaml"]
    assert blocks
    for block in blocks:
        RunConfig(**yaml.safe_load(block))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_resolve(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?://", target):
            path = (ROOT / document).parent / target.partition("#")[0]
            assert path.exists(), f"{document} links to {target}"


def test_contributing_lists_the_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {row[0].strip("`").removeprefix("make ") for row in table_rows(contributing)} >= targets
    for target in re.findall(r"`make ([a-z-]+)`", contributing + README):
        assert target in targets


def test_the_architecture_names_every_place_of_the_package():
    """The house lists each module and folder at the top of the package, and no other."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    house = text.partition("\n## The house\n")[2].partition("\n## ")[0]
    listed = {row[0].strip("`") for row in table_rows(house)}
    package = ROOT / "pipeline"
    there = {f"pipeline/{file.name}" for file in package.glob("*.py")}
    there |= {f"pipeline/{file.parent.name}/" for file in package.glob("*/__init__.py")}
    assert listed == there


def test_modules_that_the_architecture_names_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"\b([a-z_]+\.py)\b", text))
    assert modules <= {file.name for file in (ROOT / "pipeline").rglob("*.py")}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_do_not_import_each_other(stage):
    """Imports run one way: a stage knows neither the other stages nor what ties them together."""
    forbidden = (STAGES - {stage}) | {"api", "cli", "engines", "run", "rundir"}
    for file in (ROOT / "pipeline" / stage).glob("*.py"):
        for module in imported(file):
            assert module.split(".")[1:2] not in [[name] for name in forbidden], (file, module)


def imported(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline":
            found += [f"pipeline.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.startswith("pipeline")]


def test_public_names_are_those_that_the_readme_uses():
    """Every `pipeline.name` in the README is public, and there to be imported."""
    public = importlib.import_module("pipeline")
    used = set(re.findall(r"\bpipeline\.([a-z]\w+)\(", README))
    assert used
    assert used <= set(public.__all__)
    assert all(callable(getattr(public, name)) for name in used)


@pytest.fixture
def checkout(tmp_path):
    """A directory with what a reader of the README has around: the sample and the configs."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


def environment() -> dict[str, str]:
    """The reader's shell: the installed command first, no settings and no token around."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLASSIFY_", "HF_"))
    }
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}


def execute(command: list[str], directory: Path, code: int = 0) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_marked_blocks_run_in_the_order_of_the_readme(checkout):
    """What the README shows and needs no network works when it is pasted, block after block."""
    blocks = [block for block in code_blocks(README) if block.runs]
    assert {block.language for block in blocks} == {"bash", "python"}
    shells = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    for block in blocks:
        shown = execute([*shells[block.language], block.code], checkout)
        assert "label" in shown
        assert "positive" in shown
    labelled = pq.read_table(checkout / "labelled.parquet")
    assert labelled.num_rows == SAMPLE_ROWS
    assert labelled["label"].null_count == 1
    assert labelled["error"].drop_null().to_pylist() == ["null text"]


def test_the_rehearsal_ends_well(checkout):
    """The README's faults and its job: all rows are labelled but the poisoned and the empty one."""
    (serve,) = [words for words in classify_commands() if words[:2] == ["serve", "--cold-start"]]
    (job,) = [words for words in classify_commands() if "rehearsal.parquet" in words]
    poison = serve[serve.index("--poison") + 1]
    with EndpointProcess(arguments=serve[1:]) as endpoint:
        job[job.index("--endpoint") + 1] = endpoint.url
        execute(["classify", *job], checkout)
    for row in pq.read_table(checkout / "rehearsal.parquet").to_pylist():
        spoiled = row["review"] is None or poison in row["review"]
        assert (row["label"] is None) == (row["error"] is not None) == spoiled


def test_the_tests_that_reliability_names_exist():
    """A promise without its test is none."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", text))
    assert len(named) > 10
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
