"""What a command sets for its whole process: signals before and after a run, and memory.

A command in a process of its own (`console`) leaves it so to the end; one that a program called
puts back what was there.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from contextlib import suppress

import click

from pipeline.system import means

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
# glibc's mallopt(3), by the variables that users may set instead: from which size a buffer is
# mapped by itself, and so given back when it is free, and how much may be free at the heap's end.
# Left alone, the first rises to 32 MiB, and the columns of a row group stay as holes in the heap.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2 << 20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 16 << 20),
}


def end_at_once() -> None:
    """Until a run begins, let a signal end the process, with the exit code of a stopped run."""
    before = {number: signal.getsignal(number) for number in _NUMBERS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        with suppress(OSError):
            words = f"Stopped by {name} before it was done. Run the same command again.\n"
            os.write(2, words.encode())
        # Not by an exception, which could strike in the middle of an import and be lost there.
        os._exit(128 + number)

    for number in _NUMBERS:
        signal.signal(number, end)
    context = click.get_current_context()
    if not context.obj:  # the program and its children would inherit what is ignored
        context.call_on_close(give_back)


def ignore_outside_of_the_run() -> None:
    """Ignore signals from when a run takes over: once it has ended, its summary is shown whole."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def fit(connections: int = 0) -> None:
    """Set what is not for a library to choose; to be called before Arrow is loaded.

    Raises SettingsError if the system does not let a process have so many connections, or the
    memory that it takes to load Arrow.

    Each row makes a few small objects, none in a cycle: at its defaults the garbage collector
    takes a fifth of a run. Arrow's own allocator keeps what each thread frees; with the system's a
    run peaks 130 MB lower, at the same speed, and hardly more for more rows, if that is told to map
    large buffers.
    """
    means.check(connections)
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # numpy's would take a stack and a buffer for each core, and is never asked to do anything.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import pyarrow as pa

    # They would swallow an interrupt during a long read.
    pa.enable_signal_handlers(False)
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")  # loaded when a thread ends; without memory, that aborts
    context = click.get_current_context()
    if context.obj:
        with suppress(AttributeError):  # another libc
            libc = ctypes.CDLL(None)
            for name, (number, size_bytes) in _MALLOC.items():
                if name not in os.environ:
                    libc.mallopt(number, size_bytes)
    else:
        context.call_on_close(lambda: gc.set_threshold(*before))
        context.call_on_close(gc.unfreeze)
