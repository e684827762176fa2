"""The lease where a storage has no locks: its owner beats, and whoever wants it watches.

The lease is the object `lease/00000003.json` of the highest number. It tells who its owner is, a
nonce of that, and a `beat`, a number that the owner raises every BEAT_S. Another process takes the
lease by creating the next number, which only one can do, once the object has stayed as it is for
WATCH_S by the watcher's own clock; no clocks are compared. An owner that was killed on this machine
is not waited for.

That decides only who may try: an owner that was frozen for longer, and writes once more, is fenced
by the log. Its next beat tells it that it lost the lease.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import StoppedEarly
from pipeline.store.holder import Holder, busy, taken_over
from pipeline.store.objects import claim, ignored
from pipeline.system.threads import stop_point

if TYPE_CHECKING:
    from pipeline.store.objects import Objects, OnLost

BEAT_S = 5.0
WATCH_S = 30.0

FOLDER = "lease/"
_LOOKS_PER_BEAT = 10
_NAME = re.compile(r"lease/(\d{8,})\.json")


class BeatLease:
    """A lease on any kind of storage; `why` it is not a lock, for the message of a held one."""

    is_lock = False

    def __init__(self, objects: Objects, why: str = "") -> None:
        self._objects = objects
        self.why = why
        self._number = self._beat = 0
        self._facts: dict[str, Any] = {}
        self._dead: bytes | None = None  # what stayed as it was for as long as it was watched
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, *, create: bool, on_lost: OnLost = ignored) -> bool:
        numbers = self._numbers()
        if not (numbers or create):
            return False
        head = max(numbers, default=0)
        if head and (told := self._living(head)) is not None:
            raise busy(self._objects.place, told, self.why)
        self._number, self._beat = head + 1, 0
        owner = secrets.token_hex(8)
        self._facts = {**vars(Holder.here()), "owner": owner, "machine": _machine()}
        name = _name(self._number)
        if not claim(self._objects, name, self._content()):
            raise busy(self._objects.place, self._owner_of(self._number), self.why)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._go_on, args=(on_lost,), name="lease-beat", daemon=True
        )
        self._thread.start()
        with suppress(StoppedEarly):  # they count for nothing
            self._objects.delete(*map(_name, numbers))
        return True

    def is_held(self) -> bool:
        return max(self._numbers(), default=0) == self._number

    def release(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        with suppress(StoppedEarly):
            if max(self._numbers(), default=0) == self._number:
                self._facts["owner"] = None
                self._objects.put(_name(self._number), self._content())

    def holder(self) -> Holder | None:
        head = max(self._numbers(), default=0)
        return self._living(head) if head else None

    def _go_on(self, on_lost: OnLost) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(StoppedEarly):  # the log tells of a storage that is gone
                head = max(self._numbers(), default=0)
                if head != self._number:
                    if head:  # even if it was given back: that run may have done everything
                        on_lost(taken_over(self._objects.place, self._owner_of(head)))
                    return
                self._beat += 1
                self._objects.put(_name(self._number), self._content())

    def _owner_of(self, number: int) -> Holder:
        return Holder.parsed(self._objects.get(_name(number)) or b"") or Holder()

    def _content(self) -> bytes:
        return json.dumps({**self._facts, "beat": self._beat}).encode()

    def _living(self, number: int) -> Holder | None:
        """Return who holds a lease, None if it was given back, or its owner beats no more."""
        name = _name(number)
        first = content = self._objects.get(name)
        end = time.monotonic() + WATCH_S
        while content is not None and content != self._dead and _is_owned(content):
            if content != first:
                return Holder.parsed(content) or Holder()
            if _is_gone(content) or time.monotonic() >= end:
                self._dead = content
                break
            stop_point()
            time.sleep(min(BEAT_S, WATCH_S) / _LOOKS_PER_BEAT)
            content = self._objects.get(name)
        return None

    def _numbers(self) -> list[int]:
        found = map(_NAME.fullmatch, self._objects.list(FOLDER))
        return [int(match[1]) for match in found if match]


def _is_owned(content: bytes) -> bool:
    return _told(content).get("owner") is not None


def _told(content: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        found = json.loads(content)
        if isinstance(found, dict):
            return found
    return {}


def _is_gone(content: bytes) -> bool:
    """Return True if the owner was a process of this machine, and there is none of its number."""
    told = _told(content)
    pid, machine = told.get("pid"), told.get("machine")
    if machine is None or machine != _machine() or type(pid) is not int:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _machine() -> str | None:
    """Return what tells where the numbers of processes mean the same; None if nobody knows.

    That is the boot of the kernel, and the namespace: containers may share names of hosts.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except (OSError, ValueError):
        return None


def _name(number: int) -> str:
    return f"{FOLDER}{number:08d}.json"
