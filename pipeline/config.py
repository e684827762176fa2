"""RunConfig: one flat, validated set of settings.

A setting `batch_size` is the flag `--batch-size`, the YAML key `batch_size`, the environment
variable `CLASSIFY_BATCH_SIZE` and the keyword `batch_size=` in Python. Precedence: flag, then
environment, then file, then default. The token is deliberately not a setting (see `client.token`).
"""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline import addresses
from pipeline.config_checks import check_together, names_beside_gold, with_effect
from pipeline.config_file import read_config_file
from pipeline.config_values import (
    COLUMN,
    COUNT,
    DIALECTS,
    DURATION,
    PATH,
    PLACE,
    SWITCH,
    Count,
    DialectName,
    Endpoints,
    HeaderPlaces,
    LabelMap,
    Labels,
    MaxErrors,
    Name,
    PerSecond,
    Place,
    PromFile,
    Seconds,
    Share,
    Takes,
    described,
    one_or_many,
)
from pipeline.errors import SettingsError
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_PREFIX = "CLASSIFY_"
# What stands for the addresses where a run is compared with an earlier one.
SEVERAL = "several addresses"


class RunConfig(BaseModel):
    """The settings of one run. Raises SettingsError for anything unknown or impossible."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)

    input: Annotated[tuple[Name, ...], BeforeValidator(one_or_many), Field(min_length=1)] = (
        described(
            "files, globs or directories of .parquet, .csv, .tsv, .jsonl (text also .gz or .zst) "
            "and .arrow, or - for standard input; local or at s3://, gs://, abfs://, hf:// or "
            "https://",
            "paths or addresses",
        )
    )
    output: Place = described(
        "a .parquet, .csv or .jsonl file (text also .gz or .zst), or a directory for several "
        ".parquet files; local or at s3://, gs://, abfs:// or hf://",
        PLACE,
    )
    run_dir: Place | None = described(
        "state of the run, local or at s3://, gs:// or abfs://; OUTPUT.run by default, required "
        "for an output on the Hub",
        PLACE,
        None,
    )
    text: Name = described("column to classify", COLUMN, "text")
    text_pair: Name | None = described("second column, for models of pairs", COLUMN, None)
    endpoint: Endpoints = described(
        "`local` (embedded), `hf` (serverless), or a URL; several URLs of one model share the work",
        Takes("local, hf, or URLs with http:// or https://", "URL"),
        "hf",
    )
    model: Name | None = described(
        "model id, required with `hf`; with `local`: sentiment (the default), language, or the "
        "directory of a saved transformers model",
        "a model id such as org/name",
        None,
    )
    dialect: DialectName = described(
        "request format of the server; auto detects it", ", ".join(("auto", *DIALECTS)), "auto"
    )
    top_k: Literal["all"] | Count = described(
        "labels per row; over 1 adds the column of predictions", "1, 2, ... or all", 1
    )
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = described(
        "how logits become scores", "sigmoid, softmax, none", None
    )
    bill_to: Name | None = described("organisation that pays", "an organisation's name", None)
    token_file: Path | None = described("file with the token, if HF_TOKEN is unset", PATH, None)
    header_from: HeaderPlaces = described(
        "headers for a gateway, each with the place of its secret",
        Takes("NAME=env:VARIABLE or NAME=file:PATH, or a mapping of these", "NAME=PLACE"),
        None,
    )
    allow_drift: bool = described("continue if the model's revision changes", SWITCH, default=False)
    truncate: bool = described(
        "let the server truncate long texts, otherwise errors", SWITCH, default=False
    )
    exact_scores: bool = described(
        "never let the server pad texts into one batch, which may be faster but changes the last "
        "digits of scores",
        SWITCH,
        default=False,
    )
    server_cache: bool = described(
        "false sends x-use-cache: false, for nondeterministic models", SWITCH, default=True
    )
    batch_size: Literal["auto"] | Count = described(
        "texts a request; auto measures what is best",
        "1, 2, ... or auto",
        "auto",
    )
    concurrency: Count = described("most requests in flight; fewer if more do not help", COUNT, 32)
    rate: PerSecond | None = described(
        "most requests a second, retries included",
        Takes("a number from 0.000001 to 10^12", "N"),
        None,
    )
    timeout_s: Seconds = described("limit of one attempt, to the last byte", DURATION, 120.0)
    max_loading_s: Seconds = described("longest wait for a loading model", DURATION, 1800.0)
    max_outage_s: Seconds = described("longest wait for an endpoint that is down", DURATION, 600.0)
    dedup: bool = described("send identical inputs once", SWITCH, default=True)
    cache: Path | None = described("file of answers shared between runs", PATH, None)
    max_errors: MaxErrors | None = described(
        "rows that may fail before the run stops",
        Takes("a number of rows, or a share such as 1%", "N"),
        None,
    )
    deadline: Seconds | None = described("stop resumably after this time", DURATION, None)
    max_requests: Count | None = described("stop resumably after this many requests", COUNT, None)
    grace_s: Seconds = described(
        "after a signal, longest wait for answers in flight", DURATION, 30.0
    )
    metrics_file: PromFile | None = described(
        "metrics for the node exporter's textfile collector",
        Takes("a path that ends with .prom", "PATH"),
        None,
    )
    limit: Count | None = described("take the first rows only", COUNT, None)
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = described(
        "CSV delimiter; by default a comma, in .tsv a tab",
        Takes("one character", "CHAR"),
        None,
    )
    encoding: Name = described(
        "CSV encoding; auto: UTF-8, or UTF-16 and UTF-32 with a byte order mark",
        "auto, or a codec name such as latin-1",
        "auto",
    )
    csv_escape: Annotated[str, Field(min_length=1, max_length=1)] | None = described(
        "CSV escape character, such as the backslash of Spark and MySQL",
        Takes("one character", "CHAR"),
        None,
    )
    label_column: Name = described("column of the label", COLUMN, "label")
    score_column: Name = described("column of the score", COLUMN, "score")
    error_column: Name = described("column of the error", COLUMN, "error")
    predictions_column: Name = described("column of all predictions", COLUMN, "predictions")
    label_map: LabelMap = described(
        "other names for labels in the output; a label without one keeps its own",
        Takes("LABEL=NAME, or a mapping of these, with names that differ", "LABEL=NAME"),
        None,
    )
    threshold: Share | None = described(
        "score below which the label is that of `unsure_label`",
        Takes("a number from 0 to 1", "SCORE"),
        None,
    )
    unsure_label: Name = described(
        "label of rows with a score below the threshold", Takes("a label", "LABEL"), "unsure"
    )
    score_labels: Labels = described(
        "labels, as the output names them, that each get a column of scores, such as "
        "`score_positive`; if `top_k` is 1, all labels are requested",
        Takes("labels, such as positive", "LABEL"),
        None,
    )
    gold: Name | None = described(
        "column of true labels to measure those of the model by; if it is `label`, the output's "
        "columns are `predicted_label`, `predicted_score`, `predicted_error`",
        COLUMN,
        None,
    )
    engine: Literal["local", "processes", "ray"] = described(
        "what sends requests: this process, several processes, or a Ray cluster",
        "local, processes, ray",
        "local",
    )
    workers: Count = described("processes or Ray actors; they share concurrency and rate", COUNT, 1)
    ray_address: Name | None = described(
        "Ray cluster; by default the one of this machine",
        Takes("host:port or auto", "ADDRESS"),
        None,
    )

    # What decides the labels: a run continues only where these are what they were. `limit` is
    # among them since it decides which rows there are; how CSV is read is part of the plan. All
    # others may change between attempts.
    RESULT_SETTINGS: ClassVar[tuple[str, ...]] = (
        *("text", "text_pair", "endpoint", "model", "top_k", "function_to_apply", "truncate"),
        *("exact_scores", "limit"),
        *("label_column", "score_column", "error_column", "predictions_column"),
        *("label_map", "threshold", "unsure_label", "score_labels"),
    )
    # Of these, what decides an answer, what is asked, and what only how answers are shown. With
    # another of RESULT_SETTINGS that does not decide what is asked, known answers stand.
    ANSWER_SETTINGS: ClassVar[tuple[str, ...]] = (
        *("endpoint", "model", "top_k", "function_to_apply", "truncate", "exact_scores"),
    )
    ASKED_SETTINGS: ClassVar[tuple[str, ...]] = (*ANSWER_SETTINGS, "text", "text_pair")
    SHOWN_SETTINGS: ClassVar[tuple[str, ...]] = (
        *("label_map", "threshold", "unsure_label", "score_labels"),
    )

    def __init__(self, **settings: Any) -> None:
        for key in settings:
            if key not in type(self).model_fields:
                raise unknown(key)
        if settings.get("endpoint", "hf") == "hf" and isinstance(settings.get("model"), str):
            # Before anything reads it, so that the same model is always the same run.
            settings["model"] = addresses.plain_model_id(settings["model"])
        if settings.get("score_labels") and settings.get("top_k", 1) in (1, "1"):
            settings["top_k"] = "all"
        settings |= names_beside_gold(settings)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise _not_allowed(error, settings) from None
        check_together(self)

    @property
    def output_path(self) -> Path | None:
        """The output, unless it is at an address."""
        return self.output if isinstance(self.output, Path) else None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The endpoint, or each of several."""
        return (self.endpoint,) if isinstance(self.endpoint, str) else self.endpoint

    def at(self, address: str) -> RunConfig:
        """Return the settings of a run with one of the addresses."""
        return self.model_copy(update={"endpoint": address})

    @property
    def is_list(self) -> bool:
        """True if addresses are given as a list, even of one: they may change between attempts."""
        return not isinstance(self.endpoint, str)

    @property
    def wants_predictions(self) -> bool:
        """True if the output has the column of all predictions."""
        return self.top_k != 1

    def score_columns(self) -> dict[str, str]:
        """Return the labels that have a column of their scores, each with its name."""
        return {label: f"{self.score_column}_{label}" for label in self.score_labels or ()}

    @property
    def model_id(self) -> str | None:
        """The model asked for; the embedded endpoint has a default."""
        return self.model or ("sentiment" if self.endpoint == "local" else None)

    @property
    def public_endpoint(self) -> str:
        """The endpoint without the keys in its query: what is shown, recorded and compared."""
        return ", ".join(map(addresses.public, self.addresses))

    @property
    def host(self) -> str:
        """The host of the endpoint; the name of a list, since the addresses may change."""
        if isinstance(self.endpoint, str):
            return urlsplit(self.endpoint).netloc or self.endpoint
        return SEVERAL

    @property
    def texts_per_request(self) -> int:
        """How many texts the first requests have; TEI's own maximum, 32, suits all servers."""
        return 32 if self.batch_size == "auto" else self.batch_size

    @property
    def most_texts(self) -> int:
        """How many texts a request may come to have."""
        return 512 if self.batch_size == "auto" else self.batch_size

    def result_settings(self) -> dict[str, Any]:
        """Return the settings that change results, as plain JSON values."""
        dumped = self.model_dump(mode="json", include=set(self.RESULT_SETTINGS))
        for key in ("exact_scores", *self.SHOWN_SETTINGS):
            # As in the records, and under the keys of answers, of versions that did not have it.
            if dumped[key] == type(self).model_fields[key].default:
                del dumped[key]
        dumped = with_effect(dumped)
        endpoint = SEVERAL if self.is_list else self.public_endpoint
        return {**dumped, "endpoint": endpoint, "model": self.model_id}

    def allowed_errors(self, rows: int) -> int | None:
        """How many of `rows` may fail; None for any number."""
        if isinstance(self.max_errors, str):
            return int(rows * float(self.max_errors[:-1]) / 100)
        return self.max_errors

    @classmethod
    def load(
        cls,
        flags: Mapping[str, Any],
        *,
        file: Path | None = None,
        environ: Mapping[str, str],
        defaults: Mapping[str, Any] | None = None,
    ) -> Self:
        """Merge flags over the environment over a YAML file over the defaults.

        A flag that was not given is absent from `flags`; `defaults` stand for settings that have
        none. Raises SettingsError, with the place that an unknown setting came from.
        """
        from_file = read_config_file(file) if file else {}
        from_env = {
            name.removeprefix(ENV_PREFIX).lower(): value
            for name, value in environ.items()
            if name.startswith(ENV_PREFIX)
        }
        for where, settings in ((str(file), from_file), ("the environment", from_env)):
            for key in settings:
                if key not in cls.model_fields:
                    raise unknown(key, f" in {where}")
        return cls(**{**(defaults or {}), **from_file, **from_env, **flags})


