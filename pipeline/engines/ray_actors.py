"""Workers as actors of a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.engines.worker import Worker as _Worker
from pipeline.errors import SettingsError
from pipeline.system.threads import in_thread
from pipeline.wording import reason, setting, with_extra

if TYPE_CHECKING:
    from pipeline.engines.member import Worker

# A worker waits for answers most of its time: a node that is full of other work has room for it,
# and an empty one still counts each, so that they spread.
CPUS = 0.1
# Ray itself would go on trying for minutes: how long its address may take to answer at all, and how
# long to connect to the cluster behind it, which takes two seconds.
ANSWER_S, CONNECT_S = 5.0, 60.0
# How HTTP/2 begins, which its server answers with a frame of settings (RFC 9113, 3.4).
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
_FRAME_HEAD_BYTES, _SETTINGS = 9, 4
_ADDRESS = re.compile(r"[^/]+:\d+")


class Actor:
    """A worker in a process of the cluster: `push` brings it frames, `poll` waits for its own.

    A beat comes twice a second, so no `poll` takes longer.
    """

    def __init__(self) -> None:
        self._worker: _Worker | None = None
        self._out: list[bytes] = []
        self._some = asyncio.Event()

    async def push(self, frames: bytes) -> None:
        """Take frames of the run."""
        self._opened().take(frames)

    async def poll(self) -> bytes:
        """Return frames to the run, once there are some."""
        self._opened()
        await self._some.wait()
        self._some.clear()
        out, self._out = self._out, []
        return b"".join(out)

    def _opened(self) -> _Worker:
        if self._worker is None:
            self._worker = _Worker(self._write)  # in the loop, which there is not before
        return self._worker

    def _write(self, frames: list[bytes]) -> None:
        self._out += frames
        self._some.set()


class Actors:
    """Starts each worker as an actor, spread over the nodes of the cluster at an address.

    Ray never starts one again, nor repeats a call: that is for the run to decide.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._ray: Any = None
        # True if the run connected to Ray, and not its caller.
        self._is_ours = False
        self._connecting = asyncio.Lock()

    async def employ(self, worker: Worker) -> str:
        """Start a worker, and return once it has ended: why, in words.

        Raises SettingsError if there is no cluster, or the package is missing on a node.
        """
        async with self._connecting:
            if self._ray is None:
                # In the main thread, Ray would take over SIGTERM, which is to drain the run.
                self._ray, self._is_ours = await in_thread(partial(_connected, self._address))
        ray = self._ray
        options = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        actor = ray.remote(num_cpus=CPUS, **options)(Actor).remote()
        worker.connect(lambda frames: actor.push.remote(b"".join(frames)))
        leaving: asyncio.Future[Any] = asyncio.ensure_future(worker.leaves.wait())
        polling: asyncio.Future[bytes] | None = None
        try:
            while not leaving.done():
                polling = asyncio.wrap_future(actor.poll.remote().future())
                both: list[asyncio.Future[Any]] = [polling, leaving]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if polling.done():
                    worker.received(polling.result())
        except ray.exceptions.RayError as error:
            return _words_of(error)
        finally:
            leaving.cancel()
            if polling is not None:
                polling.cancel()
            with suppress(ray.exceptions.RayError):
                ray.kill(actor, no_restart=True)
        return "the run ended it"

    async def close(self) -> None:
        """Disconnect from Ray if the run connected, so that the next one may go elsewhere."""
        if self._is_ours:
            await in_thread(self._ray.shutdown)


def _connected(address: str | None) -> tuple[Any, bool]:
    """Return Ray, connected, and whether it was not before.

    Raises SettingsError if it is not installed, or finds no cluster.
    """
    try:
        import ray
    except ImportError:
        raise SettingsError(
            f"{setting('engine', 'ray')}: Ray is not installed. {with_extra('ray')}",
        ) from None
    if is_new := not ray.is_initialized():
        # Outside the main thread it cannot handle SIGTERM, and logs a warning.
        logger = logging.getLogger("ray._private.worker")
        before = logger.level
        logger.setLevel(logging.ERROR)
        place = None if address == "auto" else address
        if place is None and _ADDRESS.fullmatch(told := os.environ.get("RAY_ADDRESS", "")):
            place = told  # which Ray takes then
        try:
            if place is not None:
                _check_answers(place)
            _init(ray, address or "auto")
        except (OSError, ValueError, RuntimeError) as error:
            raise SettingsError(
                f"{setting('engine', 'ray')}: cannot connect to a Ray cluster at "
                f"{place or 'this machine'}: {reason(error)}",
                f"Run this on a machine of the cluster, or set {setting('ray_address')}.",
            ) from None
        finally:
            logger.setLevel(before)
    return ray, is_new


def _check_answers(address: str) -> None:
    """Raise OSError if nothing answers there as gRPC does, ValueError if it is no address."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return  # it would not answer this
        connection.sendall(_PREFACE)
        with connection.makefile("rb") as answer:
            head = answer.read(_FRAME_HEAD_BYTES)
    if len(head) < _FRAME_HEAD_BYTES or head[3] != _SETTINGS:
        raise OSError("what answers there is no Ray cluster")


def _init(ray: Any, address: str) -> None:
    """Connect, in a thread that nobody waits for if it takes too long. Raises what Ray does."""
    done: Future[None] = Future()

    def work() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # noqa: BLE001  (raised by who waits)
            with suppress(InvalidStateError):
                done.set_exception(error)
        else:
            try:
                done.set_result(None)
            except InvalidStateError:  # nobody waited for so long
                ray.shutdown()

    threading.Thread(target=work, name="ray-connect", daemon=True).start()
    try:
        done.result(CONNECT_S)
    except TimeoutError:
        done.cancel()
        raise TimeoutError(f"no answer within {CONNECT_S:g} s") from None


def _words_of(error: Exception) -> str:
    """Return what ended an actor. Raises SettingsError if the package is missing there."""
    words = str(error)
    if "ModuleNotFoundError" in words or "No module named" in words:
        raise SettingsError(
            "A node of the Ray cluster does not have this package.",
            "Install classify-pipeline of the same version on every node, or name it in the "
            "`runtime_env` of the job.",
        ) from None
    return " ".join(words.split())[:300] or type(error).__name__
