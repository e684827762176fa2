"""The help of commands that take settings."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.cli.settings import GROUPS
from pipeline.config import RunConfig


@pytest.mark.parametrize("command", ["run", "plan", "probe", "try"])
def test_settings_are_in_groups(command):
    """The command's own options come first, then the settings that most jobs need."""
    told = CliRunner().invoke(main, [command, "--help"]).stdout
    titles = re.findall(r"^(\w[\w ]+):$", told, re.MULTILINE)
    assert [title for title in titles if title in GROUPS] == list(GROUPS)
    assert titles.index("Options") < titles.index("Common settings")
    for key in set(RunConfig.model_fields) - {"input", "output"}:
        assert re.search(rf"^  --{key.replace('_', '-')}\b", told, re.MULTILINE), key


def test_each_setting_is_in_one_group():
    grouped = [key for keys in GROUPS.values() for key in keys]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(RunConfig.model_fields) - {"input", "output"} | {"config_file"}
    assert len(GROUPS["Common settings"]) == 10
