"""The opening of a run: what it would label, and what of that is done.

`decide` writes nothing. A run takes the lease of its store and then begins what was decided; a plan
only tells it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from pipeline.engines.local import check_endpoint
from pipeline.errors import OutputError, ResumeRefused, SettingsError, StoppedEarly
from pipeline.job.comparing import asks_alike, changed, differences, recorded_input
from pipeline.job.decisions import Complete, Continue, Fresh, Renew, Retry, Standing
from pipeline.job.renewing import (
    check_answers_are_kept,
    check_update,
    holds_answers,
    keeps_answers,
    take_over,
)
from pipeline.job.replacing import check_only_input_is_lost, is_of
from pipeline.labelled import check_retriable
from pipeline.producer import FileSource, InputTable, open_source
from pipeline.responses import check_cache
from pipeline.rows import NOBODY_TOLD, Revision, check_columns, check_gold
from pipeline.store import RunRecord
from pipeline.store.files import DiskFile
from pipeline.store.ownership import METRICS_MARK, may_replace
from pipeline.system import means
from pipeline.version import __version__
from pipeline.wording import setting
from pipeline.writer import check_writable

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.config import RunConfig
    from pipeline.job.decisions import EarlierRun, Opening, Place
    from pipeline.producer import Source
    from pipeline.store import RunState, RunStore
    from pipeline.store.objects import GrowingFile


def check(config: RunConfig, store: RunStore) -> None:
    """Refuse an output, a cache or an endpoint that cannot be. Raises UsageError."""
    means.check(config.concurrency)
    store.output.check(config.input, limit=config.limit)
    store.check_is_outside(config.input)
    check_cache(config.cache)
    metrics_file = config.metrics_file
    if metrics_file is not None and not may_replace(metrics_file, METRICS_MARK):
        raise SettingsError(
            f"{setting('metrics_file')}: {metrics_file} is no metrics file of a run, and is "
            "not replaced.",
            "Move it away, or give another path.",
        )
    check_endpoint(config)


def decide(
    config: RunConfig,
    store: RunStore,
    table: Source | None = None,
    **earlier: Unpack[EarlierRun],
) -> Opening:
    """Read the input and the record of an earlier attempt, and decide what they mean.

    `table` replaces the input files. Raises UsageError for what cannot be labelled, continued or
    replaced.
    """
    overwrite, ask_again = earlier.get("overwrite", False), earlier.get("ask_again", False)
    update = earlier.get("update", False)
    if update:
        check_update(config, store, **earlier)
    restart = ask_again or earlier.get("restart", False)
    retry_failed = earlier.get("retry_failed", False)
    found = store.load(restart=restart, overwrite=overwrite)
    place = _place(config, store, found)
    if restart and found is not None and found.complete is None and place != "standing":
        found = found.retry_of
        place = _place(config, store, found)
    if update and found is not None and found.retry_of is not None:
        raise ResumeRefused(
            f"{store.place} holds an unfinished retry of rows with an error.",
            f"Finish it with {setting('retry_failed', 'True')}, then update.",
        )
    retries = retry_failed and (found is None or found.complete is not None)
    if retries or (found is not None and found.retry_of is not None):
        opened = _decide_retry(config, store, found, place)
    else:
        opened = _decide_run(config, store, found, place, table, earlier)
    check_gold(opened.source.input.schema, config)
    return replace(opened, keeps_answers=False) if ask_again else opened


def _renew(
    config: RunConfig, store: RunStore, was: RunState, source: Source, earlier: EarlierRun
) -> Renew | None:
    """Return how the answers of a run serve one on another table, or one that shows them otherwise.

    None if that is not what this is, or its answers are nowhere.
    """
    if not asks_alike(was, config) or earlier.get("ask_again", False):
        return None
    differ = changed(was, config)
    takes_over = was.complete is not None and holds_answers(was)
    if earlier.get("update", False):
        if not differ and not source.input.differences(recorded_input(was)):
            return None
        check_answers_are_kept(config, store, was)
        takes_over = takes_over and store.output.exists()
    else:
        overwrites = earlier.get("overwrite", False) and was.complete is not None
        if not (
            differ
            and (
                (overwrites and not store.output.replaces(config.input))
                or (earlier.get("show_again") and source.begins_with(recorded_input(was)))
            )
            and keeps_answers(config, store, was)  # which may read the whole output
        ):
            return None
    _check_schema(source.input.schema, config)
    if store.output.exists():
        store.output.check_replaceable()
    return Renew(source, keeps_answers=True, was=was, takes_over=takes_over)


def begin(config: RunConfig, store: RunStore, found: Opening) -> int:
    """Write down what was decided, under the lease. Return how many parts turn out damaged."""
    if isinstance(found, Fresh | Continue | Retry):  # an output is to take its place
        store.output.check_rename()
    match found:
        case Renew(source, was=was):
            if found.takes_over:
                # Before anything is begun: after a kill, the output is still recorded as complete.
                take_over(config, store, was, stores(config, store, None)[0])
            store.renew(_record(config, source), was.caches)
        case Fresh(source):
            store.begin(_record(config, source), keep_answers=found.keeps_answers)
        case Continue():
            return store.repair()
        case Standing():
            store.fence()
        case Complete() | Retry():
            if store.log.run.retry_of is not None:
                store.log.drop_retry()
            with suppress(StoppedEarly):
                # A kill may have come between completion and tidying up.
                kept = found.keeps_answers if isinstance(found, Retry) else False
                store.clear(keep_answers=kept or not holds_answers(found.state))
            if isinstance(found, Retry):
                # What was tidied up may have been a second name of a file of the output.
                found.source.accept_links()
                store.log.begin_retry()
    return 0


def _record(config: RunConfig, source: Source) -> RunRecord:
    settings, table = config.result_settings(), source.input.to_json()
    return RunRecord(f"classify-pipeline {__version__}", settings, table)


def _place(config: RunConfig, store: RunStore, found: RunState | None) -> Place:
    """Find out where the output is that the recorded run assembled, if that decides anything."""
    if found is None or found.assembled is None:
        return "elsewhere"
    if not store.output.exists() or store.output.is_torn():
        return "between renames" if found.complete is None else "elsewhere"
    if found.complete is not None and not store.output.replaces(config.input):
        return "elsewhere"  # or a large output would be read for nothing
    return "standing" if store.output.identity() == found.assembled else "elsewhere"


def _open_input(config: RunConfig, found: RunState | None) -> Source:
    return open_source(
        config.input,
        text_columns=[name for name in (config.text, config.text_pair) if name],
        delimiter=config.delimiter,
        encoding=config.encoding,
        escape=config.csv_escape,
        limit=config.limit,
        earlier=recorded_input(found) if found else None,
        output=config.output_path,
    )


def _decide_run(
    config: RunConfig,
    store: RunStore,
    found: RunState | None,
    place: Place,
    table: Source | None,
    earlier: EarlierRun,
) -> Opening:
    source, state = table, found
    ends = earlier.get("update", False) and found is not None and found.complete is None
    if (
        source is None
        and found is not None
        and place != "elsewhere"
        and (ends or store.output.replaces(config.input))
        and not changed(found, config)
    ):
        # This very run has replaced the input by its output, or is to end before another begins.
        source = FileSource(recorded_input(found))
    else:
        source = source or _open_input(config, found)
        if found is not None and (renewed := _renew(config, store, found, source, earlier)):
            return renewed
        overwrite = earlier.get("overwrite", False)
        state = _same_run(config, store, found, source.input, overwrite=overwrite)
        _check_schema(source.input.schema, config)
    if state is None:
        return Fresh(source, keeps_answers=_keeps_answers(config, found))
    if state.complete is not None:
        return Complete(source, state)
    return Standing(source, state) if place == "standing" else Continue(source, state)


def _keeps_answers(config: RunConfig, found: RunState | None) -> bool:
    """Return True if what is stored of a run that is thrown away is of use to the one that begins.

    A complete run has answers only if its output does not hold them.
    """
    if found is None or found.complete is None:
        return True
    return not holds_answers(found) and changed(found, config).keys().isdisjoint(
        config.ANSWER_SETTINGS
    )


def _check_schema(schema: pa.Schema, config: RunConfig) -> None:
    """Refuse columns that cannot be classified, or not be written. Raises UsageError."""
    check_columns(schema, config)
    check_writable(str(config.output), schema)


def _decide_retry(
    config: RunConfig, store: RunStore, found: RunState | None, place: Place
) -> Opening:
    """Decide on the output as the recorded run wrote it.

    Raises OutputError if no run is recorded, ResumeRefused if settings differ or the output is
    another one.
    """
    check_retriable(store.output)
    if found is None:
        raise OutputError(
            f"{setting('output')}: no run is recorded in {store.place}, so there is "
            "nothing to retry.",
            f"Run without {setting('retry_failed', 'True')} first.",
        )
    # A retry that was begun is dropped first.
    again = "--overwrite" if found.complete is not None else "--restart --overwrite"
    if different := differences(found, config):
        raise ResumeRefused(
            f"{config.output} was made with other settings:\n{different}",
            "Go back to those to ask again for its rows with an error, or label the input"
            f" again with {again}.",
        )
    if found.complete is not None and not found.errors:
        return Complete(FileSource(recorded_input(found)), found)
    if found.complete is None and place != "elsewhere":  # only its end is missing
        recorded = FileSource(recorded_input(found))
        return (Standing if place == "standing" else Continue)(recorded, found)
    if store.output.name is not None and store.output.exists():
        source = open_source([store.output.name])
        if is_of(store, source, found):
            check_only_input_is_lost(store, source.input)
            if found.complete is None:
                return Continue(source, found)
            return Retry(source, found.retrying())
    raise ResumeRefused(
        f"{config.output} is not what the run wrote that {store.place} records, so its "
        "rows with an error are not known.",
        f"Put it back, or label the input again with {again}.",
    )


def _same_run(
    config: RunConfig,
    store: RunStore,
    found: RunState | None,
    table: InputTable,
    *,
    overwrite: bool,
) -> RunState | None:
    """Return what is to be continued (or left alone, if it is complete); None to begin.

    Raises ResumeRefused, naming the differences, or OutputError if an output of unknown origin
    would be replaced.
    """
    output, in_place = store.output, store.output.replaces(config.input)
    if in_place and (found is None or (found.complete is not None and overwrite)):
        check_only_input_is_lost(store, table)
    elif overwrite and (found is None or found.complete is not None):
        output.check_replaceable()
    if found is None:
        if output.exists() and not overwrite:
            if in_place:
                raise OutputError(
                    f"{setting('output')}: {config.output} is the input.",
                    f"With {setting('overwrite', 'True')} it is replaced by the labelled "
                    "table, once that is complete; or choose another output.",
                )
            raise OutputError(
                f"{setting('output')}: {config.output} exists already, and not from a run "
                f"that is recorded in {store.place}.",
                f"Replace it with {setting('overwrite', 'True')}, or choose another output.",
            )
        return None
    if found.complete is not None and (overwrite or not output.exists()):
        return None
    if not (different := differences(found, config, table)):
        return found
    if found.complete is None and not (found.parts or store.holds_answers()):
        return None  # nothing of it would be lost
    raise _refused(config, store, found, different, in_place=in_place)


def _refused(
    config: RunConfig, store: RunStore, found: RunState, different: str, *, in_place: bool
) -> ResumeRefused:
    """Return why a run that differs from the recorded one is not begun, and what to do."""
    differ = changed(found, config)
    uses_again = (
        (found.complete is None or (differ and not in_place))
        and asks_alike(found, config)
        and keeps_answers(config, store, found, reads_output=False)
    )
    kept = ", which uses its answers again" if uses_again else ""
    if found.complete is not None:
        if kept and holds_answers(found):
            # It may be large, and is not read for these words.
            kept += " (all texts are sent again if the output has changed since then)"
        how = f"{setting('overwrite', 'True')}{kept}"
        if not differ and config.dedup and not in_place:
            how = f"{setting('update', 'True')}, which sends only texts that it does not have"
        return ResumeRefused(
            f"{config.output} is complete, and was made from another input or with other "
            f"settings:\n{different}",
            f"Replace it with {how}, or choose another output.",
        )
    return ResumeRefused(
        f"{store.place} holds an unfinished run with another input or other settings:\n{different}",
        f"Go back to those to continue it, {'start over' if kept else 'throw it away'} with "
        f"{setting('restart', 'True')}{kept}, or choose another output.",
    )


def stores(
    config: RunConfig, store: RunStore, state: RunState | None, *, keeps_answers: bool = True
) -> tuple[GrowingFile, list[GrowingFile]]:
    """Return where this attempt's answers go, and what else holds answers of earlier attempts."""
    cache = None if config.cache is None else str(config.cache.absolute())
    caches = [] if state is None else [path for path in state.caches if path != cache]
    earlier: list[GrowingFile] = [DiskFile.journal(Path(path)) for path in caches]
    if cache is None:
        return store.journal, earlier
    return DiskFile.journal(Path(cache)), [*([store.journal] if keeps_answers else []), *earlier]


def revision(state: RunState | None) -> Revision:
    """Return the model's revision, as far as the record tells it."""
    if state is None or state.latest_revision is None:
        return NOBODY_TOLD
    told = state.retry_of is not None or state.revision is not None
    return Revision(state.latest_revision, told=told)
