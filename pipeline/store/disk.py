"""The five verbs on a POSIX file system, and the other ways to make files durable there.

An object is written to a temporary file, which is synced and then gets its name: by link(2), which
refuses a name that is taken, or by rename(2), which replaces. The directory is synced last. Without
the first sync a power cut can leave an empty file under the name; without the last one the name
itself may be lost. A failed fsync is never retried: the kernel may have dropped the dirty pages, so
a second one would report success for data that is gone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.errors import OutputError, StoppedEarly
from pipeline.store.objects import TEMP_SUFFIX, reading, writing
from pipeline.system.failpoints import failpoint
from pipeline.system.threads import stop_point
from pipeline.wording import setting

_READ_BYTES = 1 << 20
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how a blank is written there
# What flock says if there are no locks: some of NFS, Lustre and FUSE.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)


class DiskObjects:
    """Objects as files below a directory; folders are made when they are needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = str(root)

    def create(self, name: str, content: bytes) -> bool:
        final, what = self._root / name, _kind(name)
        with writing(final):
            temp = self._temporary(final, content, what)
            try:
                os.link(temp, final)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                # A run that was begun elsewhere, and copied here, may have sent requests by now.
                begun = any(final.parent.glob("*.json"))
                raise (StoppedEarly if begun else OutputError)(
                    f"{setting('output')}: the file system of {self._root} has no hard "
                    "links, which a run needs for its log.",
                    "Choose another place.",
                ) from error
            finally:
                temp.unlink()
            failpoint(f"{what}.linked")
            fsync_path(final.parent)
            failpoint(f"{what}.created")
            return True

    def put(self, name: str, content: bytes) -> str | None:
        final, what = self._root / name, _kind(name)
        with writing(final):
            temp = self._temporary(final, content, what)
            temp.replace(final)
            failpoint(f"{what}.renamed")
            fsync_path(final.parent)
            failpoint(f"{what}.put")
        return None  # a disk may give back other bytes than it was given

    def get(self, name: str) -> bytes | None:
        path = self._root / name
        with reading(path):
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list(self, folder: str) -> list[str]:
        path = self._root / folder
        with reading(path):
            try:
                with os.scandir(path) as found:
                    # In a folder, a directory is no object but has the name of one.
                    names = [entry.name for entry in found if folder or not entry.is_dir()]
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(folder + name for name in names)

    def stamps(self, folder: str) -> dict[str, str | None]:
        return dict.fromkeys(self.list(folder))

    def free_bytes(self) -> int | None:
        place = next(path for path in (self._root, *self._root.absolute().parents) if path.exists())
        with reading(place):
            found = shutil.disk_usage(place)
        return found.free if found.total else None  # some file systems do not count

    def delete(self, *names: str) -> None:
        for name in names:
            path = self._root / name
            if not name.endswith("/"):
                with writing(path):
                    path.unlink(missing_ok=True)
                path = path.parent
            if path != self._root:
                with suppress(OSError):
                    path.rmdir()  # with the last object in it

    def check(self) -> None:
        pass  # what a file system lacks is found when it is first needed

    def _temporary(self, final: Path, content: bytes, what: str) -> Path:
        temp = final.with_name(f"{final.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
        if not final.parent.exists():
            final.parent.mkdir(exist_ok=True)
            fsync_path(final.parent.parent)
        with temp.open("xb") as file:
            file.write(content)
            file.flush()
            failpoint(f"{what}.written")
            os.fsync(file.fileno())
            failpoint(f"{what}.fsynced")
        return temp


def _kind(name: str) -> str:
    """Return what names the failpoints of an object: its folder, or its name without suffix."""
    return name.partition("/")[0].partition(".")[0]


_own: set[int] = set()


def open_own(path: Path, flags: int, mode: int) -> int:
    """Open a file that this process locks. Return its descriptor. Raises OSError, also for a link.

    A child of fork(2) does not keep the file: it may outlive this process, and the lock with it.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    _own.add(descriptor)
    return descriptor


def close_own(descriptor: int) -> None:
    """Close what `open_own` opened."""
    _own.discard(descriptor)
    os.close(descriptor)


def _let_go_in_child() -> None:
    # Not closed: the numbers would be given to other files, which copies of objects then close.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _own:
        os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go_in_child)


def replace_file(path: Path, content: bytes) -> None:
    """Replace the content of a file by one rename, not durably. Raises OSError."""
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        with temp.open("xb") as file:
            file.write(content)
        temp.replace(path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Fsync a file or a directory by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(temp: Path, final: Path) -> None:
    """Make the closed file `temp` durable under the name `final`, atomically."""
    fsync_path(temp)
    failpoint("output.fsynced")
    temp.replace(final)
    failpoint("output.renamed")
    fsync_path(final.parent)
    failpoint("output.durable")


def aside_of(temp: Path) -> Path:
    """Return where `commit_directory` keeps what `temp` replaces until that is durable."""
    return temp.with_name(f"{temp.stem.removesuffix('assembled')}replaced{TEMP_SUFFIX}")


def commit_directory(temp: Path, final: Path) -> None:
    """Make a directory of closed files durable under the name `final`.

    POSIX renames a directory over an empty one only, so an existing `final` is moved aside
    first: for that instant there is neither the old nor the new, but never a mixture.
    """
    for file in temp.iterdir():
        fsync_path(file)
    fsync_path(temp)
    failpoint("output.directory fsynced")
    aside = aside_of(temp)
    if final.exists():
        remove(aside)  # a kill may have left it, with what `final` has replaced since
        final.rename(aside)
        failpoint("output.moved aside")
    temp.rename(final)
    failpoint("output.directory renamed")
    fsync_path(final.parent)
    failpoint("output.directory durable")
    remove(aside)


def is_mount(path: Path) -> bool:
    """Return True if something is mounted at a path that exists, a file or a directory."""
    own = os.fsencode(path.parent.resolve() / path.name)
    with suppress(OSError):  # Linux; this finds what lies on the same file system, too
        for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
            if _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4]) == own:
                return True
    return path.is_mount()


def measure(path: Path) -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            stop_point()
            digest.update(piece)
        return file.tell(), digest.hexdigest()


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it; missing is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
