"""Signals before and after a run, which answers them itself while it lasts."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


def end_at_once() -> Callable[[], None]:
    """Until a run begins: say so and end, with the exit code of a run that was stopped.

    Gives what puts the handlers back that were there, for a process that does more than this
    command: its children would inherit what it ignores.
    """
    before = {number: signal.getsignal(number) for number in _NUMBERS}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end(number: int, _frame: object) -> None:
        name = signal.Signals(number).name
        message = f"Stopped by {name} before anything was done. Run the same command again.\n"
        os.write(2, message.encode())
        # Not by an exception, which could strike in the middle of an import and be lost there.
        os._exit(128 + number)

    for number in _NUMBERS:
        signal.signal(number, end)
    return give_back


def ignore_outside_of_the_run() -> None:
    """From where a run takes over: once it has ended, what came of it is told to the end."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)
