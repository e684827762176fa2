"""Which files the input names, how they are opened, and whether they stay as they were."""

from __future__ import annotations

import difflib
import glob
import hashlib
import stat
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.addresses import without_secrets
from pipeline.errors import InputError
from pipeline.producer import folders, remote_files, stdin
from pipeline.producer.input_table import Signature
from pipeline.system import globs, remote
from pipeline.system.paths import expanded
from pipeline.system.threads import stop_point
from pipeline.wording import alike, is_uri, reason, short

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.producer.folders import Keys

# By the suffix of its name. Text may be compressed.
_TEXT = {".csv": "CSV", ".tsv": "CSV", ".jsonl": "JSON Lines", ".ndjson": "JSON Lines"}
_BINARY = {".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow", ".ipc": "Arrow"}
_PACKED = (".gz", ".zst")
SUFFIXES = (*_TEXT, *(text + packed for text in _TEXT for packed in _PACKED), *_BINARY)
# A run keeps its parts there, which are Parquet files too.
_READABLE = f"{', '.join(_TEXT)} (also with {' or '.join(_PACKED)}), {', '.join(_BINARY)}"
_READ_BYTES = 1 << 20
_GONE = (FileNotFoundError, NotADirectoryError)
_SAME_COLUMNS = "All files of one input must have the same columns in the same order."


@dataclass(frozen=True)
class SourceFile:
    """The bytes of one input file, which readers get from here alone; as a string, its path.

    `path` may be an address. `keys` are the columns that its folders give, and their values.
    `known` is what the storage said of an object: one that is another by now cannot be read, so
    that objects need no other check.
    """

    path: str
    keys: Keys = ()
    known: Signature | None = None

    def __str__(self) -> str:
        return self.path

    def open(self) -> pa.NativeFile:
        """Open the file for reading. Raises OSError."""
        if remote.is_address(self.path):
            return remote_files.open_object(self.path, self.known)
        return stdin.open_file(self.path) or pa.OSFile(self.path)

    def sha256(self) -> str:
        """Return the checksum of all bytes, or the ETag of an object. Raises OSError."""
        if remote.is_address(self.path) and (etag := remote_files.content_etag(self.signature())):
            return f"etag {etag}"
        digest = hashlib.sha256()
        with self.open() as file:
            while piece := file.read(_READ_BYTES):
                stop_point()
                digest.update(piece)
        return digest.hexdigest()

    def signature(self) -> Signature:
        """Return what `stat` says of a regular file, or what is known of an object.

        Raises InputError if the file is missing, out of reach, or not a regular file.
        """
        if remote.is_address(self.path):
            return self.known or remote_files.signature(self.path)
        try:
            status = stdin.status(self.path) or Path(self.path).stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"{self} is not a regular file. The input is read more than once, so pipes and "
                "devices cannot be used: write the table to a file first, or pipe it into the "
                "command and name it -."
            )
        return Signature(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def check_unchanged(self, known: Signature) -> None:
        """Raise InputError if the file is no longer the one that was settled, or out of reach."""
        try:
            same = replace(self, known=None).signature() == known
        except InputError as error:
            why = error.__cause__
            if isinstance(why, OSError) and not isinstance(why, _GONE):
                raise
            same = False
        if not same:
            raise changed(self.path)

    def check_between(self, known: Signature) -> None:
        """Check between two reads, unless each read checks by itself, as those of an object."""
        if not remote.is_address(self.path):
            self.check_unchanged(known)

    @contextmanager
    def unchanged(self, known: Signature) -> Iterator[None]:
        """Check the file at the end, and when reading it fails.

        A file that is rewritten under the reader looks damaged; this names the cause instead.
        """
        try:
            yield
        except InputError:
            self.check_between(known)
            raise
        self.check_between(known)


def find_files(inputs: Sequence[str], *, output: Path | None = None) -> list[SourceFile]:
    """Resolve files, globs and directories to the files to read, in reading order.

    Inputs keep the order given; what a glob or a directory (searched recursively) yields is
    sorted by path. There, files of other kinds, names that begin with `.` or `_`, run directories
    (`*.run`) and what `output` holds are passed over; a file named outright must be readable as a
    table. `-` is standard input.

    Raises InputError for what is missing, empty, of an unknown kind, named twice, a mixture of
    kinds, or a table of another format, and where folders give some files other columns.
    """
    if not inputs:
        raise InputError("No input is given.", "Name one or more files, globs or directories.")
    found: list[SourceFile] = []
    named_by: dict[object, str] = {}
    for name in inputs:
        far = remote.is_address(name)
        root, tables = remote_files.expand(name) if far else _expand(name, output)
        for path, known in tables.items():
            real = remote.parts_of(path) if far else Path(path).resolve()
            if real in named_by:
                raise InputError(
                    f"{path} is in the input twice, through {named_by[real]!r} and {name!r}.",
                    "Name each file once, or its rows would be labelled twice.",
                )
            named_by[real] = name
            keys = () if root == Path(path) else folders.keys_of(path, root)
            found.append(SourceFile(path, keys, known))
    paths = [each.path for each in found]
    _check_names(paths)
    kind = kind_of(paths[0])
    other = next((path for path in paths if kind_of(path) != kind), None)
    if other is not None:
        raise InputError(
            f"The input mixes {kind} ({paths[0]}) with {kind_of(other)} ({other}).",
            "Run each kind by itself.",
        )
    sizes = [each.signature().size_bytes for each in found]
    for path, size_bytes in zip(paths, sizes, strict=True):
        # Exporters write an empty text file where a partition has no rows.
        if size_bytes == 0 and (plain_suffix(path) in _BINARY or not any(sizes)):
            raise InputError(
                f"{path} is empty (0 bytes).", "Write the table again, or leave it out."
            )
    folders.check_keys(paths, [each.keys for each in found])
    return found


def _check_names(paths: Sequence[str]) -> None:
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{path!r} has a name that is not valid UTF-8, so it cannot be recorded with the "
                "run.",
                "Rename the file.",
            ) from error


