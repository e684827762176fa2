"""The documentation is true: what it names exists, and what exists is named.

That all it shows runs is tested in tests/docs, that the reference is complete too.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from pipeline import errors
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.endpoint.process import EndpointProcess

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md"),
    "data/sample/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


class Block(NamedTuple):
    """A fenced code block."""

    language: str
    code: str

    def commands(self) -> list[list[str]]:
        """The words of each command line, without comments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def code_blocks(text: str) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(language, code) for language, code in found]


def table_rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in a text, without their heads."""
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return [row for i, row in enumerate(cells) if i > 1]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def classify_commands(text: str = README) -> list[list[str]]:
    """The words after `classify` of each command, without what a shell does with them."""
    shell = [block for block in code_blocks(text) if block.language == "bash"]
    inline = [shlex.split(code) for code in re.findall(r"(?<!`)`(classify [^`\n]+)`", text)]
    commands = [words for block in shell for words in block.commands()] + inline
    found = []
    for words in commands:
        if words[0] == "classify" and not {"--help", "--version"} & set(words):
            ends = [i for i, word in enumerate(words) if re.fullmatch(r"[|>&;].*|2>>?", word)]
            found.append(words[1 : (ends or [None])[0]])
    return found


def test_the_first_two_commands_are_make_run_and_make_test():
    """Whoever has a fresh checkout sees these two before anything else."""
    commands = [words for block in code_blocks(README) for words in block.commands()]
    assert commands[:2] == [["make", "run"], ["make", "test"]]


def test_each_command_is_named():
    """A reader of the README knows what there is."""
    for command in main.list_commands(None):
        assert f"`classify {command}" in README, command


def test_each_exit_code_is_in_the_table():
    """The table of exit codes holds those of the error tree, and no other."""
    documented = [int(row[0]) for row in table_rows(read("docs/reference/exit-codes.md"))]
    tree = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.ClassifyError)
    }
    signals = {errors.Interrupted("", signal_number=number).exit_code for number in (2, 15)}
    assert documented == sorted({errors.EXIT_COMPLETE, errors.EXIT_ROWS_FAILED} | tree | signals)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_name_options_that_exist(document):
    """Every `classify ...` that is shown has options and settings that are accepted."""
    for name, *words in classify_commands(read(document)):
        command = main.get_command(None, name)
        assert command is not None, f"classify {name}"
        # A command that is only named lacks what it needs.
        given = command.make_context(name, words, resilient_parsing=not words).params
        if given.get("inputs"):
            settings = {key: given[key] for key in RunConfig.model_fields if given.get(key)}
            RunConfig(
                **{"output": "out", "model": "org/name", **settings, "input": given["inputs"]}
            )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_resolve(document):
    """To a file that is there, and to a heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if not re.match(r"https?://", target):
            name, _, heading = target.partition("#")
            path = (ROOT / document).parent / name if name else ROOT / document
            assert path.exists(), f"{document} links to {target}"
            if heading:
                assert heading in headings(path.read_text(encoding="utf-8")), target


def headings(text: str) -> set[str]:
    """The names that a page's headings have in links."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in found}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_and_targets_that_are_named_exist(document):
    """A path of this repository in backticks is there, and so is a target of make."""
    text = read(document)
    for path in re.findall(
        r"`((?:pipeline|tests|docs|configs|benchmarks|data)/[\w./-]*)(?:::\w+)?`", text
    ):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"`make ([a-z-]+)`", text):
        assert target in targets_of_make(), target


def targets_of_make() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.MULTILINE))


def test_each_page_is_in_the_index():
    """Who starts at docs/README.md finds all there is."""
    index = read("docs/README.md")
    for document in DOCUMENTS:
        if document.startswith("docs/") and document != "docs/README.md":
            assert f"({document.removeprefix('docs/')})" in index, document


def test_the_architecture_names_every_place_of_the_package():
    """The house lists each module and folder at the top of the package, and no other."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    house = text.partition("\n## The house\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^- `([^`]+)`: ", house, re.MULTILINE))
    package = ROOT / "pipeline"
    there = {f"pipeline/{file.name}" for file in package.glob("*.py")}
    there |= {f"pipeline/{file.parent.name}/" for file in package.glob("*/__init__.py")}
    assert listed == there


def test_modules_that_the_architecture_names_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    modules = set(re.findall(r"\b([a-z_]+\.py)\b", text))
    assert modules <= {file.name for file in (ROOT / "pipeline").rglob("*.py")}


def test_public_names_are_those_that_the_readme_uses():
    """Every `cp.name` in the README is public, and there to be imported."""
    public = importlib.import_module("classify_pipeline")
    used = set(re.findall(r"\bcp\.([a-z]\w+)\(", README))
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


def test_the_rehearsal_ends_well(checkout):
    """A bad day and its job: all rows are labelled but the poisoned and the empty one."""
    commands = classify_commands(read("docs/how-to/rehearse-faults.md"))
    (serve,) = [words for words in commands if words[:2] == ["serve", "--cold-start"]]
    (job,) = [words for words in commands if "day.parquet" in words]
    poison = serve[serve.index("--poison") + 1]
    with EndpointProcess(arguments=serve[1:]) as endpoint:
        job[job.index("--endpoint") + 1] = endpoint.url
        execute(["classify", *job], checkout)
    for row in pq.read_table(checkout / "day.parquet").to_pylist():
        spoiled = row["review"] is None or poison in row["review"]
        assert (row["label"] is None) == (row["error"] is not None) == spoiled


def test_the_tests_that_reliability_names_exist():
    """A promise without its test is none."""
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`", text))
    assert len(named) > 10
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8"), (path, test)
