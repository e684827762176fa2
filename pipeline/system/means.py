"""What the system lets a process have: open files, threads and memory."""

from __future__ import annotations

import errno
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.errors import ClassifyError, SettingsError, StoppedEarly
from pipeline.wording import setting

if TYPE_CHECKING:
    from collections.abc import Iterator

# Beside its connections, a run has so many files open at most: input, records, the event loop.
_FILES = 32
# With less, the libraries that it loads end the process before anything can be said.
_MEMORY_MB = 768

# What Python and the loader of libraries say, beside MemoryError.
_NO_MEMORY = ("can't start new thread", "failed to map segment", "Cannot allocate memory")


def check(connections: int) -> None:
    """Raise the limit of open files if so many connections need it.

    Raises SettingsError if that is not allowed, or the limit of memory leaves too little.
    """
    limited, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _FILES
    if limited != resource.RLIM_INFINITY and limited < wanted:
        if most != resource.RLIM_INFINITY and most < wanted:
            fewer = setting("concurrency", str(most - _FILES))
            raise SettingsError(
                f"{setting('concurrency')}: this many requests at once need {wanted:,} open files, "
                f"and this process may have {most:,}.",
                "Raise the limit (`ulimit -n`)" + (f", or set {fewer}." if most > _FILES else "."),
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if memory != resource.RLIM_INFINITY and memory >> 20 < _MEMORY_MB:
        raise SettingsError(
            f"Not enough memory: this process may map {memory >> 20:,} MiB (`ulimit -v`), and "
            f"needs {_MEMORY_MB} MiB at least.",
            "Raise the limit.",
        )


def ran_out(error: BaseException) -> StoppedEarly | None:
    """Return what to tell if memory, threads or open files ran out; None for any other error."""
    words = str(error)
    if isinstance(error, ClassifyError):
        return None
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return StoppedEarly(
            f"{words.rstrip('.')}.",
            f"Raise the limit (`ulimit -n`) or lower {setting('concurrency')}, then run the same "
            "command again to continue.",
        )
    if isinstance(error, MemoryError) or any(sign in words for sign in _NO_MEMORY):
        return StoppedEarly(
            f"Not enough memory{': ' if words else ''}{words.partition(chr(10))[0].rstrip('.')}.",
            "Give it more (`ulimit -v` and `ulimit -u`, or the limit of the container), then run "
            "the same command again to continue.",
        )
    return None


@contextmanager
def told() -> Iterator[None]:
    """Raise StoppedEarly where memory, threads or open files run out."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        if (short := ran_out(error)) is None:
            raise
        raise short from error
