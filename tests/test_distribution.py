"""What is published is complete: the sdist is the checkout, and the wheel is all of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import pipeline

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def files_of_checkout():
    """What git tracks; in an unpacked sdist what that lists."""
    if (ROOT / ".git").exists():
        git = ["git", "ls-files", "-z"]
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = listed.stdout.split("\0")
    else:
        sources = ROOT / "classify_pipeline.egg-info" / "SOURCES.txt"
        paths = sources.read_text(encoding="utf-8").splitlines()
    return {path for path in paths if (ROOT / path).is_file() and ".egg-info/" not in path}


def run(*command, cwd, **env):
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | env,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, source, into):
    """Build in `source` without the network; returns the file."""
    into.mkdir()
    run("-c", f"from setuptools import build_meta as b; b.build_{kind}({str(into)!r})", cwd=source)
    (built,) = into.iterdir()
    return built


class Built(NamedTuple):
    """The files of the checkout and of its sdist, and the wheel made of that, unpacked."""

    files: set[str]
    sdist: set[str]
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    checkout = folder / "checkout"
    files = files_of_checkout()
    for path in files:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    archive = build("sdist", checkout, folder / "sdist")
    assert archive.name == f"classify_pipeline-{pipeline.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    sdist = files_below(unpacked)
    # As `pip install .` leaves it, of a version that had one more module.
    gone = unpacked / "build" / "lib" / "pipeline" / "gone.py"
    gone.parent.mkdir(parents=True)
    gone.touch()
    with zipfile.ZipFile(build("wheel", unpacked, folder / "wheel")) as file:
        file.extractall(folder / "installed")
    return Built(files, sdist, folder / "installed")


def test_the_sdist_is_the_checkout(built):
    found = {path for path in built.sdist if ".egg-info/" not in path}
    assert found == built.files | {"PKG-INFO", "setup.cfg"}


def test_the_wheel_that_the_sdist_builds_is_the_package(built):
    package = {path for path in built.files if path.startswith(("classify_pipeline/", "pipeline/"))}
    assert {"classify_pipeline/py.typed", "pipeline/py.typed"} <= package
    assert {path for path in files_below(built.wheel) if ".dist-info/" not in path} == package


def test_it_works_without_the_checkout(built, tmp_path):
    code = "import sys, pipeline.cli; sys.argv[0] = 'classify'; pipeline.cli.console()"
    shown = run(
        "-c", code, "try", "I love it", "--endpoint", "local",
        cwd=tmp_path, PYTHONPATH=str(built.wheel),
    )  # fmt: skip
    assert re.fullmatch(r"positive +0\.\d+ +I love it\n", shown)
    where = (
        "import classify_pipeline as cp, pipeline; print(cp.__version__, cp.run, pipeline.__file__)"
    )
    shown = run("-c", where, cwd=tmp_path, PYTHONPATH=str(built.wheel))
    assert shown.startswith(pipeline.__version__)
    assert str(built.wheel) in shown


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (?!\[Unreleased\])(\S+) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert newest
    assert newest[1] == pipeline.__version__


def test_each_extra_that_is_recommended_exists():
    documents = [*ROOT.glob("*.md"), ROOT / "Makefile", *(ROOT / "docs").rglob("*.md")]
    recommended = {
        extra
        for document in documents
        for extras in re.findall(
            r"(?:\.|classify-pipeline)\[([\w,]+)\]", document.read_text(encoding="utf-8")
        )
        for extra in extras.split(",")
    }
    for module in (ROOT / "pipeline").rglob("*.py"):
        recommended |= set(
            re.findall(r"with_extra\([\"'](\w+)", module.read_text(encoding="utf-8"))
        )
    assert {"local", "report", "cloud", "ray", "transformers"} <= recommended
    assert recommended <= set(PROJECT["optional-dependencies"])
