"""The functions of the library, each setting a keyword.

Written by `make docs`, not by hand. What they do is in `api`; what settings are, in `config`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pipeline import api

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.config import RunConfig
    from pipeline.events import Observer
    from pipeline.result import RunResult


@api.checked
def classify(
    table: Any,
    text: str = "text",
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    run_dir: str | Path | None = None,
    text_pair: str | None = None,
    endpoint: str | Sequence[str] = "hf",
    model: str | None = None,
    dialect: Literal[
        "auto", "hf", "infinity", "mlflow", "sglang", "single", "tei", "vertex", "vllm"
    ] = "auto",
    top_k: Literal["all"] | int = 1,
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None,
    bill_to: str | None = None,
    token_file: str | Path | None = None,
    header_from: Mapping[str, str] | None = None,
    allow_drift: bool = False,
    truncate: bool = False,
    exact_scores: bool = False,
    server_cache: bool = True,
    batch_size: Literal["auto"] | int = "auto",
    concurrency: int = 32,
    rate: float | None = None,
    timeout_s: float | str = 120.0,
    max_loading_s: float | str = 1800.0,
    max_outage_s: float | str = 600.0,
    dedup: bool = True,
    cache: str | Path | None = None,
    max_errors: int | str | None = None,
    deadline: float | str | None = None,
    max_requests: int | None = None,
    grace_s: float | str = 30.0,
    metrics_file: str | Path | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    encoding: str = "auto",
    csv_escape: str | None = None,
    label_column: str = "label",
    score_column: str = "score",
    error_column: str = "error",
    predictions_column: str = "predictions",
    label_map: Mapping[str, str] | None = None,
    threshold: float | None = None,
    unsure_label: str = "unsure",
    score_labels: str | Sequence[str] | None = None,
    gold: str | None = None,
    engine: Literal["local", "processes", "ray"] = "local",
    workers: int = 1,
    ray_address: str | None = None,
) -> Any:
    """Label a table in memory and return the same kind of table, with the result columns.

    `table` is a pandas or polars DataFrame, a polars LazyFrame, a pyarrow Table, a DuckDB relation,
    a datasets.Dataset, or anything else that offers the Arrow PyCapsule interface; a list of
    dicts; or texts alone, as a list or a Series: these give a table of label, score and error.

    Args:
        table: The table, or the texts.
        text: The column to classify.
        checkpoint: A directory that keeps what was done if the call is interrupted; the same call
            continues it. With another `threshold`, `label_map` or column name, or a higher `limit`,
            its answers are used again. Without, what was answered is kept in a temporary
            directory, which the error names.
        progress: Show how far the call is; left out, in a notebook only.
        run_dir: State of the run, local or at s3://, gs:// or abfs://; OUTPUT.run by default,
            required for an output on the Hub. Takes a path or an address.
        text_pair: Second column, for models of pairs.
        endpoint: `local` (embedded), `hf` (serverless), or a URL; several URLs of one model share
            the work. Takes local, hf, or URLs with http:// or https://.
        model: Model id, required with `hf`; with `local`: sentiment (the default), language, or the
            directory of a saved transformers model. Takes a model id such as org/name.
        dialect: Request format of the server; auto detects it. Takes auto, hf, infinity, mlflow,
            sglang, single, tei, vertex, vllm.
        top_k: Labels per row; over 1 adds the column of predictions. Takes 1, 2, ... or all.
        function_to_apply: How logits become scores. Takes sigmoid, softmax, none.
        bill_to: Organisation that pays. Takes an organisation's name.
        token_file: File with the token, if HF_TOKEN is unset.
        header_from: Headers for a gateway, each with the place of its secret. Takes
            NAME=env:VARIABLE or NAME=file:PATH, or a mapping of these.
        allow_drift: Continue if the model's revision changes.
        truncate: Let the server truncate long texts, otherwise errors.
        exact_scores: Never let the server pad texts into one batch, which may be faster but changes
            the last digits of scores.
        server_cache: False sends x-use-cache: false, for nondeterministic models.
        batch_size: Texts a request; auto measures what is best. Takes 1, 2, ... or auto.
        concurrency: Most requests in flight; fewer if more do not help. Takes a whole number from 1
            to 10^12.
        rate: Most requests a second, retries included. Takes a number from 0.000001 to 10^12.
        timeout_s: Limit of one attempt, to the last byte. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_loading_s: Longest wait for a loading model. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_outage_s: Longest wait for an endpoint that is down. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        dedup: Send identical inputs once.
        cache: File of answers shared between runs.
        max_errors: Rows that may fail before the run stops. Takes a number of rows, or a share such
            as 1%.
        deadline: Stop resumably after this time. Takes seconds above 0, 10^9 at most, or a duration
            such as 90s, 30m, 7h.
        max_requests: Stop resumably after this many requests. Takes a whole number from 1 to 10^12.
        grace_s: After a signal, longest wait for answers in flight. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        metrics_file: Metrics for the node exporter's textfile collector. Takes a path that ends
            with .prom.
        limit: Take the first rows only. Takes a whole number from 1 to 10^12.
        delimiter: CSV delimiter; by default a comma, in .tsv a tab. Takes one character.
        encoding: CSV encoding; auto: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Takes
            auto, or a codec name such as latin-1.
        csv_escape: CSV escape character, such as the backslash of Spark and MySQL. Takes one
            character.
        label_column: Column of the label.
        score_column: Column of the score.
        error_column: Column of the error.
        predictions_column: Column of all predictions.
        label_map: Other names for labels in the output; a label without one keeps its own. Takes
            LABEL=NAME, or a mapping of these, with names that differ.
        threshold: Score below which the label is that of `unsure_label`. Takes a number from 0 to
            1.
        unsure_label: Label of rows with a score below the threshold. Takes a label.
        score_labels: Labels, as the output names them, that each get a column of scores, such as
            `score_positive`; if `top_k` is 1, all labels are requested. Takes labels, such as
            positive.
        gold: Column of true labels to measure those of the model by; if it is `label`, the output's
            columns are `predicted_label`, `predicted_score`, `predicted_error`.
        engine: What sends requests: this process, several processes, or a Ray cluster. Takes local,
            processes, ray.
        workers: Processes or Ray actors; they share concurrency and rate. Takes a whole number from
            1 to 10^12.
        ray_address: Ray cluster; by default the one of this machine. Takes host:port or auto.

    Returns:
        The table with the columns `label`, `score` and `error` appended.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do.
    """
    __tracebackhide__ = True
    settings = api.settings_of(locals())
    return api.classify(table, settings, checkpoint=checkpoint, progress=progress)


@api.checked
async def aclassify(
    table: Any,
    text: str = "text",
    *,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    run_dir: str | Path | None = None,
    text_pair: str | None = None,
    endpoint: str | Sequence[str] = "hf",
    model: str | None = None,
    dialect: Literal[
        "auto", "hf", "infinity", "mlflow", "sglang", "single", "tei", "vertex", "vllm"
    ] = "auto",
    top_k: Literal["all"] | int = 1,
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None,
    bill_to: str | None = None,
    token_file: str | Path | None = None,
    header_from: Mapping[str, str] | None = None,
    allow_drift: bool = False,
    truncate: bool = False,
    exact_scores: bool = False,
    server_cache: bool = True,
    batch_size: Literal["auto"] | int = "auto",
    concurrency: int = 32,
    rate: float | None = None,
    timeout_s: float | str = 120.0,
    max_loading_s: float | str = 1800.0,
    max_outage_s: float | str = 600.0,
    dedup: bool = True,
    cache: str | Path | None = None,
    max_errors: int | str | None = None,
    deadline: float | str | None = None,
    max_requests: int | None = None,
    grace_s: float | str = 30.0,
    metrics_file: str | Path | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    encoding: str = "auto",
    csv_escape: str | None = None,
    label_column: str = "label",
    score_column: str = "score",
    error_column: str = "error",
    predictions_column: str = "predictions",
    label_map: Mapping[str, str] | None = None,
    threshold: float | None = None,
    unsure_label: str = "unsure",
    score_labels: str | Sequence[str] | None = None,
    gold: str | None = None,
    engine: Literal["local", "processes", "ray"] = "local",
    workers: int = 1,
    ray_address: str | None = None,
) -> Any:
    """Label a table in memory and return the same kind of table, with the result columns.

    `table` is a pandas or polars DataFrame, a polars LazyFrame, a pyarrow Table, a DuckDB relation,
    a datasets.Dataset, or anything else that offers the Arrow PyCapsule interface; a list of
    dicts; or texts alone, as a list or a Series: these give a table of label, score and error.

    It does not block the event loop. The table is read in a thread: leave it as it is until this
    returns. An interrupt in a notebook is a cancellation, which does not wait for what is in
    flight: what was answered is kept.

    Args:
        table: The table, or the texts.
        text: The column to classify.
        checkpoint: A directory that keeps what was done if the call is interrupted; the same call
            continues it. With another `threshold`, `label_map` or column name, or a higher `limit`,
            its answers are used again. Without, what was answered is kept in a temporary
            directory, which the error names.
        progress: Show how far the call is; left out, in a notebook only.
        run_dir: State of the run, local or at s3://, gs:// or abfs://; OUTPUT.run by default,
            required for an output on the Hub. Takes a path or an address.
        text_pair: Second column, for models of pairs.
        endpoint: `local` (embedded), `hf` (serverless), or a URL; several URLs of one model share
            the work. Takes local, hf, or URLs with http:// or https://.
        model: Model id, required with `hf`; with `local`: sentiment (the default), language, or the
            directory of a saved transformers model. Takes a model id such as org/name.
        dialect: Request format of the server; auto detects it. Takes auto, hf, infinity, mlflow,
            sglang, single, tei, vertex, vllm.
        top_k: Labels per row; over 1 adds the column of predictions. Takes 1, 2, ... or all.
        function_to_apply: How logits become scores. Takes sigmoid, softmax, none.
        bill_to: Organisation that pays. Takes an organisation's name.
        token_file: File with the token, if HF_TOKEN is unset.
        header_from: Headers for a gateway, each with the place of its secret. Takes
            NAME=env:VARIABLE or NAME=file:PATH, or a mapping of these.
        allow_drift: Continue if the model's revision changes.
        truncate: Let the server truncate long texts, otherwise errors.
        exact_scores: Never let the server pad texts into one batch, which may be faster but changes
            the last digits of scores.
        server_cache: False sends x-use-cache: false, for nondeterministic models.
        batch_size: Texts a request; auto measures what is best. Takes 1, 2, ... or auto.
        concurrency: Most requests in flight; fewer if more do not help. Takes a whole number from 1
            to 10^12.
        rate: Most requests a second, retries included. Takes a number from 0.000001 to 10^12.
        timeout_s: Limit of one attempt, to the last byte. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_loading_s: Longest wait for a loading model. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_outage_s: Longest wait for an endpoint that is down. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        dedup: Send identical inputs once.
        cache: File of answers shared between runs.
        max_errors: Rows that may fail before the run stops. Takes a number of rows, or a share such
            as 1%.
        deadline: Stop resumably after this time. Takes seconds above 0, 10^9 at most, or a duration
            such as 90s, 30m, 7h.
        max_requests: Stop resumably after this many requests. Takes a whole number from 1 to 10^12.
        grace_s: After a signal, longest wait for answers in flight. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        metrics_file: Metrics for the node exporter's textfile collector. Takes a path that ends
            with .prom.
        limit: Take the first rows only. Takes a whole number from 1 to 10^12.
        delimiter: CSV delimiter; by default a comma, in .tsv a tab. Takes one character.
        encoding: CSV encoding; auto: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Takes
            auto, or a codec name such as latin-1.
        csv_escape: CSV escape character, such as the backslash of Spark and MySQL. Takes one
            character.
        label_column: Column of the label.
        score_column: Column of the score.
        error_column: Column of the error.
        predictions_column: Column of all predictions.
        label_map: Other names for labels in the output; a label without one keeps its own. Takes
            LABEL=NAME, or a mapping of these, with names that differ.
        threshold: Score below which the label is that of `unsure_label`. Takes a number from 0 to
            1.
        unsure_label: Label of rows with a score below the threshold. Takes a label.
        score_labels: Labels, as the output names them, that each get a column of scores, such as
            `score_positive`; if `top_k` is 1, all labels are requested. Takes labels, such as
            positive.
        gold: Column of true labels to measure those of the model by; if it is `label`, the output's
            columns are `predicted_label`, `predicted_score`, `predicted_error`.
        engine: What sends requests: this process, several processes, or a Ray cluster. Takes local,
            processes, ray.
        workers: Processes or Ray actors; they share concurrency and rate. Takes a whole number from
            1 to 10^12.
        ray_address: Ray cluster; by default the one of this machine. Takes host:port or auto.

    Returns:
        The table with the columns `label`, `score` and `error` appended.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do.
    """
    __tracebackhide__ = True
    settings = api.settings_of(locals())
    return await api.aclassify(table, settings, checkpoint=checkpoint, progress=progress)


@api.checked
def run(
    input: RunConfig | str | Path | Sequence[str | Path],  # noqa: A002 - the name of the setting
    output: str | Path | None = None,
    text: str = "text",
    *,
    progress: bool | None = None,
    observers: Sequence[Observer] = (),
    restart: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
    ask_again: bool = False,
    update: bool = False,
    run_dir: str | Path | None = None,
    text_pair: str | None = None,
    endpoint: str | Sequence[str] = "hf",
    model: str | None = None,
    dialect: Literal[
        "auto", "hf", "infinity", "mlflow", "sglang", "single", "tei", "vertex", "vllm"
    ] = "auto",
    top_k: Literal["all"] | int = 1,
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None,
    bill_to: str | None = None,
    token_file: str | Path | None = None,
    header_from: Mapping[str, str] | None = None,
    allow_drift: bool = False,
    truncate: bool = False,
    exact_scores: bool = False,
    server_cache: bool = True,
    batch_size: Literal["auto"] | int = "auto",
    concurrency: int = 32,
    rate: float | None = None,
    timeout_s: float | str = 120.0,
    max_loading_s: float | str = 1800.0,
    max_outage_s: float | str = 600.0,
    dedup: bool = True,
    cache: str | Path | None = None,
    max_errors: int | str | None = None,
    deadline: float | str | None = None,
    max_requests: int | None = None,
    grace_s: float | str = 30.0,
    metrics_file: str | Path | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    encoding: str = "auto",
    csv_escape: str | None = None,
    label_column: str = "label",
    score_column: str = "score",
    error_column: str = "error",
    predictions_column: str = "predictions",
    label_map: Mapping[str, str] | None = None,
    threshold: float | None = None,
    unsure_label: str = "unsure",
    score_labels: str | Sequence[str] | None = None,
    gold: str | None = None,
    engine: Literal["local", "processes", "ray"] = "local",
    workers: int = 1,
    ray_address: str | None = None,
) -> RunResult:
    """Label a table of files, as `classify run` does; the same call continues.

    Runs inside a running event loop too, in a thread of its own.

    Args:
        input: Files, globs or directories of .parquet, .csv, .tsv, .jsonl (text also .gz or .zst)
            and .arrow, or - for standard input; local or at s3://, gs://, abfs://, hf:// or
            https://. Or a RunConfig, which then has all settings.
        output: A .parquet, .csv or .jsonl file (text also .gz or .zst), or a directory for several
            .parquet files; local or at s3://, gs://, abfs:// or hf://.
        text: The column to classify.
        progress: Show how far the run is: a line below the cell in a notebook, elsewhere a bar or
            lines on stderr. Left out, it is shown in a notebook only.
        observers: Functions that get each event of the run (`pipeline.events`).
        restart: Discard an unfinished run but for its stored answers.
        overwrite: Replace a complete output.
        retry_failed: Ask again for the rows with an error, and for nothing else.
        ask_again: Discard stored answers, too.
        update: Label an input that has changed since: replace a complete output, and ask only for
            texts that it does not have.
        run_dir: State of the run, local or at s3://, gs:// or abfs://; OUTPUT.run by default,
            required for an output on the Hub. Takes a path or an address.
        text_pair: Second column, for models of pairs.
        endpoint: `local` (embedded), `hf` (serverless), or a URL; several URLs of one model share
            the work. Takes local, hf, or URLs with http:// or https://.
        model: Model id, required with `hf`; with `local`: sentiment (the default), language, or the
            directory of a saved transformers model. Takes a model id such as org/name.
        dialect: Request format of the server; auto detects it. Takes auto, hf, infinity, mlflow,
            sglang, single, tei, vertex, vllm.
        top_k: Labels per row; over 1 adds the column of predictions. Takes 1, 2, ... or all.
        function_to_apply: How logits become scores. Takes sigmoid, softmax, none.
        bill_to: Organisation that pays. Takes an organisation's name.
        token_file: File with the token, if HF_TOKEN is unset.
        header_from: Headers for a gateway, each with the place of its secret. Takes
            NAME=env:VARIABLE or NAME=file:PATH, or a mapping of these.
        allow_drift: Continue if the model's revision changes.
        truncate: Let the server truncate long texts, otherwise errors.
        exact_scores: Never let the server pad texts into one batch, which may be faster but changes
            the last digits of scores.
        server_cache: False sends x-use-cache: false, for nondeterministic models.
        batch_size: Texts a request; auto measures what is best. Takes 1, 2, ... or auto.
        concurrency: Most requests in flight; fewer if more do not help. Takes a whole number from 1
            to 10^12.
        rate: Most requests a second, retries included. Takes a number from 0.000001 to 10^12.
        timeout_s: Limit of one attempt, to the last byte. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_loading_s: Longest wait for a loading model. Takes seconds above 0, 10^9 at most, or a
            duration such as 90s, 30m, 7h.
        max_outage_s: Longest wait for an endpoint that is down. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        dedup: Send identical inputs once.
        cache: File of answers shared between runs.
        max_errors: Rows that may fail before the run stops. Takes a number of rows, or a share such
            as 1%.
        deadline: Stop resumably after this time. Takes seconds above 0, 10^9 at most, or a duration
            such as 90s, 30m, 7h.
        max_requests: Stop resumably after this many requests. Takes a whole number from 1 to 10^12.
        grace_s: After a signal, longest wait for answers in flight. Takes seconds above 0, 10^9 at
            most, or a duration such as 90s, 30m, 7h.
        metrics_file: Metrics for the node exporter's textfile collector. Takes a path that ends
            with .prom.
        limit: Take the first rows only. Takes a whole number from 1 to 10^12.
        delimiter: CSV delimiter; by default a comma, in .tsv a tab. Takes one character.
        encoding: CSV encoding; auto: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Takes
            auto, or a codec name such as latin-1.
        csv_escape: CSV escape character, such as the backslash of Spark and MySQL. Takes one
            character.
        label_column: Column of the label.
        score_column: Column of the score.
        error_column: Column of the error.
        predictions_column: Column of all predictions.
        label_map: Other names for labels in the output; a label without one keeps its own. Takes
            LABEL=NAME, or a mapping of these, with names that differ.
        threshold: Score below which the label is that of `unsure_label`. Takes a number from 0 to
            1.
        unsure_label: Label of rows with a score below the threshold. Takes a label.
        score_labels: Labels, as the output names them, that each get a column of scores, such as
            `score_positive`; if `top_k` is 1, all labels are requested. Takes labels, such as
            positive.
        gold: Column of true labels to measure those of the model by; if it is `label`, the output's
            columns are `predicted_label`, `predicted_score`, `predicted_error`.
        engine: What sends requests: this process, several processes, or a Ray cluster. Takes local,
            processes, ray.
        workers: Processes or Ray actors; they share concurrency and rate. Takes a whole number from
            1 to 10^12.
        ray_address: Ray cluster; by default the one of this machine. Takes host:port or auto.

    Returns:
        What came of it; shows itself in a notebook, and is a table to polars and DuckDB.

    Raises:
        ClassifyError: One of the tree in `pipeline.errors`, which says what to do. What was
            committed by then is kept.
    """
    __tracebackhide__ = True
    config = api.config_of(locals())
    return api.run(
        config,
        progress=progress,
        observers=observers,
        restart=restart,
        overwrite=overwrite,
        retry_failed=retry_failed,
        ask_again=ask_again,
        update=update,
    )
