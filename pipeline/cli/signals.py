"""Signals before and after a run, which answers them itself while it lasts."""

from __future__ import annotations

import os
import signal

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> None:
    """Until a run begins: say so and end, with the exit code of a run that was stopped."""

    def end(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        message = f"Stopped by {name} before anything was done. Run the same command again.\n"
        os.write(2, message.encode())
        # Not by an exception, which could strike in the middle of an import and be lost there.
        os._exit(128 + number)

    for number in _NUMBERS:
        signal.signal(number, end)


def ignore_outside_of_the_run() -> None:
    """From where a run takes over: once it has ended, what came of it is told to the end."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
