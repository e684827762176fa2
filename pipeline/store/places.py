"""Which store a run has: by the places of its output and of its state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import OutputError
from pipeline.store.beat import BeatLease
from pipeline.store.disk import DiskObjects
from pipeline.store.files import DiskFile
from pipeline.store.frames import FramesFile
from pipeline.store.hub_output import HubOutput
from pipeline.store.lease import FlockLease
from pipeline.store.output import DiskOutput
from pipeline.store.ownership import MANIFEST
from pipeline.store.remote import SCHEMES, RemoteObjects
from pipeline.store.remote_output import RemoteOutput
from pipeline.store.runstore import RunStore
from pipeline.system.globs import RUN_SUFFIX
from pipeline.system.remote import is_address
from pipeline.wording import setting

if TYPE_CHECKING:
    from pipeline.store.objects import Objects, Output

    # A path, or an address such as `s3://bucket/key`.
    Place = Path | str

# File systems allow 255; the run directory and temporary files take the name with a bit more.
LONGEST_NAME_BYTES = 230
_HUB = "hf://"
# Events only tell what happens, so they need not be stored as fast as answers.
_EVENTS_S = 5.0


def open_store(output: Place, run_dir: Place | None = None) -> RunStore:
    """Return the store of a run: its state is in `run_dir`, or else in `OUTPUT.run`.

    Raises OutputError for places that cannot be.
    """
    state = run_dir or _directory_of(output)
    if isinstance(state, Path):
        return LocalStore(output, state)
    _check_writable("run_dir", state)
    objects = RemoteObjects(state)
    return RunStore(
        objects,
        BeatLease(objects),
        FramesFile(objects, "answers/"),
        FramesFile(objects, "events/", _EVENTS_S),
        _output_at(output, None, objects),
    )


def located(output: Place, run_dir: Place | None = None) -> RunStore:
    """Return the store of an output, which may be given by its run directory.

    Raises OutputError for a place without a name.
    """
    if run_dir is not None:
        return open_store(output, run_dir)
    beside = _directory_of(output)
    if isinstance(output, str):
        if not _holds_run(beside) and _holds_run(output):
            beside = output
            output = _told_output(output) or output.removesuffix(RUN_SUFFIX)
        return open_store(output, beside)
    assert isinstance(beside, Path)
    if beside.is_dir() or not any((output / name).exists() for name in ("log", MANIFEST)):
        return LocalStore(output, beside)
    # A checkpoint holds its output, most other run directories lie beside it.
    places: list[Place] = [output / "labelled.parquet"]
    places += [output.with_suffix("")] if output.suffix == RUN_SUFFIX else []
    there = next((place for place in places if Path(place).exists()), None)
    return LocalStore(there or _told_output(output) or places[0], output)


class LocalStore(RunStore):
    """The store of a run on a local disk, in `directory`: `OUTPUT.run` if none is given.

    Raises OutputError for a place that cannot be an output.
    """

    def __init__(self, output: Place, directory: Path | None = None) -> None:
        root = directory or _directory_of(output)
        assert isinstance(root, Path)
        objects = DiskObjects(root)
        super().__init__(
            objects,
            FlockLease(root),
            DiskFile(root / "responses.journal", failpoints="journal", mode=0o600),
            DiskFile(root / "events.jsonl"),
            _output_at(output, root, objects),
        )


def output_at(output: Place) -> Output:
    """Return an output for reading, wherever the state of its run is. Raises OutputError."""
    return _output_at(output, None, DiskObjects(Path()))


def _output_at(output: Place, root: Path | None, objects: Objects) -> Output:
    if isinstance(output, Path):
        return DiskOutput(output, root, objects)
    if output.startswith(_HUB):
        return HubOutput(output, objects)
    _check_writable("output", output)
    return RemoteOutput(output, objects)


def _check_writable(name: str, address: str) -> None:
    """Refuse an address that a run cannot write below. Raises OutputError."""
    scheme, _, rest = address.partition("://")
    if scheme not in SCHEMES:
        raise OutputError(
            f"{setting(name)}: {scheme}:// is no storage that can keep the state of a run.",
            f"Name a local directory, or an address with {', '.join(f'{s}://' for s in SCHEMES)}.",
        )
    place, _, key = rest.partition("/")
    if ("@" in place and not scheme.startswith("abfs")) or "?" in key:
        raise OutputError(
            f"{setting(name)}: the address holds a user name, a password or a query.",
            "Leave them out: credentials belong in the environment.",
        )
    if not place or not key.strip("/"):
        raise OutputError(
            f"{setting(name)}: {address} names no object in a bucket.",
            f"Give an address such as {scheme}://bucket/labelled.parquet.",
        )


def _holds_run(place: Place) -> bool:
    return isinstance(place, str) and bool(RemoteObjects(place).list("log/"))


def _told_output(run_dir: Place) -> Place | None:
    """Return which output a run directory is of, as far as its last summary tells."""
    objects = DiskObjects(run_dir) if isinstance(run_dir, Path) else RemoteObjects(run_dir)
    told = RunStore.summary_in(objects).get("output")
    return place_of(told) if isinstance(told, str) and told else None


def place_of(name: str | Path) -> Place:
    """Return an address as it is, and any other name as a path."""
    return str(name) if is_address(str(name)) else Path(name)


def _directory_of(output: Place) -> Place:
    """Return the run directory beside an output. Raises OutputError for an impossible name."""
    if isinstance(output, str):
        if output.startswith(_HUB):
            raise OutputError(
                f"{setting('run_dir')}: required for an output on the Hub, which cannot hold the "
                "state of a run.",
                f"Give a directory or an address: {setting('run_dir', 'labelled.run')}.",
            )
        _check_writable("output", output)
        return output.rstrip("/") + RUN_SUFFIX
    if not output.name or output.name == "..":
        raise OutputError(
            f"{setting('output')}: {str(output)!r} names no file.",
            "Give a path such as labelled.parquet.",
        )
    try:
        length = len(output.name.encode())
    except UnicodeEncodeError:
        raise OutputError(
            f"{setting('output')}: {str(output)!r} is not UTF-8.",
            "Choose another name.",
        ) from None
    if length > LONGEST_NAME_BYTES:
        raise OutputError(
            f"{setting('output')}: {output.name[:40]}... is too long a name: {length} "
            f"bytes, and {LONGEST_NAME_BYTES} leave room for what lies beside it.",
            "Choose a shorter one.",
        )
    return output.with_name(output.name + RUN_SUFFIX)
