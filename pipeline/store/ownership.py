"""Whose files are these? Their content proves it, before anything is written or deleted.

A name proves nothing: other programs, too, keep a `lock`, a `log` or a `manifest.jsonl`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import OutputError
from pipeline.store.beat import FOLDER as LEASES
from pipeline.store.holder import Holder
from pipeline.store.log import FOLDER, is_entry
from pipeline.store.objects import TEMP_SUFFIX

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.store.objects import Objects

# Of versions before the log.
MANIFEST = "manifest.jsonl"
_MANIFEST_MARK = re.compile(rb'[0-9a-f]+ \{"kind":"run","software":"classify-pipeline ')
_HEAD_BYTES = 1_000
# What begins the metrics file of a run.
METRICS_MARK = b"# HELP classify_"
# What a run makes in its directory.
_NAMES = (
    *(
        "lock",
        "lease",
        "log",
        "parts",
        "responses.journal",
        "events.jsonl",
        "summary.json",
        "plan.json",
    ),
    *("assembled.tmp", "replaced.tmp", MANIFEST),
)
# What other programs leave in a directory of tables.
_NO_LOSS = (".DS_Store", "_SUCCESS")


def is_manifest(content: bytes) -> bool:
    """Return True if this is the beginning of a manifest of a previous version."""
    return _MANIFEST_MARK.match(content) is not None


def may_replace(path: Path, mark: bytes) -> bool:
    """Return True if a file is missing, is empty, or begins with `mark`."""
    if not path.exists():
        return True
    try:
        return path.is_file() and _head(path)[: len(mark)] in (b"", mark)
    except OSError:
        return False


def other_than_output(output: Path) -> Path | None:
    """Return what in a directory is not of an output, and would be lost if that were replaced.

    None if there is nothing such, or `output` is no directory. Raises OSError.
    """
    for path in output.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.name in _NO_LOSS or _is_labelled(path)):
            return path
    return None


def check_run_directory(root: Path) -> None:
    """Refuse a directory that is not one of a run, and holds any content; a missing one is fine.

    Hidden files count for nothing: no run touches them. Raises OutputError, also for a link under
    a name that a run uses, which would be written through; OSError.
    """
    if not root.is_dir():
        return
    for name in _NAMES:
        if (root / name).is_symlink():
            raise OutputError(
                f"{root / name} is a symbolic link, and a run writes only inside its own "
                "directory.",
                "Remove the link, or choose another output.",
            )
    other = next(filter(_holds_something, root.glob("[!.]*")), None)
    if other is not None and not _is_of_a_run(root):
        raise OutputError(
            f"{root} is not the directory of a run and holds other files, such as {other.name}.",
            "Choose another output, or an empty directory.",
        )


def check_objects(objects: Objects) -> None:
    """Refuse a prefix that is not the directory of a run, and holds any object.

    Raises OutputError.
    """
    ours = [name for folder in (LEASES, FOLDER) for name in objects.list(folder)]
    if any(_is_of_run(objects.get(name) or b"") for name in ours[-1:] + ours[:1]):
        return
    others = (*ours, *(name for name in objects.list("") if not name.endswith(TEMP_SUFFIX)))
    for other in others:
        raise OutputError(
            f"{objects.place} is not the directory of a run and holds other objects, such as "
            f"{other}.",
            "Choose another output, or an empty prefix.",
        )


def _is_of_run(content: bytes) -> bool:
    return is_entry(content) or Holder.parsed(content) is not None


def _holds_something(path: Path) -> bool:
    # A kill may leave an empty lock, which is the first file that a run makes.
    if path.is_dir() and not path.is_symlink():
        return any(map(_holds_something, path.iterdir()))
    return path.is_symlink() or not path.is_file() or path.stat().st_size > 0


def _is_of_a_run(root: Path) -> bool:
    lock, manifest, log = root / "lock", root / MANIFEST, root / FOLDER
    entries = (path for path in log.glob("*.json") if path.is_file()) if log.is_dir() else ()
    return (
        (lock.is_file() and Holder.parsed(_head(lock)) is not None)
        or (manifest.is_file() and is_manifest(_head(manifest)))
        or any(is_entry(path.read_bytes()) for path in entries)
    )


def _is_labelled(path: Path) -> bool:
    import pyarrow.parquet as pq  # it takes a while, and is seldom needed

    if not path.is_file():
        return False
    try:
        return b"classify.software" in (pq.read_schema(path).metadata or {})
    except pa.ArrowException:
        return False


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
