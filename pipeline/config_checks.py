"""Which settings go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline import addresses
from pipeline.errors import SettingsError
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.config import RunConfig


def check_together(config: RunConfig) -> None:
    """Refuse settings that are possible alone but not together. Raises SettingsError."""
    if config.endpoint == "hf" and config.model is None:
        raise SettingsError(
            f"{setting('model')}: required with the endpoint `hf`.",
            f"Name one ({setting('model', 'org/name')}), or try without an account: "
            f"{setting('endpoint', 'local')} and {setting('model', 'sentiment')}.",
        )
    if config.endpoint == "hf" and config.model is not None:
        addresses.check_model_id(config.model)
    for address in config.addresses:
        addresses.check_address(address)
    if config.is_list:
        _check_list(config)
    if config.bill_to is not None and not (
        config.bill_to.isascii() and config.bill_to.isprintable()
    ):
        raise SettingsError(
            f"{setting('bill_to')}: {config.bill_to!r} is not allowed.", "It takes a plain name."
        )
    if config.cache is not None and not config.dedup:
        raise SettingsError(
            f"{setting('cache')}: needs {setting('dedup')}, which is false: a cached answer "
            "stands for every row with that text.",
            "Drop one of the two.",
        )
    _check_workers(config)
    _check_names(config)
    names = [config.label_column, config.score_column, config.error_column]
    names += [config.predictions_column] if config.wants_predictions else []
    names += config.score_columns().values()
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"{name!r} names two output columns.", "Give each its own name.")


def names_beside_gold(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return names of the output's columns that leave the name of the true labels free.

    Of those that have another name already, none.
    """
    names = {f"{kind}_column": kind for kind in ("label", "score", "error")}
    if settings.get("gold") not in names.values():
        return {}
    return {
        key: f"predicted_{kind}" for key, kind in names.items() if settings.get(key, kind) == kind
    }


def with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that others leave without effect."""
    idle = set()
    if settings.get("threshold") is None:
        idle.add("unsure_label")
    if settings.get("top_k", 1) == 1:
        idle.add("predictions_column")
    return {key: value for key, value in settings.items() if key not in idle}


def _check_list(config: RunConfig) -> None:
    if config.model is None:
        raise SettingsError(
            f"{setting('model')}: required with a list of addresses, since it is what stored "
            "answers are known by: addresses may come and go.",
            f"Name the model that they serve: {setting('model', 'org/name')}.",
        )
    if config.concurrency < len(config.addresses):
        raise SettingsError(
            f"{setting('concurrency')}: {config.concurrency} is less than the "
            f"{len(config.addresses)} addresses, which share it.",
            f"Raise it to {len(config.addresses)} at least.",
        )


def _check_names(config: RunConfig) -> None:
    """Refuse names of labels that hide one of them."""
    label_map = config.label_map or {}
    label_of: dict[str, str] = {}
    for label, name in label_map.items():
        if name in label_of:
            raise SettingsError(
                f"{setting('label_map')}: {label_of[name]!r} and {label!r} would both be called "
                f"{name!r}, and their scores could not be told apart.",
                "Give each label a name of its own.",
            )
        label_of[name] = label
    if config.threshold is not None and config.unsure_label in label_of:
        raise SettingsError(
            f"{setting('unsure_label')}: {setting('label_map')} calls the label "
            f"{label_of[config.unsure_label]!r} {config.unsure_label!r}, too, so that rows with a "
            "score below the threshold could not be told apart from it.",
            "Give one of the two another name.",
        )
    for label in config.score_labels or ():
        if label in label_map and label not in label_of:
            raise SettingsError(
                f"{setting('score_labels')}: {setting('label_map')} calls the label {label!r} "
                f"{label_map[label]!r}.",
                f"Give its name: {setting('score_labels', label_map[label])}.",
            )


def _check_workers(config: RunConfig) -> None:
    if config.engine == "local" and config.workers > 1:
        raise SettingsError(
            f"{setting('workers')}: {config.workers} need an engine that has workers.",
            f"Set {setting('engine', 'processes')} or {setting('engine', 'ray')}.",
        )
    if config.workers > config.concurrency:
        raise SettingsError(
            f"{setting('workers')}: {config.workers} are more than the requests in flight, of "
            f"which {setting('concurrency')} allows {config.concurrency}.",
            "Lower one or raise the other.",
        )
    if config.ray_address is not None and config.engine != "ray":
        raise SettingsError(
            f"{setting('ray_address')}: the engine is {config.engine}.",
            f"Set {setting('engine', 'ray')}, or drop the address.",
        )
    if config.ray_address is not None and "://" in config.ray_address:
        raise SettingsError(
            f"{setting('ray_address')}: {config.ray_address} is not an address of a cluster.",
            "Give host:port, and run the command on a machine of the cluster, or submit it "
            "with `ray job submit`.",
        )
    if config.engine == "ray" and config.endpoint == "local":
        raise SettingsError(
            f"{setting('endpoint', 'local')}: other machines cannot reach an endpoint that is "
            "embedded in this one.",
            f"Set {setting('engine', 'processes')}, or give the URL of an endpoint.",
        )
