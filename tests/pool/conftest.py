"""A scripted server and a pool in one event loop, in virtual time.

Nothing of the package is replaced: the client speaks HTTP over real sockets on 127.0.0.1. Only
time is virtual. When the loop has nothing to do but wait, its clock jumps to the next timer, so
that an outage of ten minutes takes no time at all and every duration is exact.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import selectors
import socket
import struct
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web

from pipeline.client import Client, Target, dialect_of
from pipeline.client.token import Token
from pipeline.config import RunConfig
from pipeline.errors import ClassifyError
from pipeline.events import Notice, Requests, Waiting
from pipeline.observers.words import notice
from pipeline.outcomes import RowError
from pipeline.pool import Pool
from pipeline.probing import MOST_REQUESTS, judge
from pipeline.probing.asking import Findings, examine
from pipeline.rows import Allowance, DriftGuard, Revision
from pipeline.system.clock import Clock
from pipeline.system.threads import Stop
from tests.labels import LABELS, labels_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

TOKEN = "hf_secretsecretsecret"
# Every turn of the loop takes this long, so that time also passes while it is busy.
TURN_S = 1e-6


class VirtualSelector(selectors.DefaultSelector):
    """Instead of waiting for a timer, moves the clock to it; waits for threads in earnest."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.threads = 0

    def select(self, timeout: float | None = None) -> Any:
        self.now += TURN_S
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.threads or timeout is None:
            return super().select(None)
        time.sleep(0)  # lets the kernel deliver what was sent over the loopback
        events = super().select(0)
        if not events:
            self.now += max(timeout, 0.0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is virtual; `complaints` is what it was told of lost errors."""

    def __init__(self) -> None:
        self.virtual = VirtualSelector()
        self.complaints: list[str] = []
        super().__init__(self.virtual)

    def time(self) -> float:
        return self.virtual.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = super().run_in_executor(executor, func, *args)
        self.virtual.threads += 1
        future.add_done_callback(lambda _: self._returned())
        return future

    async def shutdown_default_executor(self, *timeout: Any) -> None:
        self.virtual.threads += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._returned()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _returned(self) -> None:
        self.virtual.threads -= 1


def pytest_asyncio_loop_factories(config, item):
    return {"virtual": VirtualLoop}


class LoopClock(Clock):
    """The loop's own time; jitter is always the same `share` of its range."""

    def __init__(self, share: float = 0.5) -> None:
        self._share = share

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def jitter(self, low: float, high: float) -> float:
        return low + self._share * (high - low)


def item_labels(item: Any) -> list[dict[str, Any]]:
    """The scripted server's labels of a text or pair, best first."""
    return labels_of(item) if isinstance(item, str) else labels_of(*item)


def outcome_of(item: Any, top_k: int | None = 1) -> tuple[tuple[str, float], ...]:
    """The outcome that a pool must give for a text or pair."""
    return tuple((found["label"], found["score"]) for found in item_labels(item)[:top_k])


@dataclass
class Asked:
    """One request as the server received it; `items` are its texts and pairs."""

    number: int
    at: float
    method: str
    path: str
    headers: Any
    body: Any
    items: list[Any]
    in_flight: int


@dataclass
class Said:
    """What the server answers; `body` None stands for the right answer.

    `how`: `whole`, `reset` (before the answer), `reset in the body`, `short` (less than the
    Content-Length), `silent` (headers, then nothing), `drip` (a byte a second), `never`,
    `garbage` (no HTTP).
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    how: str = "whole"


class ScriptedServer:
    """A server on 127.0.0.1 in the test's own loop; `info` is its page, or gives one by its path.

    `speaks`: `hf`, `compat`, `tei`, `single` (refuses lists), `first` (answers the first of a
    list only), `flat` (a label an input, in one list), `liar` (wrong labels in batches).
    """

    def __init__(
        self,
        script: Callable[[Asked], Any] | None,
        *,
        speaks: str,
        info: Any,
        latency_s: float,
        keepalive_s: float,
    ) -> None:
        self.script = script or (lambda _: None)
        self.speaks = speaks
        self.info = info
        self.latency_s = latency_s
        self.requests: list[Asked] = []
        self.statuses: list[int] = []  # 0 stands for an answer that was not whole
        self.in_flight = self.peak = 0
        self.port = 0
        self._keepalive_s = keepalive_s
        self._ended = asyncio.Event()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def posts(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.method == "POST"]

    @property
    def items(self) -> list[Any]:
        """Every text or pair that was ever sent."""
        return [item for asked in self.requests for item in asked.items]

    def most_in_a_second(self) -> int:
        """The most requests in any sliding window of one second."""
        times = [asked.at for asked in self.requests]
        most = first = 0
        for last, at in enumerate(times):
            while at - times[first] >= 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.01, keepalive_timeout=self._keepalive_s
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def end(self) -> None:
        self._ended.set()
        await self.stop()
        # Whoever asked may be gone while its handler still runs.
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        at = asyncio.get_running_loop().time()
        content = await http.read()
        body = orjson.loads(content) if content else None
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        given = body if isinstance(body, dict) else {}
        inputs = next((given[k] for k in ("inputs", "input", "instances") if k in given), None)
        entries = inputs if isinstance(inputs, list) else [] if inputs is None else [inputs]
        asked = Asked(
            len(self.requests), at, http.method, http.path, http.headers, body,
            [_plain(entry) for entry in entries], self.in_flight,
        )  # fmt: skip
        self.requests.append(asked)
        try:
            said = None
            if http.method == "GET" and callable(self.info):
                said = self.info(http.path)
            elif http.method == "GET" and self.info is not None:
                said = self.info if isinstance(self.info, Said) else Said(body=self.info)
            elif http.method == "GET":
                said = Said(404, "not found")
            else:
                said = self.script(asked)
                if inspect.isawaitable(said):
                    said = await said
            said = said or Said()
            await asyncio.sleep(self.latency_s + said.after_s)
            return await self._say(http, asked, said)
        finally:
            self.in_flight -= 1

    async def _say(self, http: web.Request, asked: Asked, said: Said) -> web.StreamResponse:
        status, body = said.status, said.body
        if body is None and status == 200:
            status, body = self._right(asked)
        content = body if isinstance(body, bytes) else None
        if content is None:
            content = body.encode() if isinstance(body, str) else orjson.dumps(body)
        self.statuses.append(status if said.how == "whole" else 0)
        if said.how == "whole":
            headers = {"Content-Type": "application/json", **said.headers}
            return web.Response(status=status, body=content, headers=headers)
        if said.how in ("never", "silent", "drip"):
            return await self._hang(http, content, said.how)
        return await self._die(http, content, said.how)

    async def _hang(self, http: web.Request, content: bytes, how: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        if how != "never":
            await response.prepare(http)
        if how == "drip":
            for at in range(len(content)):
                if self._ended.is_set() or http.transport is None or http.transport.is_closing():
                    return response
                await response.write(content[at : at + 1])
                await asyncio.sleep(1.0)
            return response
        await self._ended.wait()
        raise asyncio.CancelledError

    async def _die(self, http: web.Request, content: bytes, how: str) -> web.StreamResponse:
        transport = http.transport
        if transport is None:
            return web.Response()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        if how == "garbage":
            transport.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        elif how != "reset":
            transport.write(head % len(content) + content[: len(content) // 2])
        if how.startswith("reset"):
            await asyncio.sleep(0.001)
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, linger
            )
            transport.abort()
        else:
            transport.close()
        return web.Response()

    def _right(self, asked: Asked) -> tuple[int, Any]:
        inputs = asked.body["inputs"]
        parameters = asked.body.get("parameters", {})
        top_k = parameters.get("top_k")
        if self.speaks == "tei":
            return _tei_answer(inputs, self.info)
        if not isinstance(inputs, list):
            if isinstance(inputs, dict) and self.speaks != "single":
                return 400, {"error": "a bare pair is not allowed"}
            return 200, item_labels(_plain(inputs))[:top_k]
        if self.speaks == "single":
            return 422, {"error": "inputs must be a string"}
        items = [_plain(entry) for entry in inputs]
        if self.speaks == "first":
            return 200, [item_labels(items[0])[:top_k]]
        if self.speaks == "flat":
            return 200, [item_labels(item)[0] for item in items]
        if self.speaks == "compat" and "top_k" not in parameters:
            return 200, [[item_labels(item)[0] for item in items]]
        if self.speaks == "liar" and len(items) > 1:
            items = [f"wrong {item}" for item in items]
        return 200, [item_labels(item)[:top_k] for item in items]


def _plain(entry: Any) -> Any:
    """An entry of `inputs` as the item that was asked: a text, or a tuple of text and pair."""
    if isinstance(entry, dict):
        return entry.get("text"), entry.get("text_pair")
    if isinstance(entry, list):
        return entry[0] if len(entry) == 1 else tuple(entry)
    return entry


def _tei_answer(inputs: Any, info: Any) -> tuple[int, Any]:
    """Text Embeddings Inference: a list of texts is one text or one pair, silently."""
    if isinstance(inputs, str):
        return 200, item_labels(inputs)
    if isinstance(inputs, list) and all(isinstance(entry, str) for entry in inputs):
        if len(inputs) in (1, 2):
            return 200, item_labels(_plain(inputs))
        return 422, "a pair has two texts"
    if not isinstance(inputs, list) or not all(isinstance(entry, list) for entry in inputs):
        return 422, "no such form"
    most = info["max_client_batch_size"] if isinstance(info, dict) else 32
    if len(inputs) > most:
        return 422, {"error": f"batch size {len(inputs)} > maximum allowed batch size {most}"}
    return 200, [item_labels(_plain(entry)) for entry in inputs]


@dataclass
class Running:
    """A pool at work, what it saved (key, outcome, revision) and what it said."""

    pool: Pool
    client: Client
    stop: Stop
    drift: DriftGuard
    allowance: Allowance
    events: list[Any]
    saved: dict[bytes, tuple[Any, str | None]]

    async def ask(self, items: Sequence[Any]) -> list[Any]:
        """Announce the items and ask for them; they fill batches with those of other calls."""
        self.pool.demand.expect()
        return await self.answers(items)

    async def label(self, items: Sequence[Any]) -> list[Any]:
        """Ask for all there is."""
        self.pool.demand.expect()
        self.pool.demand.end()
        return await self.answers(items)

    async def answers(self, items: Sequence[Any]) -> list[Any]:
        """Ask for what was announced, and take the answers as a run does."""
        outcomes: list[Any] = [None] * len(items)

        def arrived(places: Sequence[int], some: Sequence[Any], told: str | None) -> bool:
            for place, outcome in zip(places, some, strict=True):
                key = key_of(items[place])
                assert key not in self.saved, "an input was answered twice"
                self.saved[key] = (outcome, told)
                outcomes[place] = outcome
            try:
                self.drift.observe(told)
                for outcome in some:
                    if isinstance(outcome, RowError):
                        self.allowance.input_failed(outcome.message)
            except ClassifyError as reason:
                self.stop.ask(reason)
                return False
            return True

        await self.pool.ask(items, arrived)
        return outcomes

    @property
    def notices(self) -> list[str]:
        return [notice(event) for event in self.events if isinstance(event, Notice)]

    @property
    def waits(self) -> list[Waiting]:
        return [event for event in self.events if isinstance(event, Waiting)]

    @property
    def told(self) -> list[Requests]:
        """What was told of the attempts, up to now."""
        self.pool.tally.flush()
        return [event for event in self.events if isinstance(event, Requests)]

    @property
    def causes(self) -> list[str | None]:
        """How each attempt ended; None where it was good."""
        ended = [how for event in self.told for how in Counter(event.ended).elements()]
        return [cause for _, cause in ended]

    @property
    def answered(self) -> int:
        return sum(event.inputs for event in self.told)


def key_of(item: Any) -> bytes:
    return repr(item).encode()


def run_config(endpoint: str | list[str] = "http://127.0.0.1:1", **settings: Any) -> RunConfig:
    """A config with the dialect given, so that each request is one that the input asks for."""
    known = {"dialect": "hf", "concurrency": 4, "batch_size": 4, "timeout_s": 30.0}
    known |= {"exact_scores": True}
    return RunConfig(input="in.csv", output="out.parquet", endpoint=endpoint, **known | settings)


@asynccontextmanager
async def serve(
    script: Callable[[Asked], Any] | None = None,
    *,
    speaks: str = "hf",
    info: Any = None,
    latency_s: float = 0.01,
    keepalive_s: float = 75.0,
) -> AsyncIterator[ScriptedServer]:
    """A scripted server that listens; see `ScriptedServer`."""
    server = ScriptedServer(
        script, speaks=speaks, info=info, latency_s=latency_s, keepalive_s=keepalive_s
    )
    await server.start()
    try:
        yield server
    finally:
        await server.end()


@asynccontextmanager
async def pool_for(
    server: ScriptedServer | str | list[str],
    *,
    token: str | None = None,
    expected: str | None = None,
    clock: Clock | None = None,
    **settings: Any,
) -> AsyncIterator[Running]:
    """A pool that asks the server; `expected` is the revision that an earlier attempt saw."""
    url = server if isinstance(server, str | list) else server.url
    config = run_config(url, **settings)
    events: list[Any] = []
    saved: dict[bytes, tuple[Any, str | None]] = {}
    stop = Stop()
    recorded = Revision(expected, told=expected is not None)
    drift = DriftGuard(recorded, events.append, allow_drift=config.allow_drift)
    allowance = Allowance(config, 0, 0)
    async with AsyncExitStack() as stack:
        targets = [Target.of(config, token, address=each) for each in config.addresses]
        clients = [await stack.enter_async_context(Client(config, each)) for each in targets]
        pool = Pool(config, clients, clock or LoopClock(), events.append, stop)
        async with pool:
            yield Running(pool, clients[0], stop, drift, allowance, events, saved)


def run(main: Callable[[], Awaitable[Any]], *, debug: bool = False) -> Any:
    """Run a coroutine function in a virtual loop of its own (for property tests)."""
    with asyncio.Runner(loop_factory=VirtualLoop, debug=debug) as runner:
        return runner.run(main())  # type: ignore[arg-type]


def nothing_left() -> list[str]:
    """What a piece of work left behind in the running loop: tasks, and errors nobody saw."""
    gc.collect()
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [*map(repr, tasks), *loop.complaints]


async def examined(config, target, token, texts, emit):
    dialect = dialect_of(target.dialect, config)
    found = Findings(config, target, token, from_input=True, dialect=dialect)
    await examine(found, texts, LoopClock(), emit)
    return judge(found)


class Kit:
    """Everything above, for tests: test folders are no packages, so nothing can be imported."""

    TOKEN = TOKEN
    LABELS = LABELS
    Said = Said
    LoopClock = LoopClock
    VirtualLoop = VirtualLoop
    serve = staticmethod(serve)
    pool = staticmethod(pool_for)
    config = staticmethod(run_config)
    labels_of = staticmethod(item_labels)
    outcome_of = staticmethod(outcome_of)
    key_of = staticmethod(key_of)
    run = staticmethod(run)
    examined = staticmethod(examined)
    nothing_left = staticmethod(nothing_left)

    @staticmethod
    def texts(count: int) -> list[str]:
        return [f"text {i}" for i in range(count)]

    @staticmethod
    def right(items: Sequence[Any]) -> list[Any]:
        return [outcome_of(item) for item in items]

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()


@pytest.fixture(scope="session")
def kit() -> type[Kit]:
    """The scripted server, the pool around it, and what both agree on."""
    return Kit


@pytest.fixture
def probe(kit):
    """Probe an endpoint as the command does, with 96 texts; never more than the stated requests."""

    async def run(server, *, token=None, texts=96, **settings):
        url = server if isinstance(server, str) else server.url
        config = kit.config(url, **{"dialect": "auto", "batch_size": 32, **settings})
        events = []
        given = kit.texts(texts)
        if config.text_pair:
            given = [(text, "pair") for text in given]
        target = Target.of(config, token.value if token else None)
        found = await examined(config, target, token or Token(None), given, events.append)
        assert found.requests - found.loading_requests <= MOST_REQUESTS
        if not isinstance(server, str):
            assert found.requests == len(server.requests)
        return found

    return run