def plain_suffix(path: str) -> str:
    """Return the suffix of a table's name, without that of its compression; case does not matter.

    Empty if the name is not that of a table.
    """
    name = path.lower()
    found = next((packed for packed in _PACKED if name.endswith(packed)), "")
    known = _TEXT if found else {**_TEXT, **_BINARY}
    return next((each for each in known if name.removesuffix(found).endswith(each)), "")


def kind_of(path: str) -> str:
    """Return the kind of a table, as its name says: CSV, JSON Lines, Parquet or Arrow."""
    return {**_TEXT, **_BINARY}[plain_suffix(path)]


def is_csv(path: str) -> bool:
    """Return True if the name is that of a CSV file, compressed or not."""
    return kind_of(path) == "CSV"


def may_lack_columns(path: str) -> bool:
    """Return True for a kind whose rows name their columns, and may have none of some."""
    return kind_of(path) == "JSON Lines"


def delimiter_of(path: str) -> str:
    """Return what separates the cells of a CSV file, as its name says."""
    return "\t" if plain_suffix(path) == ".tsv" else ","


def is_table_name(name: str) -> bool:
    """Return True if the name is that of a table that can be read; case does not matter."""
    return plain_suffix(name) != ""


def changed(path: object) -> InputError:
    """Return the error for a file that is written to while it is read."""
    return InputError(
        f"{path} changed while it was being read.",
        "Wait until whatever writes it is done, then run again.",
    )


def unreadable(path: str, error: Exception) -> InputError:
    """Return the error for a file that the operating system does not hand out."""
    if isinstance(error, remote.ChangedError):
        return changed(path)
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist{_nearest(path)}.", "Check the path.")
    if isinstance(error, PermissionError) and remote.is_address(path):
        return InputError(
            f"{path} cannot be read: permission denied.",
            "Give the credentials in the environment, as docs/how-to/object-storage.md says.",
        )
    if isinstance(error, PermissionError):
        return InputError(
            f"{path} cannot be read: permission denied.", "Give this user the right to read it."
        )
    far = "address, the credentials (docs/how-to/object-storage.md) and the connection"
    where = far if remote.is_address(path) else "file and its disk"
    return InputError(f"{path} cannot be read: {reason(error)}.", f"Check the {where}.")


