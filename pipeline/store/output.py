"""The output: assembled out of sight, then put in its place as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.store import disk
from pipeline.store.memory import MemoryOutput
from pipeline.store.objects import TEMP_SUFFIX, ByteSource, writing
from pipeline.wording import is_uri, setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store.records import Identity


class DiskOutput:
    """An output on a POSIX file system, drafted in the run directory and renamed."""

    def __init__(self, path: Path, run_directory: Path) -> None:
        self.path = path
        self.is_file = path.suffix == ".parquet"
        self._run_directory = run_directory
        self._draft = run_directory / ("assembled" + TEMP_SUFFIX)

    def exists(self) -> bool:
        """Return True if something is in the output's place."""
        return self.path.exists()

    def files(self) -> list[ByteSource]:
        """Return the Parquet files of the output, in order. Raises OSError."""
        return [ByteSource.of(file) for file in _files_of(self.path, "[!._]*.parquet")]

    def identity(self) -> Identity | None:
        """Return what the output is; None if there is none, or it cannot be read."""
        try:
            return _identity(self.path) if self.path.exists() else None
        except OSError:
            return None

    def check(self, inputs: Sequence[str], *, limit: int | None) -> None:
        """Refuse an output that cannot be written, or would take rows of the input with it.

        Raises OutputError.
        """
        self._check_place()
        self._check_apart_from(inputs)
        if self.replaces(inputs) and limit is not None:
            raise OutputError(
                f"{setting('output')}: {self.path} is the input, whose rows after the "
                f"first {limit} would be lost.",
                f"Choose another output, or drop {setting('limit')}.",
            )

    def _check_place(self) -> None:
        output, parent = self.path, self.path.parent
        if output.suffix in (".csv", ".json", ".jsonl"):
            raise OutputError(
                f"{setting('output')}: {output} would be {output.suffix[1:]}, but the "
                "output is Parquet.",
                "Name a .parquet file, or a directory.",
            )
        if is_uri(str(output)):
            raise OutputError(
                f"{setting('output')}: {output} is an address, and the output is a local file.",
                "Name a local path, and copy the output from there once it is complete.",
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
                f"{setting('output')}: no permission to write in {parent}.",
                "Choose another place, or change the permission.",
            )
        if self._run_directory.exists() and not self._run_directory.is_dir():
            raise OutputError(
                f"{setting('output')}: {self._run_directory} is a file, where the run "
                "keeps its directory.",
                "Move it away, or choose another output.",
            )
        if output.exists() and output.is_dir() == self.is_file:
            kind, wanted = ("directory", "file") if output.is_dir() else ("file", "directory")
            raise OutputError(
                f"{setting('output')}: {output} is a {kind}, where the output would be a "
                f"{wanted}: a name that ends with .parquet is a file, any other a "
                "directory of files.",
            )

    def _check_apart_from(self, inputs: Sequence[str]) -> None:
        output, inside = self.path.resolve(), self._run_directory.resolve()
        for name in inputs:
            path = Path(name).expanduser().resolve()
            if output in path.parents:
                raise OutputError(
                    f"{setting('output')}: {self.path} holds the input {name}, which would"
                    " be lost when the output takes its place.",
                    "Choose another output.",
                )
            if path == inside or inside in path.parents:
                raise OutputError(
                    f"{setting('output')}: {name} lies in {self._run_directory}, which the"
                    " run uses for itself.",
                    "Choose another output, or move the input.",
                )
            if path == output and len(inputs) > 1:
                raise OutputError(
                    f"{setting('output')}: {self.path} is one of {len(inputs)} inputs, and"
                    " would be replaced by the rows of all of them.",
                    "Choose another output.",
                )

    def replaces(self, inputs: Sequence[str]) -> bool:
        """Return True if the output takes the place of the input."""
        paths = [Path(name).expanduser().resolve() for name in inputs]
        return paths == [self.path.resolve()]

    def check_holds_only(self, files: Sequence[str]) -> None:
        """Refuse to replace a directory that holds other files, too. Raises OutputError."""
        known = {Path(file).resolve() for file in files}
        for path in sorted(self.path.rglob("*")):
            if not path.is_dir() and path.resolve() not in known:
                raise OutputError(
                    f"{setting('output')}: {self.path} would be replaced, but holds {path}"
                    " too, which would be lost.",
                    "Move it away, or choose another output.",
                )

    def begin_draft(self) -> None:
        """Begin an empty draft. Raises OSError, as the next two do."""
        disk.remove(self._draft)
        if not self.is_file:
            self._draft.mkdir()

    def open_draft(self, name: str) -> pa.NativeFile:
        """Open a file of the draft for writing; if the output is one file, `name` is unused."""
        return pa.OSFile(str(self._draft if self.is_file else self._draft / name), "wb")

    def drop_from_draft(self, name: str) -> None:
        """Remove a file of the draft."""
        disk.remove(self._draft / name)

    def draft_identity(self) -> Identity:
        """Return what the output will be."""
        with writing(self.path):
            return _identity(self._draft)

    def publish(self) -> None:
        """Put the draft in the output's place: by one rename, two if a directory is replaced."""
        with writing(self.path):
            (disk.commit if self.is_file else disk.commit_directory)(self._draft, self.path)

    def clear(self) -> None:
        """Remove what is left of a draft, and of an output that was replaced."""
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


Output = DiskOutput | MemoryOutput
