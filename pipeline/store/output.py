"""The output on disk: assembled out of sight, then renamed."""

from __future__ import annotations

import os
import secrets
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.store import disk, ownership
from pipeline.store.forms import check_form, form_of
from pipeline.store.objects import TEMP_SUFFIX, ByteSource, reading, writing
from pipeline.system.paths import expanded
from pipeline.system.remote import is_address
from pipeline.wording import is_uri, setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.objects import Objects
    from pipeline.store.records import Identity


class DiskOutput:
    """An output on a POSIX file system, drafted in the run directory and renamed.

    If the state of the run, which `objects` are of, lies elsewhere, it is drafted beside its place.
    """

    def __init__(self, path: Path, run_directory: Path | None, objects: Objects) -> None:
        self.path = path
        self.place = self.name = str(path)
        self.is_file = form_of(path.name) is not None
        self._run_directory = run_directory
        self._objects = objects
        beside = path.with_name(f".{path.name}.assembled{TEMP_SUFFIX}")
        inside = run_directory and run_directory / f"assembled{TEMP_SUFFIX}"
        self._draft = inside or beside

    def exists(self) -> bool:
        return self.path.exists()

    def is_torn(self) -> bool:
        return False

    def files(self) -> list[ByteSource]:
        return [ByteSource.of(file) for file in _files_of(self.path, "[!._]*.parquet")]

    def identity(self) -> Identity | None:
        try:
            return _identity(self.path) if self.path.exists() else None
        except OSError:
            return None

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:
        self._check_place()
        self._check_apart_from(inputs)
        if self._run_directory is not None:
            with reading(self._run_directory):
                ownership.check_run_directory(self._run_directory)
        if self.replaces(inputs) and limit is not None:
            raise OutputError(
                f"{setting('output')}: {self.path} is the input, whose rows after the "
                f"first {limit} would be lost.",
                f"Choose another output, or drop {setting('limit')}.",
            )

    def _check_place(self) -> None:
        output, parent = self.path, self.path.parent
        check_form(output.name)
        if str(output) == "-":
            raise OutputError(
                f"{setting('output')}: - is no place for an output, which appears at once when it "
                "is complete.",
                "Name a file, or a directory.",
            )
        if is_uri(str(output)):
            raise OutputError(
                f"{setting('output')}: {output} is an address of a kind that cannot be written.",
                "Name a local path, or an address with s3://, gs://, abfs:// or hf://.",
            )
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise OutputError(
                f"{setting('output')}: {parent} is not a directory, so nothing can be "
                "written in it.",
            )
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"{setting('output')}: no permission to write in {parent.resolve()}.",
                "Choose another place, or change the permission.",
            )
        run_directory = self._run_directory
        if run_directory is not None and run_directory.exists() and not run_directory.is_dir():
            raise OutputError(
                f"{setting('output')}: {run_directory} is a file, where the run "
                "keeps its directory.",
                "Move it away, or choose another output.",
            )
        if output.exists() and output.is_dir() == self.is_file:
            kind, wanted = ("directory", "file") if output.is_dir() else ("file", "directory")
            raise OutputError(
                f"{setting('output')}: {output} is a {kind}, where the output would be a "
                f"{wanted}: a name that ends with .parquet, .csv or .jsonl is a file, any other a "
                "directory of files.",
            )

        if output.exists() and disk.is_mount(output):
            raise OutputError(
                f"{setting('output')}: {output} is a mount point, which cannot be replaced.",
                "Choose a path inside it.",
            )

    def check_replaceable(self) -> None:
        # A file under this name is replaced, as a user who names it says.
        with reading(self.path):
            other = ownership.other_than_output(self.path)
        if other is not None:
            raise OutputError(
                f"{setting('output')}: {self.path} is not replaced, since no run wrote all of it: "
                f"it holds {other}.",
                "Move it away, or choose another output.",
            )

    def check_rename(self) -> None:
        name = f".{self.path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}"
        probe, beside = self._draft.with_name(name), self.path.with_name(name)
        try:
            # The run directory may lie elsewhere.
            self.path.parent.mkdir(parents=True, exist_ok=True)
            probe.touch(exist_ok=False)
            probe.rename(beside)
        except OSError as error:
            raise OutputError(
                f"{setting('output')}: {self.path} could not be put in its place at the end: a "
                f"file cannot be renamed from {self._draft.parent} to {self.path.parent}: "
                f"{error.strerror}.",
                "Keep both on one file system, or choose another output.",
            ) from error
        finally:
            probe.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)

    def _check_apart_from(self, inputs: Sequence[str]) -> None:
        output = self.path.resolve()
        inside = (self._run_directory or self._draft).resolve()
        for name in filterfalse(is_address, inputs):
            path = expanded(name).resolve()
            if output in path.parents:
                raise OutputError(
                    f"{setting('output')}: {self.path} holds the input {name}, which would"
                    " be lost when the output takes its place.",
                    "Choose another output.",
                )
            if path == inside or inside in path.parents:
                raise OutputError(
                    f"{setting('output')}: {name} lies in {inside}, which the run uses for itself.",
                    "Choose another output, or move the input.",
                )
            if path == output and len(inputs) > 1:
                raise OutputError(
                    f"{setting('output')}: {self.path} is one of {len(inputs)} inputs, and"
                    " would be replaced by the rows of all of them.",
                    "Choose another output.",
                )

    def replaces(self, inputs: Sequence[str]) -> bool:
        paths = [None if is_address(name) else expanded(name).resolve() for name in inputs]
        return paths == [self.path.resolve()]

    def check_holds_only(self, files: Sequence[str]) -> None:
        known = {Path(file).resolve() for file in files}
        for path in sorted(self.path.rglob("*")):
            if not path.is_dir() and path.resolve() not in known:
                raise OutputError(
                    f"{setting('output')}: {self.path} would be replaced, but holds {path}"
                    " too, which would be lost.",
                    "Move it away, or choose another output.",
                )

    def begin_draft(self) -> None:
        disk.remove(self._draft)
        if not self.is_file:
            self._draft.mkdir()

    def open_draft(self) -> pa.NativeFile:
        return pa.OSFile(str(self._draft), "wb")

    def take_part(self, part: str, name: str) -> None:
        if self._run_directory is not None:
            # A second name, so that no kill leaves a part without its first one.
            (self._draft / name).hardlink_to(self._run_directory / part)
        elif (content := self._objects.get(part)) is not None:
            (self._draft / name).write_bytes(content)
        else:
            raise FileNotFoundError(2, "No such object", part)

    def draft_identity(self) -> Identity:
        with writing(self.path):
            return _identity(self._draft)

    def publish(self) -> None:
        with writing(self.path):
            (disk.commit if self.is_file else disk.commit_directory)(self._draft, self.path)

    def clear(self) -> None:
        with writing(self._draft):
            disk.remove(self._draft)
            disk.remove(disk.aside_of(self._draft))


def _files_of(output: Path, pattern: str) -> list[Path]:
    """Return the file, or the files below a directory, but no hidden ones.

    What is hidden (`.DS_Store`, `_SUCCESS`) is no part of the table.
    """
    if not output.is_dir():
        return [output]
    return [file for file in sorted(output.rglob(pattern)) if file.is_file()]


def _identity(output: Path) -> Identity:
    return [list(disk.measure(file)) for file in _files_of(output, "[!._]*")]
