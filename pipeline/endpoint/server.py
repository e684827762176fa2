"""The HTTP application: the routes, headers and errors of the serverless Inference API."""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from pipeline.endpoint import protocol
from pipeline.endpoint.faults import POISON_ERROR, Fault, FaultOptions, Faults, Hint
from pipeline.endpoint.models import ModelError
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from pipeline.endpoint.models import Model

# The limit of Text Embeddings Inference, the one server whose limit is known.
MAX_BODY_BYTES: Final = 2_000_000

_BAD_GATEWAY_PAGE: Final = (
    "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
    "<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n"
)
_NOT_JSON_PAGE: Final = "<!DOCTYPE html>\n<html><body>Everything is fine.</body></html>\n"


class Endpoint:
    """The models behind one address, with what goes wrong and what was counted.

    The first model is the default one, behind `/` and `/predict`. With a `token`, requests
    without it as bearer are refused with 401. One request at a time runs a model, in a thread of
    its own, as in the inference toolkit: the others queue, and the loop stays free to fail them.

    Raises SettingsError if two models have the same name.
    """

    def __init__(
        self,
        models: Sequence[Model],
        *,
        faults: FaultOptions | None = None,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            raise SettingsError(
                "Two of the models have the same name, which is their address: "
                f"{', '.join(model.name for model in models)}.",
                "Rename a directory.",
            )
        self._default = models[0].name
        self._faults = Faults(faults or FaultOptions(), clock=clock)
        self._token = token
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._closing = asyncio.Event()
        self._requests = 0
        self._texts = 0
        self._statuses: Counter[int] = Counter()
        self._drawn: Counter[str] = Counter()

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/", self._handle)
        app.router.add_post("/predict", self._handle)
        app.router.add_post("/models/{model:.+}", self._handle)
        app.router.add_get("/health", self._health)
        app.router.add_get("/stats", self._stats)
        app.on_shutdown.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok", "models": list(self._models)})

    async def _stats(self, _: web.Request) -> web.Response:
        return _json(
            {
                "requests": self._requests,
                "texts": self._texts,
                "statuses": {str(status): n for status, n in sorted(self._statuses.items())},
                "faults": dict(self._drawn),
            }
        )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._requests += 1
        admission = self._faults.admit()
        if admission is None or admission.allowed:
            response = await self._admitted(request)
        else:
            response = _error(429, "Rate limit reached. Please slow down, or log in or subscribe.")
            if self._faults.options.rate_hint is Hint.RETRY_AFTER:
                response.headers["Retry-After"] = str(math.ceil(admission.wait_s))
        if response.prepared:
            return response
        if admission is not None and self._faults.options.rate_hint is Hint.RATELIMIT:
            limit = self._faults.options.rate_limit
            reset_s = math.ceil(admission.wait_s)
            # Real servers send both with every answer: they bind only where r is 0.
            response.headers["RateLimit"] = f'"api";r={admission.remaining};t={reset_s}'
            response.headers["RateLimit-Policy"] = f'"fixed window";"api";q={limit};w=1'
        response.headers["x-request-id"] = str(uuid.uuid4())
        if request.transport is not None and not request.transport.is_closing():
            self._statuses[response.status] += 1
        return response

    async def _admitted(self, request: web.Request) -> web.StreamResponse:
        if not self._authorized(request):
            return _error(401, "Invalid credentials in Authorization header")
        name = request.match_info.get("model", self._default)
        model = self._models.get(name)
        if model is None:
            return _error(404, f"Model {name} does not exist")
        loading = await self._loading(request, name)
        if loading is not None:
            return loading
        await asyncio.sleep(self._faults.options.latency_ms / 1000)
        fault = self._faults.draw()
        if fault is not None:
            self._drawn[fault.value] += 1
        failed = await self._failed(request, fault)
        return await self._answer(request, model, fault) if failed is None else failed

    async def _failed(self, request: web.Request, fault: Fault | None) -> web.Response | None:
        match fault:
            case Fault.ERROR_500:
                return _error(500, "Internal Server Error")
            case Fault.BAD_GATEWAY:
                return web.Response(status=502, text=_BAD_GATEWAY_PAGE, content_type="text/html")
            case Fault.NOT_JSON:
                return web.Response(text=_NOT_JSON_PAGE, content_type="text/html")
            case Fault.HANG:
                await self._closing.wait()
                return _reset(request)
            case Fault.RESET:
                return _reset(request)
            case _:
                return None

    async def _answer(
        self, request: web.Request, model: Model, fault: Fault | None
    ) -> web.StreamResponse:
        try:
            query = protocol.parse(await request.read())
        except protocol.BadRequestError as error:
            return _error(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"the body is over {MAX_BODY_BYTES} bytes: send fewer texts")
        if self._faults.poisoned(each for pair in query.inputs for each in pair if each):
            return _error(400, POISON_ERROR)

        def compute() -> tuple[bytes, float]:
            begun = time.perf_counter()
            answer = protocol.shape(query, protocol.classify(query, model))
            body = orjson.dumps(answer[:-1] if fault is Fault.TOO_FEW else answer)
            return body, time.perf_counter() - begun

        try:
            body, seconds = await asyncio.get_running_loop().run_in_executor(self._thread, compute)
        except ModelError as error:
            return _error(400, str(error))
        self._texts += len(query.inputs)
        headers = {
            "x-sha": model.sha,
            "x-compute-type": "cpu",
            "x-compute-time": f"{seconds:.6f}",
        }
        if fault is Fault.TRUNCATED:
            return await self._truncated(request, body, headers)
        return web.Response(body=body, content_type="application/json", headers=headers)

    async def _loading(self, request: web.Request, name: str) -> web.Response | None:
        remaining_s = self._faults.loading_s(name)
        if request.headers.get("x-wait-for-model", "").lower() == "true":
            # Looked at again, because a loop's timer may fire a little before its time.
            while remaining_s and not self._closing.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(remaining_s):
                        await self._closing.wait()
                remaining_s = self._faults.loading_s(name)
        if not remaining_s:
            return None
        return _json(
            {"error": f"Model {name} is currently loading", "estimated_time": remaining_s},
            status=503,
        )

    async def _truncated(
        self, request: web.Request, body: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
        response.content_length = len(body)
        await response.prepare(request)
        self._statuses[response.status] += 1
        await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    def _authorized(self, request: web.Request) -> bool:
        if self._token is None:
            return True
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())


@asynccontextmanager
async def listening(app: web.Application, *, host: str, port: int) -> AsyncIterator[str]:
    """Serve `app` inside the block and give its address, `http://host:port`.

    Port 0 takes any free one. Raises SettingsError if the address cannot be bound.
    """
    # Cancellation lets go of a held or hanging request as soon as its client has left.
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise SettingsError(
                f"Cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}.",
                "Choose another port, or 0 for any free one.",
            ) from error
        bound_host, bound_port = runner.addresses[0][:2]
        shown = f"[{bound_host}]" if ":" in bound_host else bound_host
        yield f"http://{shown}:{bound_port}"
    finally:
        await runner.cleanup()


def serve_forever(
    endpoint: Callable[[], Endpoint],
    *,
    host: str,
    port: int,
    on_listening: Callable[[str], None],
    until_stdin_closes: bool = False,
) -> None:
    """Serve until SIGINT, SIGTERM or, with `until_stdin_closes`, the end of standard input.

    `endpoint` is called on the loop that serves it, `on_listening` with the address once requests
    are welcome. For the main thread of a process that does nothing else. Raises SettingsError if
    the address cannot be bound.
    """

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, stop.set)
        if until_stdin_closes:
            # A thread, because a loop can wait for a pipe but not for every kind of file.
            threading.Thread(target=_after_stdin, args=(loop, stop), daemon=True).start()
        async with listening(endpoint().application(), host=host, port=port) as url:
            on_listening(url)
            await stop.wait()

    asyncio.run(run())


def _after_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    # The loop is closed where the process is ending already.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(stop.set)


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": message}, status=status)


def _reset(request: web.Request) -> web.Response:
    """End the connection with a TCP RST; the response that is returned goes nowhere."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        # Lingering for 0 seconds makes close() throw away the connection instead of ending it.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()
