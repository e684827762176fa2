"""Serve a saved model as Hugging Face's toolkit does, counting as simulated.mjs does.

One request at a time goes through a transformers pipeline, the others queue. A list is worked
through text by text unless `parameters.batch_size` is sent, or with `--padded`, as one batch.

    python hf_server.py MODEL [--device cuda] [--padded]

Needs torch and transformers and nothing else. Prints its address as one line of JSON, and ends when
standard input closes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import pipeline


class Model:
    """The pipeline behind a lock, and what it has done."""

    def __init__(self, directory: str, device: str, *, padded: bool) -> None:
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self._classify = pipeline(
            "text-classification", directory, device=device, torch_dtype=dtype
        )
        self._padded = padded
        self._one = threading.Lock()
        self._resets = 0
        self.reset()

    def reset(self) -> None:
        """Forget what was counted and what is queued; its callers may be gone."""
        self._resets += 1
        with self._one:
            self.first_at: float | None = None
            self.completed: list[list[float]] = []
            self.refused: Counter[str] = Counter()
            self.sizes: Counter[int] = Counter()
            self.tokens = self.padded_tokens = 0

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        """Return a status and what to answer."""
        inputs, parameters = body["inputs"], dict(body.get("parameters") or {})
        texts = [inputs] if isinstance(inputs, str) else inputs
        if self._padded:
            parameters["batch_size"] = max(1, len(texts))
        resets = self._resets
        with self._one:
            if resets != self._resets:
                return 503, {"error": "reset"}
            self.first_at = self.first_at or time.time() * 1e3
            try:
                answer = self._classify(texts, **parameters)
            except Exception as error:  # noqa: BLE001 - the toolkit makes a 400 of every one
                self.refused["400"] += 1
                return 400, {"error": str(error)}
            words = [text.count(" ") + 1 for text in texts]
            size = parameters.get("batch_size", 1)
            groups = [words[at : at + size] for at in range(0, len(words), size)]
            self.sizes[len(texts)] += 1
            self.tokens += sum(words)
            self.padded_tokens += sum(len(group) * max(group) for group in groups)
            self.completed.append([time.time() * 1e3, len(texts), 1, sum(words)])
        return 200, answer[0] if isinstance(inputs, str) else answer

    def stats(self) -> dict[str, Any]:
        """Return what was counted."""
        return {
            "completed": self.completed, "texts": sum(int(each[1]) for each in self.completed),
            "requests": len(self.completed), "refused": self.refused, "tokens": self.tokens,
            "padded_tokens": self.padded_tokens, "first_at": self.first_at, "sizes": self.sizes,
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    model: Model

    def do_GET(self) -> None:
        self._reply(*((200, self.model.stats()) if self.path == "/stats" else (404, {})))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/reset":
            self.model.reset()
            self._reply(200, {})
        else:
            self._reply(*self.model.answer(body))

    def log_message(self, *_: Any) -> None:
        """Log nothing: thousands of lines a second cost time."""

    def _reply(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class HttpServer(ThreadingHTTPServer):
    """Takes as many connections at once as a client may open."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed leaves its connections broken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--padded", action="store_true")
    options = parser.parse_args()
    Handler.model = Model(options.model, options.device, padded=options.padded)
    server = HttpServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"url": f"http://127.0.0.1:{server.server_port}"}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
