"""The run directory `OUTPUT.run/`: where a run keeps what it needs to go on after a kill."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

import pipeline
from pipeline import storage
from pipeline.errors import OutputError, ResumeRefused, SettingsError
from pipeline.failpoints import failpoint
from pipeline.producer import Plan
from pipeline.writer import Manifest, RunRecord, verified_parts

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.config import RunConfig


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @classmethod
    def of(cls, output: Path) -> RunDirectory:
        """The run directory beside an output. Raises OutputError for a path without a name."""
        if not output.name or output.name == "..":
            raise OutputError(
                f"output: {str(output)!r} names no file. Give a path such as labelled.parquet."
            )
        return cls(output.with_name(output.name + ".run"))

    @property
    def manifest(self) -> Path:
        """What is committed."""
        return self.root / "manifest.jsonl"

    @property
    def parts(self) -> Path:
        """The committed parts."""
        return self.root / "parts"

    @property
    def responses(self) -> Path:
        """The response store of this run."""
        return self.root / "responses.journal"

    @property
    def lock(self) -> Path:
        """Held while a process works on this output."""
        return self.root / "lock"

    @property
    def summary(self) -> Path:
        """The summary of the last attempt."""
        return self.root / "summary.json"

    @property
    def events(self) -> Path:
        """The event log of all attempts."""
        return self.root / "events.jsonl"

    @property
    def scratch(self) -> Path:
        """The output while it is assembled."""
        return self.root / ("assembled" + storage.TEMP_SUFFIX)

    def create(self) -> None:
        """Make the directory, durably. Raises OutputError where none can be made."""
        missing = [path for path in self.root.parents if not path.exists()]
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"output: cannot make {self.root}: {error.strerror}. Choose another place."
            ) from None
        # Its name must outlast a power cut, or all that is durable in it is lost with it.
        with storage.writing(self.root):
            for path in (self.root, *missing):
                storage.fsync_path(path.parent)

    def clear(self) -> None:
        """Remove all that a finished or discarded run leaves; the log and the lock stay."""
        storage.remove(self.parts)
        failpoint("clear.parts removed")
        storage.remove(self.scratch)
        storage.remove(self.responses)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Keep the summary of this attempt."""
        with storage.writing(self.summary):
            storage.commit_bytes(
                orjson.dumps(summary, option=orjson.OPT_INDENT_2), self.summary, "summary"
            )


def check_output(config: RunConfig) -> None:
    """Refuse an output that cannot be written, before anything is. Raises OutputError."""
    output = config.output
    parent = output.parent
    if output.suffix in (".csv", ".json", ".jsonl"):
        raise OutputError(
            f"output: {output} would be {output.suffix[1:]}, but the output is Parquet. Name a "
            ".parquet file, or a directory."
        )
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"output: {parent} is no directory, so nothing can be written in it.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"output: no permission to write in {parent}. Choose another place, or change the "
            "permission."
        )
    run_directory = RunDirectory.of(output).root
    if run_directory.exists() and not run_directory.is_dir():
        raise OutputError(
            f"output: {run_directory} is a file, where the run keeps its directory. Move it away, "
            "or choose another output."
        )
    if output.exists() and output.is_dir() == config.output_is_file:
        kind, wanted = ("directory", "file") if output.is_dir() else ("file", "directory")
        raise OutputError(
            f"output: {output} is a {kind}, where the output would be a {wanted}: a name that "
            "ends with .parquet is a file, any other a directory of files."
        )


def check_cache(cache: Path | None) -> None:
    """Refuse a cache that can be no file. Raises SettingsError."""
    if cache is not None and (cache.is_dir() or not cache.parent.is_dir()):
        wrong = "is a directory" if cache.is_dir() else f"lies in {cache.parent}, no directory"
        raise SettingsError(f"cache: {cache} {wrong}. Give the path of a file, new or of old.")


def same_run_or_new(
    directory: RunDirectory,
    manifest: Manifest | None,
    config: RunConfig,
    plan: Plan,
    *,
    overwrite: bool,
) -> Manifest | None:
    """Decide what the manifest on disk means for this run.

    Gives the manifest to continue (or, where it is complete, to leave alone), None to begin anew.
    Raises ResumeRefused, naming the differences, or OutputError where an output of unknown origin
    would be replaced.
    """
    output = config.output
    if manifest is None:
        if output.exists() and not overwrite:
            raise OutputError(
                f"output: {output} exists already, and not from a run that is recorded in "
                f"{directory.root}. Replace it with --overwrite, or choose another output."
            )
        return None
    if manifest.complete is not None and (overwrite or not output.exists()):
        return None
    differences = _differences(manifest.run, config, plan)
    if not differences:
        return manifest
    what = "\n".join(f"  {difference}" for difference in differences)
    if manifest.complete is not None:
        raise ResumeRefused(
            f"{output} is complete, and was made from another input or with other settings:\n"
            f"{what}\nReplace it with --overwrite, or choose another output."
        )
    raise ResumeRefused(
        f"{directory.root} holds an unfinished run with another input or other settings:\n"
        f"{what}\nGo back to those to continue it, throw it away with --restart, or choose "
        "another output."
    )


def _differences(was: RunRecord, config: RunConfig, plan: Plan) -> list[str]:
    now = config.result_settings()
    keys = [*now, *(key for key in was.settings if key not in now)]
    return [
        f"{key}: {now.get(key)!r}, was {was.settings.get(key)!r}"
        for key in keys
        if now.get(key) != was.settings.get(key)
    ] + plan.differences(Plan.from_json(was.plan))


def begin(directory: RunDirectory, config: RunConfig, plan: Plan) -> Manifest:
    """Throw away what was there, and record what this run is."""
    with storage.writing(directory.root):
        storage.remove(directory.manifest)
        failpoint("begin.manifest removed")
        directory.clear()
        failpoint("begin.cleared")
        directory.parts.mkdir()
        failpoint("begin.parts made")
    record = RunRecord(
        software=f"classify-pipeline {pipeline.__version__}",
        settings=config.result_settings(),
        plan=plan.to_json(),
    )
    return Manifest.create(directory.manifest, record)


def proceed(directory: RunDirectory, manifest: Manifest) -> int:
    """Make an interrupted run ready to go on; gives how many parts were damaged.

    A damaged part, and those after it, are done again; their answers are in the response store.
    """
    manifest.cut_torn_tail()
    good = verified_parts(directory.parts, manifest.parts)
    damaged = len(manifest.parts) - good
    if damaged:
        manifest.keep_parts(good)
    recorded = {part.file for part in manifest.parts}
    with storage.writing(directory.parts):
        directory.parts.mkdir(exist_ok=True)
        for file in directory.parts.iterdir():
            if file.name not in recorded:
                storage.remove(file)
                failpoint("parts.orphan removed")
    return damaged
