"""The run directory `OUTPUT.run/`: where a run keeps what it needs to go on after a kill."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.errors import OutputError, ResumeRefused, SettingsError
from pipeline.producer import ByteSource, FileSource, Plan, open_source
from pipeline.store import disk as storage
from pipeline.system.failpoints import failpoint
from pipeline.version import __version__
from pipeline.writer import Manifest, RunRecord, identify, verified_parts

if TYPE_CHECKING:
    from pipeline.config import RunConfig

# File systems allow 255; the run directory and temporary files take the name with a bit more.
LONGEST_NAME_BYTES = 230


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run."""

    root: Path

    @classmethod
    def of(cls, output: Path) -> RunDirectory:
        """The run directory beside an output. Raises OutputError for a name that cannot be one."""
        if not output.name or output.name == "..":
            raise OutputError(
                f"output: {str(output)!r} names no file. Give a path such as labelled.parquet."
            )
        try:
            length = len(output.name.encode())
        except UnicodeEncodeError:
            raise OutputError(
                f"output: {str(output)!r} is no UTF-8. Choose another name."
            ) from None
        if length > LONGEST_NAME_BYTES:
            raise OutputError(
                f"output: {output.name[:40]}... is too long a name: {length} bytes, and "
                f"{LONGEST_NAME_BYTES} leave room for what lies beside it. Choose a shorter one."
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
    def plan(self) -> Path:
        """The numbers of a plan, until the run that they are of is complete."""
        return self.root / "plan.json"

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

    def last_summary(self) -> dict[str, Any]:
        """Read the summary of the last attempt; empty where it could not write one."""
        with suppress(OSError, orjson.JSONDecodeError):
            found = orjson.loads(self.summary.read_bytes())
            if isinstance(found, dict):
                return found
        return {}

    def clear(self) -> None:
        """Remove all that a finished or discarded run leaves; log, lock and plan stay."""
        storage.remove(self.parts)
        failpoint("clear.parts removed")
        storage.remove(self.scratch)
        storage.remove(storage.aside_of(self.scratch))
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
    _check_apart_from_input(config, run_directory)


def _check_apart_from_input(config: RunConfig, run_directory: Path) -> None:
    """Refuse an output that would take rows of the input with it. Raises OutputError."""
    output, inside = config.output.resolve(), run_directory.resolve()
    for name in config.input:
        path = Path(name).expanduser().resolve()
        if output in path.parents:
            raise OutputError(
                f"output: {config.output} holds the input {name}, which would be lost when the "
                "output takes its place. Choose another output."
            )
        if path == inside or inside in path.parents:
            raise OutputError(
                f"output: {name} lies in {run_directory}, which the run uses for itself. Choose "
                "another output, or move the input."
            )
        if path == output and len(config.input) > 1:
            raise OutputError(
                f"output: {config.output} is one of {len(config.input)} inputs, and would be "
                "replaced by the rows of all of them. Choose another output."
            )
    if is_in_place(config) and config.limit is not None:
        raise OutputError(
            f"output: {config.output} is the input, whose rows after the first {config.limit} "
            "would be lost. Choose another output, or drop limit."
        )


def is_in_place(config: RunConfig) -> bool:
    """Whether the output takes the place of the input."""
    paths = [Path(name).expanduser().resolve() for name in config.input]
    return paths == [config.output.resolve()]


def stands(output: Path, manifest: Manifest | None) -> bool:
    """Whether `output` is what this run assembled, also where a kill left that unrecorded."""
    if manifest is None or manifest.assembled is None or not output.exists():
        return False
    try:
        return identify(output) == manifest.assembled
    except OSError:
        return False


def _between_renames(output: Path, manifest: Manifest) -> bool:
    return manifest.complete is None and not output.exists()


def replaced_input(config: RunConfig, manifest: Manifest | None) -> Plan | None:
    """The plan of an input that this very run has replaced by its output; else None.

    A kill may also have come between the two renames that replace a directory.
    """
    if (
        manifest is None
        or manifest.assembled is None
        or not is_in_place(config)
        or manifest.run.settings != config.result_settings()
        or not (stands(config.output, manifest) or _between_renames(config.output, manifest))
    ):
        return None
    return Plan.from_json(manifest.run.plan)


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
    begins = manifest is None or (manifest.complete is not None and overwrite)
    if begins and is_in_place(config):
        check_only_input_is_lost(config, plan)
    if manifest is None:
        if output.exists() and not overwrite:
            if is_in_place(config):
                raise OutputError(
                    f"output: {output} is the input. With --overwrite it is replaced by the "
                    "labelled table, once that is complete; or choose another output."
                )
            raise OutputError(
                f"output: {output} exists already, and not from a run that is recorded in "
                f"{directory.root}. Replace it with --overwrite, or choose another output."
            )
        return None
    if manifest.complete is not None and (overwrite or not output.exists()):
        return None
    differences = _differences(manifest.run, config) + plan.differences(
        Plan.from_json(manifest.run.plan)
    )
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


def check_only_input_is_lost(config: RunConfig, plan: Plan) -> None:
    """Refuse to replace more than was read, where the output takes the place of what was.

    Raises OutputError for other files in its directory, InputError where the input was changed.
    """
    for file in plan.files:
        ByteSource(file.path).check_unchanged(file.signature)
    known = {Path(file.path).resolve() for file in plan.files}
    for path in sorted(config.output.rglob("*")):
        if not path.is_dir() and path.resolve() not in known:
            raise OutputError(
                f"output: {config.output} would be replaced, but holds {path} too, which would be "
                "lost. Move it away, or choose another output."
            )


def _differences(was: RunRecord, config: RunConfig) -> list[str]:
    now = config.result_settings()
    keys = [*now, *(key for key in was.settings if key not in now)]
    return [
        f"{key}: {now.get(key)!r}, was {was.settings.get(key)!r}"
        for key in keys
        if now.get(key) != was.settings.get(key)
    ]


def open_retry(config: RunConfig, manifest: Manifest | None) -> FileSource:
    """Open what a retry goes through: the output as the recorded run wrote it.

    Raises OutputError where no run is recorded, ResumeRefused where settings differ or the output
    is not that one.
    """
    if manifest is None:
        raise OutputError(
            f"output: no run is recorded in {config.output}.run, so there is nothing to retry. Run "
            "without --retry-failed first."
        )
    # A retry that was begun is dropped first.
    anew = "--overwrite" if manifest.complete is not None else "--restart --overwrite"
    differences = _differences(manifest.run, config)
    if differences:
        what = "\n".join(f"  {difference}" for difference in differences)
        raise ResumeRefused(
            f"{config.output} was made with other settings:\n{what}\nGo back to those to ask again "
            f"for its rows with an error, or label the input anew with {anew}."
        )
    recorded = FileSource(Plan.from_json(manifest.run.plan))
    if manifest.complete is not None and not manifest.complete["errors"]:
        return recorded
    if manifest.complete is None and (
        stands(config.output, manifest)
        or (manifest.assembled is not None and not config.output.exists())
    ):
        return recorded  # the retry is through; only its output is not recorded, or not in place
    if config.output.exists():
        source = open_source([str(config.output)])
        if [[file.size_bytes, file.sha256] for file in source.plan.files] == (
            manifest.retried_identity
        ):
            check_only_input_is_lost(config, source.plan)
            return source
    raise ResumeRefused(
        f"{config.output} is not what the run wrote that {config.output}.run records, so its rows "
        f"with an error are not known. Put it back, or label the input anew with {anew}."
    )


def begin_retry(directory: RunDirectory, manifest: Manifest) -> None:
    """Put the record of a retry on disk: the output's rows with an error are asked again."""
    with storage.writing(directory.root):
        directory.clear()
        directory.parts.mkdir()
    manifest.save()


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
        software=f"classify-pipeline {__version__}",
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
