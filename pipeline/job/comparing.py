"""What a run that is recorded has in common with the one that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.config import RunConfig
from pipeline.config_checks import with_effect
from pipeline.producer import InputTable

if TYPE_CHECKING:
    from pipeline.store import RunState


def recorded_input(state: RunState) -> InputTable:
    """Return the input that is recorded."""
    return InputTable.from_json(state.run.input)


def changed(was: RunState, config: RunConfig) -> dict[str, str]:
    """Say of each setting that decides results and is another one now, what it is and was."""
    before, now = with_effect(was.run.settings), config.result_settings()

    def value(settings: dict[str, Any], key: str) -> Any:
        field = RunConfig.model_fields.get(key)
        return settings.get(key, None if field is None else field.default)

    return {
        key: f"{key}: {value(now, key)!r}, was {value(before, key)!r}"
        for key in now | before
        if value(now, key) != value(before, key)
    }


def asks_alike(was: RunState, config: RunConfig) -> bool:
    """Return True if known answers stand: no setting that decides what is asked is another one."""
    return changed(was, config).keys().isdisjoint(config.ASKED_SETTINGS)


def differences(was: RunState, config: RunConfig, table: InputTable | None = None) -> str:
    """List how the settings, and `table` if given, differ from what was recorded; "" if not."""
    found = [*changed(was, config).values()]
    found += table.differences(recorded_input(was)) if table is not None else []
    return "\n".join(f"  {difference}" for difference in found)
