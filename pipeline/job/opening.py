"""The opening of a run: what it would label, and what of that is done; nothing is written.

A run locks its output first and then does what is settled here; a plan only tells it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.engines.local import check_endpoint
from pipeline.errors import ResumeRefused
from pipeline.job import rundir
from pipeline.producer import FileSource, Plan, open_source
from pipeline.rows import Revision, check_columns
from pipeline.writer import Manifest

if TYPE_CHECKING:
    from pipeline.config import RunConfig
    from pipeline.producer import Source


@dataclass(frozen=True)
class Settled:
    """What a run goes through, and the record that it goes on from.

    `manifest` is None where the run begins anew. Two records may not be on disk yet: that of a
    retry which begins (`begins_retry`), and of an output whose retry is dropped (`drops_retry`).
    `stands` is set where the output is in its place, and only its record is missing.
    """

    source: Source
    manifest: Manifest | None
    retries: bool = False
    begins_retry: bool = False
    drops_retry: bool = False
    stands: bool = False

    @property
    def nothing_to_do(self) -> bool:
        """Whether the output is complete and stays as it is."""
        return self.manifest is not None and self.manifest.complete is not None


def check(config: RunConfig) -> None:
    """Refuse an output, a cache or an endpoint that cannot be. Raises UsageError."""
    rundir.check_output(config)
    rundir.check_cache(config.cache)
    check_endpoint(config)


def settle(
    config: RunConfig,
    directory: rundir.RunDirectory,
    table: Source | None = None,
    *,
    restart: bool = False,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> Settled:
    """Read the input and the record of an earlier attempt, and decide what they mean.

    `table` replaces the input files. Raises UsageError for what cannot be labelled, continued or
    replaced.
    """
    found, drops_retry = _recorded(config, directory, restart=restart)
    begun = found is not None and found.retry_of is not None
    unfinished = found is not None and found.complete is None
    if begun or (retry_failed and not unfinished):
        return _settle_retry(config, found, drops_retry=drops_retry)
    source, again = _open_source(config, found, table)
    manifest = rundir.same_run_or_new(
        directory, found, config, source.plan, overwrite=overwrite and not again
    )
    if not again:
        check_columns(source.plan.schema, config)
    unrecorded = manifest is not None and manifest.complete is None
    return Settled(
        source,
        manifest,
        drops_retry=drops_retry,
        stands=unrecorded and rundir.stands(config.output, manifest),
    )


def _settle_retry(config: RunConfig, found: Manifest | None, *, drops_retry: bool) -> Settled:
    source = rundir.open_retry(config, found)
    assert found is not None
    if found.complete is None:
        stands = rundir.stands(config.output, found)
        return Settled(source, found, retries=True, stands=stands)
    if not found.complete["errors"]:
        return Settled(source, found, retries=True, drops_retry=drops_retry)
    return Settled(source, found.retrying(), retries=True, begins_retry=True)


def _recorded(
    config: RunConfig, directory: rundir.RunDirectory, *, restart: bool
) -> tuple[Manifest | None, bool]:
    """Read the record that may be gone on from; also gives whether a retry is dropped from it."""
    try:
        found = Manifest.load(directory.manifest)
    except ResumeRefused:
        if not restart:
            raise
        return None, False
    if not restart or found is None or found.complete is not None:
        return found, False
    if rundir.stands(config.output, found):
        return found, False
    if found.retry_of is None:
        return None, False
    return found.without_retry(), True


def _open_source(
    config: RunConfig, found: Manifest | None, table: Source | None
) -> tuple[Source, bool]:
    """Open the input; also gives whether the recorded run has put its output in its place."""
    if table is not None:
        return table, False
    replaced = rundir.replaced_input(config, found)
    if replaced is not None:
        return FileSource(replaced), True
    source = open_source(
        config.input,
        text_columns=[name for name in (config.text, config.text_pair) if name],
        delimiter=config.delimiter,
        encoding=config.encoding,
        limit=config.limit,
        earlier=Plan.from_json(found.run.plan) if found else None,
        output=config.output,
    )
    return source, False


def stores(
    config: RunConfig, directory: rundir.RunDirectory, manifest: Manifest | None
) -> tuple[Path, list[Path]]:
    """Where this attempt's answers go, and the other files that hold answers of earlier ones.

    A run that begins anew has none of its own yet.
    """
    used = [] if manifest is None else [directory.responses, *map(Path, manifest.caches)]
    store = config.cache.absolute() if config.cache else directory.responses
    return store, [path for path in used if path != store]


def revision(manifest: Manifest | None) -> Revision:
    """Return the model's revision, as far as the record tells it."""
    if manifest is None:
        return Revision()
    name = manifest.latest_revision
    told = manifest.retry_of is not None or manifest.revision is not None
    return Revision(name, told=told and name is not None)
