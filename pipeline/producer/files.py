"""Which files the input names, how they are opened, and whether they stay as they were."""

from __future__ import annotations

import difflib
import glob
import hashlib
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.producer.input_table import Signature
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CSV_SUFFIXES = (".csv", ".csv.gz", ".csv.zst")
PARQUET_SUFFIX = ".parquet"
SUFFIXES = (*CSV_SUFFIXES, PARQUET_SUFFIX)
# A run keeps its parts there, which are Parquet files too.
RUN_SUFFIX = ".run"
_READABLE = ", ".join(SUFFIXES)
_READ_BYTES = 1 << 20
_SAME_COLUMNS = "All files of one input must have the same columns in the same order."


@dataclass(frozen=True)
class SourceFile:
    """The bytes of one input file, which readers get from here alone; as a string, its path."""

    path: str

    def __str__(self) -> str:
        return self.path

    def open(self) -> pa.NativeFile:
        """Open the file for reading. Raises OSError."""
        return pa.OSFile(self.path)

    def sha256(self) -> str:
        """Return the checksum of all bytes. Raises OSError."""
        digest = hashlib.sha256()
        with self.open() as file:
            while piece := file.read(_READ_BYTES):
                stop_point()
                digest.update(piece)
        return digest.hexdigest()

    def signature(self) -> Signature:
        """Return what `stat` says of a regular file.

        Raises InputError if the file is missing, out of reach, or not a regular file.
        """
        try:
            status = Path(self.path).stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{self} is not a regular file. The input is read more than once, so pipes and "
                "devices cannot be used: write the table to a file first."
            )
        return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def check_unchanged(self, known: Signature) -> None:
        """Raise InputError if the file is no longer the one that was settled."""
        try:
            same = self.signature() == known
        except InputError:
            same = False
        if not same:
            raise changed(self)

    @contextmanager
    def unchanged(self, known: Signature) -> Iterator[None]:
        """Check the file at the end, and when reading it fails.

        A file that is rewritten under the reader looks damaged; this names the cause instead.
        """
        try:
            yield
        except InputError:
            self.check_unchanged(known)
            raise
        self.check_unchanged(known)


def find_files(inputs: Sequence[str], *, output: Path | None = None) -> list[str]:
    """Resolve files, globs and directories to the files to read, in reading order.

    Inputs keep the order given; what a glob or a directory (searched recursively) yields is
    sorted by path. There, files of other kinds, names that begin with `.` or `_`, run directories
    (`*.run`) and what `output` holds are passed over; a file named outright must be readable as a
    table.

    Raises InputError for what is missing, empty, of an unknown kind, named twice, or a mixture
    of CSV and Parquet.
    """
    if not inputs:
        raise InputError("No input is given.", "Name one or more files, globs or directories.")
    found: list[str] = []
    named_by: dict[str, str] = {}
    for name in inputs:
        for path in _expand(name, output):
            real = str(Path(path).resolve())
            if real in named_by:
                raise InputError(
                    f"{path} is in the input twice, through {named_by[real]!r} and {name!r}.",
                    "Name each file once, or its rows would be labelled twice.",
                )
            named_by[real] = name
            found.append(path)
    for path in found:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path!r} has a name that is not valid UTF-8, so it cannot be recorded with the "
                "run.",
                "Rename the file.",
            ) from error
        if SourceFile(path).signature().size_bytes == 0:
            raise InputError(
                f"{path} is empty (0 bytes).", "Write the table again, or leave it out."
            )
    csv = next((path for path in found if is_csv(path)), None)
    parquet = next((path for path in found if not is_csv(path)), None)
    if csv is not None and parquet is not None:
        raise InputError(
            f"The input mixes CSV ({csv}) with Parquet ({parquet}).", "Run each kind by itself."
        )
    return found


def is_csv(path: str) -> bool:
    """Return True if the name is that of a CSV file, compressed or not; case does not matter."""
    return path.lower().endswith(CSV_SUFFIXES)


def changed(source: SourceFile) -> InputError:
    """Return the error for a file that is written to while it is read."""
    return InputError(
        f"{source} changed while it was being read.",
        "Wait until whatever writes it is done, then run again.",
    )


def unreadable(path: str, error: Exception) -> InputError:
    """Return the error for a file that the operating system does not hand out."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist{_nearest(path)}.", "Check the path.")
    if isinstance(error, PermissionError):
        return InputError(
            f"{path} cannot be read: permission denied.", "Give this user the right to read it."
        )
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path} cannot be read: {reason}.", "Check the file and its disk.")


def check_same_columns(
    path: SourceFile, names: list[str], first: SourceFile, expected: list[str]
) -> None:
    """Raise InputError, naming the column, unless `names` are those of the first file."""
    if names == expected:
        return
    for name in expected:
        if name not in names:
            raise InputError(f"{path} has no column {name!r}, but {first} has.", _SAME_COLUMNS)
    for name in names:
        if name not in expected:
            raise InputError(f"{path} has a column {name!r} that {first} has not.", _SAME_COLUMNS)
    at = next(i for i, name in enumerate(expected) if names[i] != name)
    raise InputError(
        f"{path} has its columns in another order than {first}: column {at + 1} is "
        f"{names[at]!r}, not {expected[at]!r}.",
        _SAME_COLUMNS,
    )


def _expand(name: str, output: Path | None) -> list[str]:
    path = Path(name).expanduser()
    try:
        path.stat()
    except FileNotFoundError as error:
        # A file whose own name holds brackets is found above, so only what is missing is a glob.
        if not glob.has_magic(name):
            raise unreadable(str(path), error) from error
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise InputError(
                f"No file matches {name!r}.",
                "Check the pattern and the directory it is run from.",
            ) from None
        return _tables_in(name, map(Path, matches), output)
    except (OSError, ValueError) as error:
        raise unreadable(str(path), error) from error
    if path.is_dir():
        # An output that is named as the input is labelled in place.
        named = output is not None and path.resolve() == output.resolve()
        return _tables_in(name, [path], None if named else output)
    if not str(path).lower().endswith(SUFFIXES):
        raise InputError(
            f"{path} is of a kind that cannot be read. Readable are {_READABLE}.",
            "Convert the file, or rename it if it is one of these.",
        )
    return [str(path)]


def _tables_in(name: str, paths: Iterable[Path], output: Path | None) -> list[str]:
    # A recursive glob yields a directory and the files inside it: the set joins them.
    found: set[str] = set()
    for path in paths:
        if path.is_dir():
            found.update(_walk(path))
        elif _is_table(path.name):
            found.add(str(path))
    written = None if output is None else output.resolve()
    named = Path(name).expanduser().parts
    found = {
        path
        for path in found
        if not any(part.endswith(RUN_SUFFIX) and part not in named for part in Path(path).parts)
        and (written is None or not Path(path).resolve().is_relative_to(written))
    }
    if not found:
        raise InputError(f"{name} holds no table.", f"Readable are files that end in {_READABLE}.")
    return sorted(found)


def _walk(directory: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    found = []
    for folder, subfolders, names in os.walk(directory, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", "_"))]
        found += [str(Path(folder, name)) for name in names if _is_table(name)]
    return found


def _is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith((".", "_"))


def _nearest(path: str) -> str:
    missing = Path(path)
    try:
        siblings = [sibling.name for sibling in missing.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=0.8)
    return f" (there is {missing.with_name(close[0])})" if close else ""
