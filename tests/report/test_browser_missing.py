"""Without a browser, the tests that need one are left out with a word, or fail where CI=true."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = "Chromium is not installed: the tests that look at the report in a browser are left out."


@pytest.fixture
def python(tmp_path):
    """Run a module of this Python where no program is found, so neither a browser nor apt-get."""

    def run(*arguments, **environ):
        bare = {k: v for k, v in os.environ.items() if k not in ("CI", "CHROMIUM")}
        bare = {k: v for k, v in bare.items() if not k.startswith("PYTEST_")}
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT, env={**bare, "PATH": str(tmp_path), **environ},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


def collect(python, **environ):
    return python("pytest", "--collect-only", "-p", "no:cacheprovider", "tests/report", **environ)


def test_they_are_left_out_and_said_so_at_the_start_and_at_the_end(python):
    done = collect(python)
    assert done.returncode == 0
    assert done.stdout.count(LEFT_OUT) == 2
    assert done.stdout.index(LEFT_OUT) < done.stdout.index("test_report_") < (
        done.stdout.rindex(LEFT_OUT)
    )  # fmt: skip
    assert "test_charts_are_drawn_in_full" not in done.stdout
    assert " deselected" in done.stdout


@pytest.mark.parametrize("environ", [{"CI": "true"}, {"CHROMIUM": "/opt/another/browser"}])
def test_they_are_kept_where_they_must_run_or_a_browser_is_named(python, environ):
    done = collect(python, **environ)
    assert LEFT_OUT not in done.stdout
    assert "test_charts_are_drawn_in_full" in done.stdout


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_make_test_fails_at_once_only_where_ci_is_true(python, ci, code):
    done = python("tests.report.chromium", CI=ci)
    assert done.returncode == code
    assert "Chromium could not be installed: that takes apt-get" in done.stderr
