"""A page that follows a run: the report, drawn again while it is open.

It is served on this machine only, and at a path that nobody can guess, since the page shows rows:
other users of the machine, and web sites open in the same browser, can reach the port, too.
"""

from __future__ import annotations

import html
import secrets
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.errors import SettingsError
from pipeline.foreign import visible
from pipeline.report.page import draw
from pipeline.wording import reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
# How often an open page asks for a newer one. After drawing it rests twice as long as that took: a
# large table takes long, and the run needs this machine, too.
RELOAD_S, RESTS = 5, 2
_BODY = f'<body data-reload-s="{RELOAD_S}">'.encode()  # see page.js
_RELOADED = f'<!doctype html><meta http-equiv="refresh" content="{RELOAD_S}">'


class LivePage:
    """The page as it was drawn last; `draw_page` returns it, and whether it is the final one."""

    def __init__(self, draw_page: Callable[[], tuple[bytes, bool]]) -> None:
        self._draw = draw_page
        self._drawing = threading.Lock()
        self._due_at = 0.0
        self._last = b""

    def draw(self) -> None:
        """Draw it now. Raises what `draw_page` does."""
        began = monotonic()
        try:
            content, is_final = self._draw()
        finally:
            # A little earlier than it is asked for again.
            self._due_at = monotonic() + max(RELOAD_S - 1, RESTS * (monotonic() - began))
        self._last = content if is_final else content.replace(b"<body>", _BODY, 1)

    def get(self) -> bytes:
        """Return the page, drawn again if that is due."""
        with self._drawing:
            if monotonic() >= self._due_at:
                try:
                    self.draw()
                except Exception as error:  # noqa: BLE001 - files may change while they are read
                    words = html.escape(visible(str(error)))
                    self._last = f"{_RELOADED}<p>{words}".encode()
            return self._last


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a tab that was closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(page: LivePage, path: str) -> type[BaseHTTPRequestHandler]:
    """Return what answers requests for a path with the page, and others with nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not secrets.compare_digest(self.path.encode(), path.encode()):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            content = page.get()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def serve_live(
    output: Path | str,
    run_dir: Path | str | None = None,
    columns: Sequence[str] = (),
    gold: str | None = None,
    label_map: Mapping[str, str] | None = None,
    *,
    port: int,
    on_listening: Callable[[str], None],
) -> None:
    """Serve the report on the run of `output` until SIGINT or SIGTERM.

    `on_listening` is called with the address; port 0 takes any free one. For the main thread of a
    process. Raises what `write_report` does, and SettingsError if the port is taken.
    """

    def draw_page() -> tuple[bytes, bool]:
        content, status = draw(output, run_dir, columns, gold, label_map)
        return content, status.state == "complete"

    page, path = LivePage(draw_page), f"/{secrets.token_urlsafe(16)}"
    try:
        server = _Server((HOST, port), _handler(page, path))
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {HOST} port {port}: {reason(error)}.",
            "Choose another port, or 0 for any free one.",
        ) from error
    with server:
        page.draw()
        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in this thread, which serves and would wait for itself.
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        on_listening(f"http://{HOST}:{server.server_port}{path}")
        server.serve_forever()
