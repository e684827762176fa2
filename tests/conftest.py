"""What the tests of a whole run share: a scripted server, the command line, and tables to label.

Nothing of the package is replaced in these tests. They speak to real servers on 127.0.0.1 and,
where a process matters (signals, kills, exit codes, terminals), start the installed command.
"""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import huggingface_hub.constants
import pytest
from aiohttp import web

import pipeline.api
from pipeline import foreign
from pipeline.config import RunConfig
from pipeline.responses import ResponseStore
from pipeline.store import LocalStore
from tests.forked import Forked, Forks
from tests.labels import labels_of
from tests.report import chromium

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Long enough for a loaded machine; it bounds a hanging test and is never reached by a good one.
PATIENCE_S = 40.0

# A shell ignores SIGINT for what it starts in the background, and so do the children of that: the
# processes that tests interrupt would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LEFT_OUT = "Chromium is not installed: the tests that look at the report in a browser are left out."


def without_browser() -> bool:
    """True if tests that need a browser are left out; where CI=true they fail instead."""
    return chromium.find() is None and os.environ.get("CI") != "true"


def pytest_report_header() -> list[str]:
    return [LEFT_OUT] if without_browser() else []


def pytest_terminal_summary(terminalreporter):
    if without_browser():
        terminalreporter.write_line(LEFT_OUT, yellow=True)


def pytest_collection_modifyitems(config, items):
    if without_browser():
        left_out = [item for item in items if "browser" in item.fixturenames]
        items[:] = [item for item in items if "browser" not in item.fixturenames]
        config.hook.pytest_deselected(items=left_out)


@dataclass
class Request:
    """One request as the scripted server received it; `number` counts from 0.

    `port` is that of the other end, by which connections are told apart.
    """

    number: int
    at: float
    texts: list[str]
    parameters: dict[str, Any]
    headers: dict[str, str]
    answered: bool = False
    answered_at: float | None = None
    in_list: bool = True
    port: int = 0


@dataclass
class Reply:
    """What a script makes of a request; without a `body` the right answer is sent.

    `hold` keeps the request until `release`; `reset` cuts the connection instead of an answer.
    """

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hold: bool = False
    reset: bool = False