def takes(key: str) -> Takes:
    """Return which values a setting takes."""
    extra = RunConfig.model_fields[key].json_schema_extra
    assert isinstance(extra, dict)
    return Takes(*cast("Takes", extra["takes"]))


def unknown(key: str, where: str = "") -> SettingsError:
    """Return the error of a setting that there is none of; it names the nearest one."""
    if "token" in key.lower() and "file" not in key.lower():
        return SettingsError(
            f"{key}{where}: the token is never a setting, so that it cannot end up in a file or a "
            "process list.",
            "Put it into the environment variable HF_TOKEN, or into a token_file.",
        )
    near = difflib.get_close_matches(key.replace("-", "_").lower(), RunConfig.model_fields, 1, 0.5)
    fix = f"Did you mean {near[0]}?" if near else ""
    return SettingsError(f"{key}: no such setting{where}.", fix)


def _not_allowed(error: ValidationError, settings: Mapping[str, Any]) -> SettingsError:
    """Word what pydantic found: setting, value and what is allowed; of several, a line each."""
    found = {}
    for problem in error.errors():
        key = str(problem["loc"][0])
        if problem["type"] == "missing":
            found[key] = (f"{setting(key)}: required.", f"Give {takes(key).words}.")
        else:
            given = settings[key]
            if key == "endpoint":  # its query may hold a key
                several = given if isinstance(given, list | tuple) else str(given).split()
                given = " ".join(addresses.without_query(str(each)) for each in several)
            if isinstance(given, tuple):  # as arguments come
                given = " ".join(map(str, given))
            what = f"{setting(key)}: {_shortened(given)} is not allowed."
            found[key] = (what, f"It takes {takes(key).words}.")
    if len(found) == 1:
        return SettingsError(*found.popitem()[1])
    return SettingsError("\n".join(map(" ".join, found.values())))


def _shortened(value: Any) -> str:
    """Return what `repr` does, cut short: aliases can make a few lines of YAML a gigabyte."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict = 2, 4, 4
    short.maxstring = short.maxother = 200
    return short.repr(value)
