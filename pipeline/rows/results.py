"""Results: the columns that a run appends, and a chunk that has them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, SettingsError
from pipeline.outcomes import RowError
from pipeline.rows.drift import NOBODY_TOLD, Revision
from pipeline.rows.shown import decided, renamed, score_columns, sharing_names
from pipeline.system.arrays import numbers, strings
from pipeline.wording import alike, listed, setting, short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.config import RunConfig
    from pipeline.outcomes import Outcome
    from pipeline.rows.inputs import Prepared

PREDICTIONS = pa.list_(pa.struct([("label", pa.string()), ("score", pa.float64())]))


@dataclass(frozen=True)
class Resolved:
    """A chunk with its result columns; `errors` of its rows have no label.

    `revision` is that of the model which gave the answers, as far as it was told. `share_names` are
    labels of the model that the output does not tell apart from others.
    """

    first_row: int
    table: pa.Table
    errors: int
    labels: dict[str, int]
    revision: Revision = NOBODY_TOLD
    share_names: frozenset[str] = frozenset()


def joined(chunks: Sequence[Resolved]) -> Resolved:
    """Return chunks that follow on one another as one."""
    if len(chunks) == 1:
        return chunks[0]
    labels: Counter[str] = Counter()
    for chunk in chunks:
        labels.update(chunk.labels)
    return Resolved(
        chunks[0].first_row,
        pa.concat_tables([chunk.table for chunk in chunks]),
        errors=sum(chunk.errors for chunk in chunks),
        labels=dict(labels),
        # The newest that was told: the last chunk may have been resolved before the first.
        revision=max(
            (chunk.revision for chunk in reversed(chunks)),
            key=lambda revision: (revision.told, revision.name is not None),
        ),
        share_names=frozenset().union(*(chunk.share_names for chunk in chunks)),
    )


def result_fields(config: RunConfig) -> list[pa.Field]:
    """Return the columns that a run appends, in order."""
    fields = [
        pa.field(config.label_column, pa.string()),
        pa.field(config.score_column, pa.float64()),
        pa.field(config.error_column, pa.string()),
    ]
    fields += [pa.field(name, pa.float64()) for name in config.score_columns().values()]
    if config.wants_predictions:
        fields.append(pa.field(config.predictions_column, PREDICTIONS))
    return fields


def labels_in(table: pa.Table, config: RunConfig) -> tuple[list[str], list[str]]:
    """Return the labels that labelled rows have, and those of `score_labels` that none has."""
    pairs = pc.list_flatten(table.column(config.predictions_column))
    given = pc.unique(pc.struct_field(pairs, "label")).to_pylist()
    return sorted(given), [label for label in config.score_labels or () if label not in given]


def output_schema(schema: pa.Schema, config: RunConfig) -> pa.Schema:
    """Return the schema of the output: all columns of the input, then the results."""
    return pa.schema([*schema, *result_fields(config)], schema.metadata)


def check_columns(schema: pa.Schema, config: RunConfig) -> None:
    """Refuse a missing or unfit column, and a name that the output would have twice.

    Raises InputError or SettingsError, before anything is sent.
    """
    check_gold(schema, config)
    for key, name in (("text", config.text), ("text_pair", config.text_pair)):
        if name is None:
            continue
        if name not in schema.names:
            raise SettingsError(
                f"{setting(key)}: the input has no column {name!r}. It has: "
                f"{listed(schema.names)}.{alike(name, schema.names)}",
                f"Name the column to classify with {setting(key)}.",
            )
        if not _is_text(schema.field(name).type):
            raise InputError(
                f"The column {short(name)!r} holds {schema.field(name).type}, not text.",
                "Choose another one, or convert it to text first.",
            )
    for key in ("label", "score", "error", "predictions"):
        name = getattr(config, f"{key}_column")
        if name in schema.names and (key != "predictions" or config.wants_predictions):
            true = f" If it has the true labels, say so: {setting('gold', name)}."
            raise SettingsError(
                f"The input has a column {name!r} already, which the output needs for its {key}.",
                f"Give the output's another name: {setting(f'{key}_column', 'NAME')}."
                + (true if key == name == "label" and config.gold is None else ""),
            )
    for label, name in config.score_columns().items():
        if name in schema.names:
            raise SettingsError(
                f"The input has a column {name!r} already, which the output needs for the scores "
                f"of {label!r}.",
                "Give the output's another name, which begins with that of the column of scores: "
                f"{setting('score_column', 'NAME')}.",
            )


def check_gold(schema: pa.Schema, config: RunConfig) -> None:
    """Refuse a missing or unfit column of true labels. Raises SettingsError or InputError."""
    name = config.gold
    if name is None:
        return
    if name not in schema.names:
        raise SettingsError(
            f"{setting('gold')}: the input has no column {name!r}. It has: "
            f"{listed(schema.names)}.{alike(name, schema.names)}",
            f"Name the column of true labels with {setting('gold')}.",
        )
    kind = schema.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary(kind):
        raise InputError(
            f"{setting('gold')}: the column {short(name)!r} holds {kind}, which is no label.",
            "True labels are text, numbers or categories.",
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def finish(
    first_row: int,
    table: pa.Table,
    prepared: Prepared,
    outcomes: Sequence[Outcome],
    config: RunConfig,
) -> Resolved:
    """Append the result columns to the rows of a chunk."""
    good: Sequence[Any] = outcomes
    error = pa.nulls(len(outcomes), pa.string())
    if RowError in set(map(type, outcomes)):
        good = [None if type(outcome) is RowError else outcome for outcome in outcomes]
        failed = [outcome.message if type(outcome) is RowError else None for outcome in outcomes]
        error = strings(failed)
    given = strings([found and found[0][0] for found in good])
    label, share_names = renamed(given, config.label_map), sharing_names(given, config)
    score = numbers([found and found[0][1] for found in good], pa.float64())
    if not len(outcomes):
        label, score, error = (pa.nulls(1, of.type) for of in (label, score, error))
        good = [None]
    columns = [decided(label, score, config), score, error]
    if len(outcomes) < max(table.num_rows, 1):  # or else each row has an outcome of its own
        columns = [column.take(prepared.index) for column in columns]
        columns[2] = pc.coalesce(prepared.errors, columns[2])
    if config.wants_predictions:
        predictions = _predictions(good, config)
        spread = [*score_columns(predictions, config), predictions]
        columns += [column.take(prepared.index) for column in spread]
    result = table
    for field, column in zip(result_fields(config), columns, strict=True):
        result = result.append_column(field, column)
    return replace(_counted(first_row, result, config), share_names=share_names)


def _predictions(good: Sequence[Any], config: RunConfig) -> pa.ListArray:
    pairs = [pair for found in good for pair in found or ()]
    values = pa.StructArray.from_arrays(
        [
            renamed(strings([name for name, _ in pairs]), config.label_map),
            numbers([score for _, score in pairs], pa.float64()),
        ],
        fields=list(PREDICTIONS.value_type),
    )
    ends = accumulate((len(found or ()) for found in good), initial=0)
    starts = [None if found is None else end for found, end in zip([*good, ()], ends, strict=True)]
    offsets = numbers(starts, pa.int64()).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=PREDICTIONS)


def patch(
    first_row: int, table: pa.Table, rows: Sequence[int], results: pa.Table, config: RunConfig
) -> Resolved:
    """Put the result columns of `results` in place of those of `rows` of a labelled chunk."""
    order = list(range(table.num_rows))
    for position, row in enumerate(rows):
        order[row] = table.num_rows + position
    for field in result_fields(config):
        both = [one.column(field.name).combine_chunks() for one in (table, results)]
        column = pa.concat_arrays(both).take(numbers(order, pa.int64()))
        table = table.set_column(table.schema.get_field_index(field.name), field, column)
    return _counted(first_row, table, config)


def _counted(first_row: int, table: pa.Table, config: RunConfig) -> Resolved:
    counts = pc.value_counts(table.column(config.label_column).drop_null()).to_pylist()
    labels = {count["values"]: count["counts"] for count in counts}
    errors = table.num_rows - table.column(config.error_column).null_count
    return Resolved(first_row, table, errors, labels)
