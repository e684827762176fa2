"""What came of a run, for whoever called it."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.labelled import is_text, open_parquet, parquet_files
from pipeline.observers import result_html
from pipeline.observers.words import MOST_CAUSES, OTHER_CAUSES
from pipeline.rows import result_fields
from pipeline.store import output_at, place_of
from pipeline.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.config import RunConfig
    from pipeline.evaluation import Evaluation


@dataclass(frozen=True, repr=False)
class RunResult:
    """What came of a run; `summary` has all of it, as `classify run --json` prints it.

    `evaluation` is how good its labels are, if `gold` says which are true.
    Offers the Arrow PyCapsule interface, as a table that is read from the output.
    """

    summary: dict[str, Any]
    error_column: str = "error"
    evaluation: Evaluation | None = None
    # Of an output that is text: columns that are text, or numbers, whatever they hold.
    text_columns: tuple[str, ...] = ()
    score_columns: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, summary: dict[str, Any], config: RunConfig, evaluation: Evaluation | None
    ) -> RunResult:
        """Return what came of a run with these settings."""
        fields = result_fields(config)
        text = [config.text, config.text_pair]
        text += [field.name for field in fields if pa.types.is_string(field.type)]
        scores = [field.name for field in fields if pa.types.is_floating(field.type)]
        named = tuple(name for name in text if name is not None)
        return cls(summary, config.error_column, evaluation, named, tuple(scores))

    @property
    def exit_code(self) -> int:
        """0 where every row is labelled or errors are within `max_errors`, else 3."""
        return int(self.summary["exit_code"])

    @property
    def output(self) -> Path | str:
        """The labelled table: its path, or its address."""
        return place_of(self.summary["output"])

    def to_arrow(self) -> pa.Table:
        """Read the labelled table into memory, as a pyarrow Table."""
        return read_table(self.output, text=self.text_columns, scores=self.score_columns)

    def to_pandas(self) -> Any:
        """Read the labelled table into memory, as a pandas DataFrame."""
        return self.to_arrow().to_pandas()

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def errors_by_cause(self) -> dict[str, int]:
        """Count the rows with an error by what their error says, the most frequent first.

        Causes beyond the first 500 are counted together, as `(other causes)`.
        """
        causes: Counter[str] = Counter()
        column = self.error_column
        for file in parquet_files(output_at(self.output), [column], text=[column]):
            with file.open() as opened, open_parquet(opened) as table:
                for batch in table.iter_batches(columns=[column], use_threads=False):
                    for found in batch.column(0).drop_null().value_counts().to_pylist():
                        cause = found["values"]
                        if cause not in causes and len(causes) >= MOST_CAUSES:
                            cause = OTHER_CAUSES
                        causes[cause] += found["counts"]
        return dict(causes.most_common())

    def report(
        self,
        page: str | Path | None = None,
        *,
        columns: Sequence[str] = (),
        gold: str | None = None,
        label_map: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a page on this run, as `classify report` does, and return its path.

        `columns` are shown beside the text of rows. The labels are measured against the true ones
        of the column `gold`; `label_map` is that of `evaluate`. Raises UsageError if the page
        cannot be written, there is no such column, or the extra `report` is not installed.
        """
        from pipeline.report import write_report

        names = (columns,) if isinstance(columns, str) else columns
        path = None if page is None else Path(page)
        return write_report(self.output, path, columns=names, gold=gold, label_map=label_map)

    def __str__(self) -> str:
        found = self.summary
        return (
            f"{found['output']}: {counted(found['rows'], 'row')}, {found['labelled']:,} labelled, "
            f"{found['errors']:,} with errors; {counted(found['requests'], 'request')} in "
            f"{found['seconds']:,.1f} s"
        )

    def __repr__(self) -> str:
        return f"<RunResult {self}>"

    def _repr_html_(self) -> str:
        causes: dict[str, int] = {}
        if self.summary["errors"]:
            # The output may have been moved since: the rest is true all the same.
            with suppress(OSError, pa.ArrowException, KeyError):
                causes = self.errors_by_cause()
        shown = result_html(self.summary, causes)
        return shown if self.evaluation is None else shown + self.evaluation._repr_html_()


def read_table(
    output: Path | str,
    schema: pa.Schema | None = None,
    *,
    text: Sequence[str] = (),
    scores: Sequence[str] = (),
) -> pa.Table:
    """Read a labelled table into memory; with a schema, only its columns.

    Of an output that is text, the columns `text` and `scores` are text and numbers.
    """
    opened_at = output_at(output)
    if isinstance(output, Path) and not is_text(opened_at):
        # A relative path such as `exp:1/out.parquet` would be taken for a URI.
        return pq.read_table(output.absolute(), schema=schema, partitioning=None)
    tables = []
    for file in parquet_files(opened_at, text=text, scores=scores):
        with file.open() as opened, open_parquet(opened) as found:
            names = None if schema is None else schema.names
            table = found.read(columns=names, use_threads=False)
            tables.append(table if schema is None else table.select(names).cast(schema))
    return pa.concat_tables(tables)
