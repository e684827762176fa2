"""A proxy before a storage: it drops answers, refuses, stalls, and forgets conditions."""

from __future__ import annotations

import http.client
import http.server
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_BUSY = b"<Error><Code>%b</Code><Message>not now</Message></Error>"


@dataclass
class Faults:
    """Shares of all requests that write: `dropped` is done, but its answer does not come.

    `stalled` is held for `stall_s` first; `delay_s` is the latency of every request. With
    `strips_conditions` no request asks that an object be absent.
    """

    dropped: float = 0.0
    status_503: float = 0.0
    status_409: float = 0.0
    stalled: float = 0.0
    stall_s: float = 0.5
    delay_s: float = 0.0
    strips_conditions: bool = False


class FaultProxy:
    """Forwards to `target`, a URL; `longest_put_s` is what one PUT took at most, tries and all.

    `sent_bytes` is the size of all answers. `on_put` is called with the key before a PUT is done.
    """

    def __init__(self, target: str, seed: int = 0) -> None:
        self.faults = Faults()
        self.requests: list[tuple[str, str]] = []
        self.counts = {"dropped": 0, "503": 0, "409": 0, "stalled": 0}
        self.longest_put_s = 0.0
        self.sent_bytes = 0
        self.on_put: Callable[[str], None] = lambda _: None
        self._begun: dict[str, float] = {}
        self._chance = random.Random(seed)
        self._target = urlsplit(target).netloc
        self._local = threading.local()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: Any) -> None:
                pass

            def handle_any(self) -> None:
                proxy._answer(self)

            do_GET = do_HEAD = do_PUT = handle_any  # noqa: N815 - of the base class
            do_POST = do_DELETE = handle_any  # noqa: N815

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: Any) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        key, faults = handler.path.partition("?")[0], self.faults
        self.requests.append((handler.command, key))
        writes = handler.command in ("PUT", "POST")
        if writes:
            self.on_put(key)
            self._begun.setdefault(key, time.monotonic())
        time.sleep(faults.delay_s)
        chance, fault = self._chance.random() if writes else 1.0, ""
        for name in ("dropped", "503", "409", "stalled"):
            share = getattr(faults, name if name.isalpha() else f"status_{name}")
            # Only a request with a condition is refused for a conflict.
            fits = name != "409" or handler.headers.get("If-None-Match") is not None
            if 0 <= chance < share and fits:
                fault = name
                self.counts[name] += 1
            chance -= share
        if fault in ("503", "409"):
            code = b"SlowDown" if fault == "503" else b"ConditionalRequestConflict"
            self._send(handler, int(fault), {"Content-Type": "application/xml"}, _BUSY % code)
            return
        if fault == "stalled":
            time.sleep(faults.stall_s)
        status, headers, content = self._forward(handler, body)
        if fault == "dropped":
            handler.close_connection = True
            handler.connection.close()
            return
        if writes:
            took = time.monotonic() - self._begun.pop(key, time.monotonic())
            self.longest_put_s = max(self.longest_put_s, took)
        self.sent_bytes += len(content)
        self._send(handler, status, headers, content)

    def _forward(self, handler: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {
            name: value
            for name, value in handler.headers.items()
            if name.lower() not in ("connection", "transfer-encoding", "expect")
            and not (self.faults.strips_conditions and name.lower() == "if-none-match")
        }
        connection = http.client.HTTPConnection(self._target)
        try:
            connection.request(handler.command, handler.path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        dropped = ("connection", "transfer-encoding", "date", "server", "content-length")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in dropped}
        if handler.command == "HEAD":
            kept["Content-Length"] = answer.getheader("Content-Length") or "0"
        return answer.status, kept, content

    @staticmethod
    def _send(handler: Any, status: int, headers: dict[str, str], content: bytes) -> None:
        handler.send_response(status)
        if handler.command != "HEAD":
            headers = {**headers, "Content-Length": str(len(content))}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)
