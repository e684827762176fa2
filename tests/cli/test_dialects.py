"""Dialects at the command line: what cannot be asked is refused, and a new one is one file."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.labels import labels_of

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["good", "bad", "neither", "warm", "cold"]


@pytest.mark.parametrize("command", ["run", "plan", "probe"])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dialect", "mlflow", "--top-k", "3"), "--top-k: 3 cannot be asked of MLflow"),
        (("--dialect", "sglang", "--truncate"), "--truncate: cannot be asked of SGLang"),
        (("--dialect", "infinity", "--no-truncate"), "--truncate: false cannot be asked of infin"),
        (("--dialect", "vertex", "--text-pair", "text"), "--text-pair: cannot be asked of Vertex"),
        (("--dialect", "vllm", "--function-to-apply", "softmax"), "or use none"),
        (("--dialect", "tei", "--function-to-apply", "sigmoid"), "picks it by the model"),
    ],
)
def test_what_cannot_be_asked_ends_with_2_and_nothing_is_sent(
    cli, server, write_csv, command, arguments, named
):
    source = write_csv("in.csv", TEXTS)
    ended = cli(command, source, "--endpoint", server.url, "-o", "out.parquet", *arguments)
    assert (ended.code, server.requests) == (2, [])
    assert named in ended.stderr


class Acme(BaseHTTPRequestHandler):
    """The server of docs/how-to/write-a-dialect.md; `server.posts` are the bodies it got."""

    def do_GET(self):
        pages = {
            "/openapi.json": {"paths": {"/label": {}, "/about": {}}},
            "/about": {"service": "labels", "most_texts": 2},
        }
        self._say(200 if self.path in pages else 404, pages.get(self.path, {"detail": "none"}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posts.append(body)
        status = 200 if self.path == "/label" else 404
        self._say(status, {"results": [labels_of(text)[0] for text in body["texts"]]})

    def _say(self, status, content):
        content = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def acme():
    with ThreadingHTTPServer(("127.0.0.1", 0), Acme) as listening:
        listening.posts = []
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield listening
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def with_acme(tmp_path):
    """Run the command line of a copy of the package, to which only the module of the page is added.

    It is the block of code that the page shows.
    """
    shutil.copytree(
        ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__")
    )
    page = (ROOT / "docs/how-to/write-a-dialect.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "pipeline/client/dialects/acme.py").write_text(code, encoding="utf-8")

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *map(str, arguments)], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("dialect", ["auto", "acme"])
def test_the_worked_example_is_all_that_a_new_dialect_takes(
    with_acme, write_csv, tmp_path, dialect
):
    source = write_csv("in.csv", TEXTS)
    with acme() as listening:
        url = f"http://127.0.0.1:{listening.server_port}"
        arguments = ("--endpoint", url, "--dialect", dialect)
        done = with_acme("run", source, *arguments, "-o", "out.parquet")
        assert done.returncode == 0, done.stderr
        rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert [row["label"] for row in rows] == [labels_of(text)[0]["label"] for text in TEXTS]
        sizes = [len(body["texts"]) for body in listening.posts]
        assert sorted(sizes) == ([1, 2, 2] if dialect == "auto" else [5])
        posts = len(listening.posts)
        refused = with_acme("run", source, *arguments, "-o", "other.parquet", "--top-k", "2")
        assert refused.returncode == 2, refused.stderr
        assert "cannot be asked of the labelling service" in refused.stderr
        assert len(listening.posts) == posts
    assert "acme" in with_acme("run", "--dialect", "x", source).stderr
