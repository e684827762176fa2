"""The config file: YAML, in which nothing is taken silently for something else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; YAML's own rule is that the last one wins."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config_file(file: Path) -> dict[str, Any]:
    """Return what a YAML file gives to each key; empty for an empty file.

    Raises SettingsError for a file that cannot be read or is no mapping.
    """
    try:
        with file.open(encoding="utf-8") as text:
            content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise SettingsError(f"{file}: cannot read the config file: {error.strerror}.") from None
    except RecursionError:
        raise SettingsError(f"{file}: the config file is nested too deeply.") from None
    except Exception as error:  # noqa: BLE001 - of a date or a number, whatever Python says of it
        words = " ".join(str(error).split()).rstrip(".")
        raise SettingsError(f"{file}: the config file cannot be read as YAML: {words}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{file} is not a mapping.", "It must hold `setting: value` lines.")
    return content
