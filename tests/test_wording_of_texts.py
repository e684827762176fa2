"""All that people read, as it stands in files: documentation, help, docstrings and messages.

What runs say is in test_wording_of_counts.py.
"""

import ast
import inspect
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import pipeline
from pipeline.cli import main
from tests.test_wording_of_counts import WRONG

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
MODULES = sorted(ROOT.glob("pipeline/**/*.py"))

# Not English, or not plain English; a key of JSON in backticks is a name.
STIFF = re.compile(
    r"(?<!`)\bmends?\b(?!`)|\bmended\b|\banew\b|\bwhere there (is|are)\b|\ba verdict each\b"
    r"|\bretries what\b|\bknows no\b|\bare there to be\b|\bwhere a second look\b"
    r"|\bnotices? nothing\b|\bprints what makes\b|\bNothing: it works\b"
    r"|\bthat is not complete it says\b",
    re.IGNORECASE,
)
STOPS = re.compile(r"(?<=\w)\.\.(?=\s|$)")  # not those of a path
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|TBD|[Ll]orem|[Pp]laceholder)\b")
# Return, Hand, Release; True if.
WEAK_START = re.compile(r"(Gives?|Whether)\b")
# `{rows} rows`, which is wrong for one; `counted(rows, "row")` is right. Units such as rows/s are.
UNCOUNTED = re.compile(r"\{\} (rows|requests|texts|answers|labels|files|workers|seconds)\b(?!/)")


def faults(text):
    """What is wrong with the English of a text."""
    found = [each.search(text) for each in (STIFF, LEFTOVER, WRONG, STOPS)]
    return [each[0] for each in found if each]


@pytest.mark.parametrize(
    "text",
    [
        "Start the store anew.",
        "1 requests were sent.",
        "It ended..",
        "TODO: say more",
        "Fixes what a retry can mend.",
        "cron knows no HF_TOKEN",
    ],
)
def test_a_fault_is_found(text):
    assert faults(text)


@pytest.mark.parametrize(
    "text", ["`mend` is null", "1 request", "at 1 rows/s", "from 1...", "There is a new one."]
)
def test_what_is_right_is_none(text):
    assert not faults(text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents(document):
    assert not faults(document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["", *main.list_commands(None)])
def test_help(command):
    told = CliRunner().invoke(main, [*command.split(), "--help"])
    assert told.exit_code == 0
    assert not faults(told.output)


@pytest.mark.parametrize("name", pipeline.__all__)
def test_docstrings_of_public_names(name):
    """Of its public methods, too."""
    thing = getattr(pipeline, name)
    own = vars(thing).items() if inspect.isclass(thing) else ()
    for each in (thing, *(value for key, value in own if not key.startswith("_"))):
        if told := inspect.getdoc(each) or "":
            assert not faults(told)
            assert not WEAK_START.match(told), told


def strings(tree):
    """The docstrings of a module, and its other strings; `{}` where an f-string has a value."""
    told = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, told)]
    messages = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "{}" for each in node.values)
            messages.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            messages.append(node.value)
    return list(filter(None, docs)), messages


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_and_docstrings(module):
    source = module.read_text(encoding="utf-8")
    assert not LEFTOVER.search(source)
    docs, messages = strings(ast.parse(source))
    for told in docs:
        assert not faults(told)
        assert not WEAK_START.match(told), told
    for told in messages:
        # A word by itself is a key.
        assert " " not in told or not faults(told), told


def test_numbers_in_messages_are_counted():
    """Each that is followed by a plural is one that cannot be 1, or is in this list."""
    found = set()
    for module in MODULES:
        _, messages = strings(ast.parse(module.read_text(encoding="utf-8")))
        found |= {(module.name, each[0]) for told in messages for each in UNCOUNTED.finditer(told)}
    assert found == {
        ("asking.py", "{} requests"),  # 8
        ("assembly.py", "{} rows"),  # an assertion
        ("charts.py", "{} texts"),  # a second
        ("plan.py", "{} requests"),  # 8 or more
        ("run.py", "{} rows"),  # 100
        ("verdicts.py", "{} answers"),  # a host does
        ("verdicts.py", "{} texts"),  # more than one
    }
