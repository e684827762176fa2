"""A server that answers with bytes of a test's choice, whether they are HTTP or not."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import ssl
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline import foreign
from tests.labels import labels_of

if TYPE_CHECKING:
    from collections.abc import Callable


def right(texts: list[str]) -> bytes:
    """The right answer as a whole response."""
    return response(json.dumps([[labels_of(text)[0]] for text in texts]).encode())


def response(body: bytes, status: str = "200 OK", headers: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n" + headers + b"\r\n" + body


class RawServer(socketserver.ThreadingTCPServer):
    """Reads requests and writes what `answer` returns for their texts; None ends the connection."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = tls
        self.answer: Callable[[list[str]], bytes | None] = right
        self.texts: list[list[str]] = []
        self.heads: list[str] = []
        self.connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def get_request(self) -> Any:
        connection, address = super().get_request()
        # The handshake is done by whoever reads first, in a thread of its own.
        wrap = self.tls and self.tls.wrap_socket
        return (
            wrap(connection, server_side=True, do_handshake_on_connect=False)
            if wrap
            else connection
        ), address

    def handle_error(self, request: Any, address: Any) -> None:
        """Say nothing: clients that hang up, or trust no certificate, are what tests are about."""


class _Handler(socketserver.StreamRequestHandler):
    server: RawServer

    def handle(self) -> None:
        self.server.connections.append(self.request)
        while head := _head(self.rfile):
            self.server.heads.append(head)
            size = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0] or 0)
            inputs = json.loads(self.rfile.read(size) or b"{}").get("inputs", [])
            self.server.texts.append(inputs)
            answer = self.server.answer(inputs)
            if answer is None:
                return
            self.wfile.write(answer)


def _head(file: Any) -> str:
    lines = []
    try:
        while (line := file.readline()) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1"))
    except OSError:
        return ""
    return "".join(lines)


@pytest.fixture
def raw_server():
    with RawServer() as server:
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch):
    """A secret of one test is none of the next."""
    monkeypatch.setattr(foreign, "_secrets", set())
    monkeypatch.setattr(foreign, "_signs", ())
    monkeypatch.setattr(foreign, "_found", re.compile(r"(?!)"))


GATEWAY = Path(__file__).with_name("gateway.pem")


@pytest.fixture
def gateway():
    """A server with the certificate of `gateway.test`, which only `GATEWAY` vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(GATEWAY)
    with RawServer(context) as server:
        yield server
        server.shutdown()


class Proxy(socketserver.ThreadingTCPServer):
    """Passes on to one server, whatever host it is asked for; `heads` are those of requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.heads: list[str] = []
        self.behind: RawServer | None = None
        self.denies = b""
        self.address = f"127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Pass(socketserver.StreamRequestHandler):
    server: Proxy
    rbufsize = 0

    def handle(self) -> None:
        head = _head(self.rfile)
        self.server.heads.append(head)
        if self.server.denies or self.server.behind is None:
            self.wfile.write(self.server.denies)
            return
        with socket.create_connection(self.server.behind.server_address) as behind:
            if head.startswith("CONNECT"):
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                behind.sendall(head.encode("latin-1") + b"\r\n")
            threading.Thread(target=_pump, args=(behind, self.request), daemon=True).start()
            _pump(self.request, behind)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy():
    with Proxy() as server:
        yield server
        server.shutdown()
