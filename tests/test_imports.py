"""The contracts on imports in pyproject.toml hold, and would fail if they did not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def lint(tmp_path):
    """Check a copy of the package, with lines added to one of its modules."""

    def run(module="", line=""):
        shutil.copytree(
            ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        if module:
            with (tmp_path / "pipeline" / module).open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")
        return subprocess.run(
            [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def test_imports_run_one_way(lint):
    checked = lint()
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("producer/files.py", "job"),
        ("rows/results.py", "job"),
        ("writer/parts.py", "job"),
        ("producer/files.py", "writer"),
        ("writer/parts.py", "rows"),
        ("job/stream.py", "cli"),
        ("errors.py", "config"),
    ],
)
def test_an_import_the_other_way_is_refused(lint, module, imported):
    """A stage knows neither what ties the stages together nor the other stages."""
    checked = lint(module, f"import pipeline.{imported}")
    assert checked.returncode == 1
    importer = module.partition("/")[0].removesuffix(".py")
    words = f"pipeline.{importer} is not allowed to import pipeline.{imported}"
    assert words in checked.stdout


def test_the_embedded_endpoint_is_known_to_the_engines_alone(lint):
    checked = lint("api.py", "import pipeline.endpoint.server")
    assert checked.returncode == 1
    assert "pipeline.api -> pipeline.endpoint.server" in checked.stdout
