"""Loaded by a child process of the fault suite, whose disk then does what `FAULTY_DISK` says.

`FAULTY_DISK` is a JSON object:

    log     a file; each fsync of a file or directory and what was durable by it is written there
    shadow  a directory on the same filesystem; keeps what was synced, also when it loses its name
    fail    a list of {call, match, errno, at, lasting}: the `at`-th call on a path that matches
            fails, and with `lasting` all later ones
    slow    a list of {match, seconds}: an fsync of a path that matches takes so much longer
    skip    a list of expressions: fsyncs of such paths do nothing, to test the tests

Only calls of `os` are seen. pyarrow writes files in C++, which no fsync follows unless the package
makes one, so what counts as durable does not depend on seeing the writes.
"""

import errno
import json
import os
import re
import time
from pathlib import Path

_plan = json.loads(os.environ.get("FAULTY_DISK", "{}"))
_log = None
if "log" in _plan:
    _log = os.open(_plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def _write(record):
    if _log is not None:
        os.write(_log, json.dumps(record).encode() + b"\n")


def _path_of(target):
    if isinstance(target, int):
        return os.readlink(f"/proc/self/fd/{target}")  # noqa: PTH115 - as os.fspath does, a text
    return os.fspath(target)


def _entries(directory):
    """Names and inodes, those of directories negative: a removed one's may soon be a file's."""
    with os.scandir(directory) as found:
        return {entry.name: entry.inode() * (-1 if entry.is_dir() else 1) for entry in found}


def _synced(descriptor, path):
    """Note what is durable from now on: a file's bytes so far, or a directory's names."""
    status = os.fstat(descriptor)
    if os.path.isdir(path):  # noqa: PTH112 - before pathlib is worth its price
        _write({"directory": status.st_ino, "entries": _entries(path)})
        return
    kept = Path(_plan["shadow"], str(status.st_ino)) if "shadow" in _plan else None
    if kept is not None and not kept.exists():
        os.link(path, kept)
    _write({"file": status.st_ino, "bytes": status.st_size})


_seen = [0] * len(_plan.get("fail", []))


def _may_fail(call, path):
    for i, rule in enumerate(_plan.get("fail", [])):
        if rule["call"] != call or not re.search(rule["match"], path):
            continue
        _seen[i] += 1
        at = rule.get("at", 1)
        if _seen[i] == at or (rule.get("lasting") and _seen[i] > at):
            there = Path(path)
            inode = there.stat().st_ino if there.exists() else None
            _write({"failed": path, "call": call, "inode": inode})
            raise OSError(rule["errno"], os.strerror(rule["errno"]))


def _syncing(name):
    real = getattr(os, name)

    def sync(descriptor):
        path = _path_of(descriptor)
        _write({"call": "fsync", "path": path, "inode": os.fstat(descriptor).st_ino})
        _may_fail("fsync", path)
        for rule in _plan.get("slow", []):
            if re.search(rule["match"], path):
                _write({"slow": os.path.basename(path)})  # noqa: PTH119 - as above
                time.sleep(rule["seconds"])
        if any(re.search(expression, path) for expression in _plan.get("skip", [])):
            return
        real(descriptor)
        _synced(descriptor, path)

    setattr(os, name, sync)


def _writing():
    real_write, real_open = os.write, os.open

    def write(descriptor, content):
        if descriptor > 2 and descriptor != _log:
            _may_fail("write", _path_of(descriptor))
        return real_write(descriptor, content)

    def open_(path, flags, *more, **named):
        if flags & (os.O_WRONLY | os.O_RDWR):
            _may_fail("open", os.fspath(path))
        return real_open(path, flags, *more, **named)

    os.write, os.open = write, open_


if _plan:
    _syncing("fsync")
    _syncing("fdatasync")
    if any(rule["call"] in ("write", "open") for rule in _plan.get("fail", [])):
        _writing()
    if "file_bytes" in _plan:
        # A limit on the size of files stands for a full disk: pyarrow's writes meet it too.
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_plan["file_bytes"], resource.RLIM_INFINITY))

del errno
