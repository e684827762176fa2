"""The library as people meet it: names, Tab, help, signatures, types, and what a mistake shows."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell

import classify_pipeline as cp
import pipeline
from pipeline.config import RunConfig
from pipeline.errors import SettingsError

FUNCTIONS = [cp.classify, cp.aclassify, cp.run]
NAMES = ["RunResult", "aclassify", "classify", "evaluate", "run"]


def test_dir_shows_what_most_people_need_and_nothing_else():
    assert dir(cp) == NAMES == cp.__all__
    assert cp.classify is pipeline.classify
    assert cp.ClassifyError is pipeline.ClassifyError
    assert cp.__version__ == pipeline.__version__
    with pytest.raises(AttributeError, match="clasify"):
        _ = cp.clasify


def test_an_import_is_quick():
    """Neither Arrow nor aiohttp is loaded before something is called."""
    code = "import classify_pipeline, sys; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tab_completes_names_and_settings():
    shell = InteractiveShell.instance()
    shell.user_ns["cp"] = cp
    completer = IPCompleter(shell=shell, namespace=shell.user_ns, use_jedi=False)

    def completed(line):
        with provisionalcompleter():
            return [each.text for each in completer.completions(line, len(line))]

    assert [name.removeprefix("cp").removeprefix(".") for name in completed("cp.")] == NAMES
    assert "batch_size=" in completed("cp.classify(df, ba")


def test_help_tells_of_each_setting():
    words = pydoc.render_doc(cp, renderer=pydoc.plaintext)
    for name in NAMES:
        assert name in words
    shown = pydoc.render_doc(cp.classify, renderer=pydoc.plaintext)
    for name in set(RunConfig.model_fields) - {"input", "output"}:
        assert f"\n        {name}: " in shown


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_setting_is_a_keyword_with_its_default(function):
    parameters = inspect.signature(function).parameters
    places = {"input", "output"}
    for name, field in RunConfig.model_fields.items():
        if name in places:
            assert (name in parameters) == (function is cp.run)
        else:
            assert parameters[name].default == field.default
    assert not any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def test_the_text_column_may_be_positional(server, tmp_path):
    rows = [{"review": "good"}]
    assert cp.classify(rows, "review", endpoint=server.url)[0]["label"]
    (tmp_path / "in.csv").write_text("review\ngood\n")
    result = cp.run(
        tmp_path / "in.csv", tmp_path / "out.parquet", "review", endpoint=server.url, overwrite=True
    )
    assert result.to_pandas()["error"].isna().all()


def test_a_keyword_that_is_none_is_refused_with_the_nearest_one(server):
    for call in (cp.classify, cp.run):
        with pytest.raises(SettingsError, match=r"batchsize: no such setting. Did you mean batch_"):
            call(["good"], endpoint=server.url, batchsize=3)
        with pytest.raises(SettingsError, match="the token is never a setting"):
            call(["good"], endpoint=server.url, token="x")
    assert server.requests == []


def test_a_setting_beside_a_config_is_refused(server, write_csv, tmp_path):
    config = cp.RunConfig(
        input=str(write_csv("in.csv", ["good"])), output=tmp_path / "o.parquet", endpoint=server.url
    )
    with pytest.raises(SettingsError, match="`limit`: given beside a RunConfig"):
        cp.run(config, limit=1)
    assert server.requests == []
    assert cp.run(config).exit_code == 0


def test_types_are_checked(tmp_path):
    """A wrong keyword or value is an error of mypy, as it is in an editor."""
    (tmp_path / "use.py").write_text(
        "import classify_pipeline as cp\n"
        "cp.classify([], 'review', endpoint=['http://a', 'http://b'], timeout_s='90s')\n"
        "result = cp.run('in.csv', 'out.parquet', model='org/name', batch_size='auto')\n"
        "print(result.exit_code + 1)\n"
        "cp.classify([], batchsize=3)\n"
        "cp.classify([], batch_size='many')\n"
        "cp.classify([], rate='fast')\n"
    )
    root = str(pipeline.__path__[0]).removesuffix("pipeline")
    # With the options and the cache of `make lint`, since the whole package is checked, too.
    options = ["--config-file", f"{root}pyproject.toml", "--cache-dir", f"{root}.mypy_cache"]
    command = [sys.executable, "-m", "mypy", "use.py", *options]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"MYPYPATH": root}
    )
    found = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    lines = [line for file, line in found if file == "use.py"]
    assert lines == ["5", "6", "7"], done.stdout + done.stderr