class ScriptedServer:
    """A server of the Hugging Face API (its serverless form) in a thread of its own.

    `script` is called with each request and may give a Reply; None stands for the right answer.
    """

    reply = Reply

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.in_flight = self.peak_in_flight = 0
        self.script: Callable[[Request], Reply | None] = lambda _: None
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(
            target=lambda: self._loop.run_until_complete(self._serve()), name="scripted-server"
        )
        self._thread.start()
        self._listening.wait(PATIENCE_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def texts(self) -> list[str]:
        """Every text that was ever sent, in order."""
        return [text for request in list(self.requests) for text in request.texts]

    @property
    def answered_texts(self) -> set[str]:
        """The texts of all requests that were answered with 200."""
        return {text for each in list(self.requests) if each.answered for text in each.texts}

    def sent_twice(self) -> set[str]:
        """The texts that were sent more than once."""
        return {text for text, count in Counter(self.texts).items() if count > 1}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something that a request or an answer changes has become true."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), "the server waited in vain"

    def release(self) -> None:
        """Answer every request that is held, and hold no more of them."""
        self._loop.call_soon_threadsafe(self._released.set)

    def reset(self) -> None:
        """Forget the requests and the script; requests can be held again."""
        self.requests.clear()
        self.script = lambda _: None
        self.peak_in_flight = 0
        self._loop.call_soon_threadsafe(self._released.clear)

    def close(self) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._released, self._stopped = asyncio.Event(), asyncio.Event()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        self._listening.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        asked = await http.json()
        inputs, parameters = asked["inputs"], asked.get("parameters", {})
        in_list = isinstance(inputs, list)
        inputs = inputs if in_list else [inputs]
        texts = [text if isinstance(text, str) else text["text"] for text in inputs]
        with self._changed:
            request = Request(
                len(self.requests), time.monotonic(), texts, parameters, dict(http.headers),
                in_list=in_list, port=http.transport.get_extra_info("peername")[1],
            )  # fmt: skip
            self.requests.append(request)
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
            self._changed.notify_all()
        try:
            return await self._reply(http, request, inputs)
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    async def _reply(
        self, http: web.Request, request: Request, inputs: list[Any]
    ) -> web.StreamResponse:
        reply = self.script(request) or Reply()
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.hold:
            await self._released.wait()
        if reply.reset:
            if http.transport is not None:
                connection = http.transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                http.transport.abort()
            return web.Response()
        body = reply.body
        if body is None and reply.status == 200:
            body = self._answers(inputs, request.parameters)
            request.answered, request.answered_at = True, time.monotonic()
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        return web.Response(
            status=reply.status,
            body=content,
            headers={"Content-Type": "application/json", **reply.headers},
        )

    @staticmethod
    def _answers(inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
        answers = [
            labels_of(each) if isinstance(each, str) else labels_of(each["text"], each["text_pair"])
            for each in inputs
        ]
        if "top_k" not in parameters:
            # As the serverless API does: one list around the best label of each input.
            return [[answer[0] for answer in answers]]
        return [answer[: parameters["top_k"]] for answer in answers]


@pytest.fixture
def server():
    """A scripted server that answers rightly until a test gives it a script."""
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture(scope="session")
def lasting_server():
    """A scripted server at one address for all tests: outputs tell it, so their bytes compare."""
    scripted = ScriptedServer()
    yield scripted
    scripted.close()


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server; its libraries are loaded for the tests that need it only."""
    from tests.storage import S3Server

    made = S3Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def azurite(tmp_path_factory):
    """An Azure server, which `make test-storage` installs."""
    from tests.storage import Azurite

    made = Azurite(tmp_path_factory.mktemp("azurite"))
    yield made
    made.close()


@pytest.fixture(params=["s3", pytest.param("azurite", marks=pytest.mark.storage)])
def storage(request):
    """A server of object storage."""
    return request.getfixturevalue({"s3": "s3_server"}.get(request.param, request.param))


@pytest.fixture
def right_answer():
    """The pure function from a text (and its pair) to the scripted server's labels."""
    return labels_of


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path_factory):
    """Neither settings nor a token or a proxy of whoever runs the tests reach a run.

    Nor do the secrets of another test in this process.
    """
    for name, nothing in (("_secrets", set()), ("_signs", ()), ("_found", re.compile("(?!)"))):
        monkeypatch.setattr(foreign, name, nothing)
    for name in list(os.environ):
        if name.startswith(("CLASSIFY_", "HF_")) or name.lower().endswith(("_proxy", "_ca_bundle")):
            monkeypatch.delenv(name)
    login = tmp_path_factory.getbasetemp() / "no-hugging-face-login"
    monkeypatch.setenv("HF_HOME", str(login))
    # It reads the environment once, when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(login / "token"))
    monkeypatch.setenv("NO_COLOR", "1")
    thresholds = gc.get_threshold()
    # A command that was called in this process fits it, variables of Arrow's included; with these,
    # no other command of this process could be forked.
    with mock.patch.dict(os.environ):
        yield
    gc.set_threshold(*thresholds)


@dataclass
class Finished:
    """What a command left behind when it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


class Started:
    """A command that works."""

    def __init__(self, process: Forked | subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, and wait until the kernel has delivered it."""
        self._process.send_signal(number)
        status = Path(f"/proc/{self.pid}/status")
        end = time.monotonic() + PATIENCE_S
        while number in (signal.SIGINT, signal.SIGTERM) and self.running:
            try:
                pending = status.read_text().partition("ShdPnd:")[2].split()[0]
            except OSError:  # it has ended since, also between opening and reading
                return
            if not int(pending, 16) >> (number - 1) & 1:
                return
            assert time.monotonic() < end, "the signal was not taken"
            time.sleep(0.001)

    def insist(self, number: signal.Signals) -> None:
        """Send a signal until the process ends: two merge if Python has not looked at the first."""
        while self.running:
            self.send(number)
            time.sleep(0.05)

    def printed(self) -> str:
        """Return what it has printed so far."""
        assert isinstance(self._process, Forked), "the pipe of another is read at its end"
        return self._process.printed()

    def ended(self) -> Finished:
        """Wait for the end."""
        stdout, stderr = self._process.communicate(timeout=PATIENCE_S)
        return Finished(self._process.returncode, stdout, stderr)

    def close(self) -> None:
        if self.running:
            self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def forks():
    """The server that forks for commands."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def start(tmp_path, forks):
    """Start the command `classify` in `tmp_path`; what still works at the end is killed.

    It is forked if it can be (see `tests/forked.py`), and else started as it is installed.

    Each request is one that the input asks for: the dialect is given, since finding it out takes
    one more, and scores are exact, or a run that lasts 1.5 s sends a batch twice to compare them.
    `stdin` is a descriptor, without which there is nothing to read.
    """
    started: list[Started] = []
    nothing = os.open(os.devnull, os.O_RDONLY)
    classify = str(Path(sys.executable).with_name("classify"))

    def run(*arguments: object, stdin: int = nothing, **environ: str) -> Started:
        command = [classify, *map(str, arguments)]
        given = {"CLASSIFY_DIALECT": "hf", "CLASSIFY_EXACT_SCORES": "true", **environ}
        variables = {**os.environ, **given}
        process: Forked | subprocess.Popen[str]
        if forks.can_fork(variables):
            process = Forked(forks, command, tmp_path, variables, stdin)
        else:
            process = subprocess.Popen(
                command,
                cwd=tmp_path,
                env=variables,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        started.append(Started(process))
        return started[-1]

    yield run
    for process in started:
        process.close()
    os.close(nothing)


@pytest.fixture
def cli(start):
    """Run the installed command `classify` to its end."""

    def run(*arguments: object, stdin: int | None = None, **environ: str) -> Finished:
        given = {} if stdin is None else {"stdin": stdin}
        finished: Finished = start(*arguments, **given, **environ).ended()
        return finished

    return run


@pytest.fixture
def label(server):
    """Run a job against the scripted server in this process; see `start`."""

    def run(
        source: object,
        output: Path,
        *,
        restart: bool = False,
        overwrite: bool = False,
        retry_failed: bool = False,
        ask_again: bool = False,
        update: bool = False,
        observers: tuple[Any, ...] = (),
        **settings: Any,
    ) -> dict[str, Any]:
        config = RunConfig(
            **{
                "input": str(source),
                "output": output,
                "endpoint": server.url,
                "dialect": "hf",
                "exact_scores": True,
                **settings,
            }
        )
        return pipeline.api.run(
            config,
            restart=restart,
            overwrite=overwrite,
            retry_failed=retry_failed,
            ask_again=ask_again,
            update=update,
            observers=observers,
        ).summary

    return run


@pytest.fixture
def small_chunks(monkeypatch):
    """Cut chunks of 16 rows, each a part, so that a table of few rows has several.

    How chunks are joined depends on the clock; see `test_commits`.
    """
    from pipeline.job import stream

    monkeypatch.setattr(stream, "CHUNK_ROWS", 16)
    monkeypatch.setattr(stream, "FILE_ROWS", 16)
    monkeypatch.setattr(stream, "PART_BYTES", 1)


@pytest.fixture
def write_csv(tmp_path):
    """Write a CSV file of an id and a text column."""

    def write(name: str, texts: Iterable[str]) -> Path:
        path: Path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows([f"{i:05d}", text] for i, text in enumerate(texts))
        return path

    return write


@pytest.fixture
def many_texts():
    """20,000 distinct texts: five chunks, of which the last is smaller."""
    return [f"review number {i}" for i in range(20_000)]


@pytest.fixture
def committed():
    """Read the parts that a log records, while a run may be writing it."""

    def read(output: Path) -> list[dict[str, Any]]:
        state = LocalStore(output).load()
        return [] if state is None else [asdict(part) for part in state.parts]

    return read


@pytest.fixture
def eventually():
    """Wait for what another process does to files, which nothing announces."""

    def wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)

    return wait


@pytest.fixture
def until_stored(tmp_path, eventually):
    """Wait until a response store that a run is writing holds so many answers."""
    copy = tmp_path / "copy of a response store"

    def stored(journal: Path) -> int:
        if not journal.exists():
            return 0
        shutil.copyfile(journal, copy)
        with closing(ResponseStore(copy)) as opened:
            return sum(len(segment.keys) for _, segment in opened._index._large)

    def wait(journal: Path, answers: int) -> None:
        eventually(lambda: stored(journal) == answers)

    return wait


@pytest.fixture
def listing(tmp_path):
    """Describe every file below a directory: path, content and time of the last change."""

    def describe(root: Path = tmp_path) -> dict[str, tuple[bytes | None, int]]:
        return {
            str(path.relative_to(root)): (
                path.read_bytes() if path.is_file() else None,
                path.stat().st_mtime_ns,
            )
            for path in sorted(root.rglob("*"))
        }

    return describe