def check_same_columns(
    path: SourceFile, names: list[str], first: SourceFile, expected: list[str]
) -> None:
    """Raise InputError, naming the column, unless `names` are those of the first file."""
    if names == expected:
        return
    here, there = set(names), set(expected)
    for name in expected:
        if name not in here:
            raise InputError(
                f"{path} has no column {short(name)!r}, but {first} has.{alike(name, names)}",
                _SAME_COLUMNS,
            )
    for name in names:
        if name not in there:
            raise InputError(
                f"{path} has a column {short(name)!r} that {first} has not.", _SAME_COLUMNS
            )
    at = next(i for i, name in enumerate(expected) if names[i] != name)
    raise InputError(
        f"{path} has its columns in another order than {first}: column {at + 1} is "
        f"{short(names[at])!r}, not {short(expected[at])!r}.",
        _SAME_COLUMNS,
    )


def _expand(name: str, output: Path | None) -> tuple[Path, dict[str, None]]:
    """Return the directory in which folders begin, and the files. Raises InputError."""
    if name == stdin.NAME:
        return Path(stdin.path()), {stdin.path(): None}
    return folders.root_of(name), dict.fromkeys(_files_of(name, output))


def _files_of(name: str, output: Path | None) -> list[str]:
    path = expanded(name)
    try:
        path.stat()
    except FileNotFoundError as error:
        if is_uri(name):
            raise InputError(
                f"{without_secrets(name)} is an address of a kind that cannot be read. Readable "
                f"are {', '.join(f'{each}://' for each in remote.SCHEMES)}.",
                "Copy it to a file first.",
            ) from error
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
    if not is_table_name(str(path)):
        raise unknown_kind(path)
    return [str(path)]


def unknown_kind(path: object) -> InputError:
    """Return the error for a file whose name is not that of a table."""
    return InputError(
        f"{path} is of a kind that cannot be read. Readable are {_READABLE}.",
        "Convert the file, or rename it if it is one of these.",
    )


def no_table(name: str) -> InputError:
    """Return the error for a directory or a glob that holds no table."""
    return InputError(f"{name} holds no table.", f"Readable are files that end in {_READABLE}.")


def _tables_in(name: str, paths: Iterable[Path], output: Path | None) -> list[str]:
    def refuse(error: OSError) -> None:
        raise unreadable(str(error.filename), error) from error

    # A recursive glob yields a directory and the files inside it: the set joins them.
    found: set[Path] = set()
    for path in paths:
        found.update(folders.walk(path, refuse) if path.is_dir() else [path])
    written = None if output is None else output.resolve()
    root, named = folders.root_of(name), set(expanded(name).parts)
    kept: dict[Path, bool] = {}
    tables = []
    for path in sorted(filter(_is_table, found), key=str):
        folder = path.parent
        if folder not in kept:
            kept[folder] = not _is_passed_over(folder, root, named)
        if kept[folder] and (written is None or not path.resolve().is_relative_to(written)):
            tables.append(path)
    if not tables:
        raise no_table(name)
    folders.check_format({path.parent for path in tables})
    return list(map(str, tables))


def _is_passed_over(folder: Path, root: Path, named: set[str]) -> bool:
    """Return True if a folder below `root` is hidden, of a run, or a link that leads around."""
    below = [folder, *folder.parents]
    below = below[: below.index(root)] if root in below else below
    return any(
        (
            each.name not in named
            and (each.name.startswith((".", "_")) or each.name.endswith(globs.RUN_SUFFIX))
        )
        or folders.is_loop(each)
        for each in below
    )


def _is_table(path: Path) -> bool:
    return is_table_name(path.name) and not path.name.startswith((".", "_"))


def _nearest(path: str) -> str:
    missing = Path(path)
    try:
        siblings = [sibling.name for sibling in missing.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=0.8)
    return f" (there is {missing.with_name(close[0])})" if close else ""
