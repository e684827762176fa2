"""A reader who does what a document says, and the endpoints that stand in for those of others.

What the reader changes in a command, so that it runs here, is done by these rules and no other:

- A command that names a model and no endpoint would go to the serverless API, and an address with
  https to somebody's own: both go to a stand-in on this machine. So do YAML files.
- `classify serve` goes on in the background until the next one. It listens on a port of its own,
  which takes the place of 8080 in all that follows; before it, 8080 is the stand-in.
- `sleep` waits for what it is there for, which is that answers are stored; a `kill` is waited for.
- `make` uses the environment that runs the tests.
- Blocks with `my-model` wait for the tests that have transformers, where a tiny saved model
  takes the place of the one that would be downloaded.
- A line for cron has a home with a checkout.
- `s3://my-bucket` is a bucket of a server on this machine, with the sample in it.
- Lines in NEVER are left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import web

from pipeline.config import RunConfig
from pipeline.endpoint import protocol
from pipeline.endpoint.models import load_model
from tests.storage import S3Server

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0

# Lines that begin so are not executed, and why.
NEVER = {
    "git clone": "needs the address of a server",
    "cd classify-pipeline": "the reader is there already",
    "make test": "these tests are what it runs",
    "python3 -m venv": "made the environment that runs these tests",
    "pip install": "made the environment that runs these tests",
    "ray job submit": "needs a Ray cluster; tests/ray has one",
    "docker run": "needs an image and a GPU; a stand-in speaks as it does",
    "sudo": "needs root and systemd; tests/cli/test_nightly.py checks the units",
    "journalctl": "the same",
    "hf auth login": "needs an account",
}

# Numbers that differ from run to run, in what is shown and in what is there.
VARIES = {
    # A log has the time in front of each line, and a terminal, which is what is shown, has not.
    r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ": "",
    r"\d[\d,]*(\.\d+)? ([kMGT]B|bytes)\b": "N MB",
    r"\d[\d,]*(\.\d+)? (s|min)\b( \d\d s)?": "N s",
    r"[\d,.]+ (rows|requests)/s": r"N \1/s",
    r"\d+ answers are stored": "N answers are stored",
    r"by process \d+ on [\w.-]+": "by process N on HOST",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "TIME",
}
# After a kill or with faults, also what depends on the moment that they came.
VARIES_BY_FAULT = {r"\d+ requests in": "N requests in", r"known already +\d+": "known already N"}

ADDRESS = re.compile(r"https://[\w-]+(\.[\w-]+)*\.endpoints\.huggingface\.cloud")


class Block(NamedTuple):
    """A fenced block; `line` is where its fence stands."""

    language: str
    code: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    """All fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(f[1], f[2], text.count("\n", 0, f.start()) + 1) for f in found]


class StandIn:
    """An endpoint with the embedded model `sentiment`, in a thread of its own.

    `speaks` as the serverless API does (`hf`), as Text Embeddings Inference does (`tei`), or takes
    one text a request (`single`). `headers` are those of the requests.
    """

    def __init__(self, speaks: str) -> None:
        self._speaks = speaks
        self._model = load_model("sentiment")
        self.headers: list[dict[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._listening, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._listening.wait(PATIENCE_S)

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", self._handle)
        if self._speaks == "tei":
            app.router.add_get("/info", self._info)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listening.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _info(self, _: web.Request) -> web.Response:
        classifier = {"classifier": {"id2label": {}, "label2id": {}}}
        told = {"model_id": "sentiment", "model_type": classifier}
        return web.json_response(
            {**told, "max_client_batch_size": 32, "max_concurrent_requests": 512}
        )

    async def _handle(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        asked = orjson.loads(await request.read())
        if self._speaks == "tei":
            if request.path != "/predict" or not all(
                type(each) is list for each in asked["inputs"]
            ):
                return web.json_response({"error": "no such form"}, status=422)
            # Its parameters are no business of the parser, and it answers all labels.
            pairs = [
                each[0] if len(each) == 1 else dict(zip(("text", "text_pair"), each, strict=True))
                for each in asked["inputs"]
            ]
            asked = {"inputs": pairs, "parameters": {"top_k": None}}
        elif self._speaks == "single" and isinstance(asked["inputs"], list):
            return web.json_response({"error": "inputs must be a string"}, status=422)
        query = protocol.parse(orjson.dumps(asked))
        answer = protocol.shape(query, protocol.classify(query, self._model))
        return web.json_response(answer, headers={"x-sha": self._model.sha})

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


class Reader:
    """Follows a document in a directory that is laid out as a checkout.

    `saved_model` is the directory of a transformers model, None where there are no transformers.
    """

    def __init__(self, directory: Path, speaks: str, saved_model: Path | None) -> None:
        self.directory = directory
        self._saved_model = saved_model
        self.stand_in = StandIn(speaks)
        self._served: subprocess.Popen[str] | None = None
        self._port = _free_port()
        self._address = "hf"
        self._disturbed = False
        self._lay_out()

    def _lay_out(self) -> None:
        for name in ("data", "configs"):
            shutil.copytree(ROOT / name, self.directory / name)
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, self.directory)
        for config in (self.directory / "configs").glob("*.yaml"):
            self._write(config, config.read_text(encoding="utf-8"))
        # The reader's own tables, where the documents speak of some.
        sample = self.directory / "data" / "sample"
        shutil.copy(sample / "reviews.csv", self.directory)
        shutil.copy(sample / "reviews.parquet", self.directory)
        (self.directory / "exports").mkdir()
        reviews = pq.read_table(sample / "reviews.parquet")
        for number in (1, 2):
            part = reviews.slice(300 * (number - 1), 300)
            pq.write_table(part, self.directory / "exports" / f"2026-0{number}.parquet")

    def follow(self, document: Path) -> None:
        """Do all blocks of a document, and compare what they print with what it shows."""
        printed: str | None = None
        for block in blocks_of(document):
            at = f"{document.name}:{block.line}"
            if self._saved_model is None and "my-model" in block.code:
                continue
            match block.language:
                case "bash":
                    printed = self._shell(block.code, at)
                case "python":
                    printed = self._python(block.code, at)
                case "yaml":
                    self._yaml(block.code)
                case "json":
                    json.loads(block.code)
                case "text":
                    assert printed is not None, f"{at}: shows what no block before it prints"
                    self._compare(block.code, printed, at)
                case "crontab":
                    self._cron(block.code, at)
                case _:  # a drawing
                    assert block.language == "", at

    def _shell(self, code: str, at: str) -> str:
        ends = re.search(r"# ends with (\d+)", code)
        lines = code.replace("\\\n", " ").splitlines()
        kept = [line for line in lines if not any(map(line.strip().startswith, NEVER))]
        rest = []
        for line in kept:
            if re.match(r"(\w+=\S+ )?classify serve", line):
                self._serve(line)
                self._disturbed |= " --" in line
            else:
                rest.append(line)
        if not any(line.strip() for line in rest):
            return ""
        code = self._adapted("\n".join(rest))
        self._disturbed |= "kill" in code
        return self._execute(
            ["bash", "-euo", "pipefail", "-c", code],
            int(ends[1]) if ends else 0,
            at,
            **self._serverless(code),
        )

    def _python(self, code: str, at: str) -> str:
        if "endpoint=" not in code:
            code = code.replace("model=", f'endpoint="{self.stand_in.url}", model=')
        code = re.sub(r'(?<=^name = )".*"', repr(str(self._saved_model)), code, flags=re.MULTILINE)
        return self._execute([sys.executable, "-c", self._adapted(code)], 0, at)

    def _cron(self, code: str, at: str) -> None:
        """Run the command of a line as cron does; a good night prints nothing."""
        command = code.split("  ", 1)[1].strip()
        if "cron.yaml" in command:
            return  # tests/cli/test_nightly.py lets three nights pass
        home = self.directory / "home"
        (home / "classify-pipeline").mkdir(parents=True)
        for name in ("nightly.yaml", "data"):
            (home / "classify-pipeline" / name).symlink_to(self.directory / name)
        (home / "classify-pipeline" / ".venv").symlink_to(sys.prefix)
        environ = ["HOME=" + str(home), "PATH=/usr/bin:/bin", "SHELL=/bin/sh", "LOGNAME=reader"]
        assert self._execute(["env", "-i", *environ, "/bin/sh", "-c", command], 0, at) == ""
        assert (home / "classify-pipeline" / "nightly.parquet").exists()

    def _adapted(self, code: str) -> str:
        if found := ADDRESS.search(code):
            self._address = found[0]
            code = code.replace(found[0], self.stand_in.url)
        own = self._own().removeprefix("http://")
        code = code.replace("127.0.0.1:8080", own).replace("127.0.0.1:8001", own)
        # Another address of the same server.
        code = code.replace("127.0.0.1:8002", own.replace("127.0.0.1", "localhost"))
        code = re.sub(
            r"^make ",
            f"make -o {sys.prefix}/.installed VENV={sys.prefix} ",
            code,
            flags=re.MULTILINE,
        )
        code = re.sub(
            r"\bsleep \d+", "until [ -s *.run/responses.journal ]; do sleep 0.05; done", code
        )
        return f"{code}\nwait" if re.search(r"\bkill\b", code) else code

    def _own(self) -> str:
        """What listens at the reader's own 127.0.0.1:8080."""
        return self.stand_in.url if self._served is None else f"http://127.0.0.1:{self._port}"

    def _serverless(self, code: str) -> dict[str, str]:
        # A flag wins over the environment, which wins over a file: and files are adapted.
        named = "--model" not in code or "--config" in code
        return {} if named else {"CLASSIFY_ENDPOINT": self.stand_in.url}

    def _yaml(self, code: str) -> None:
        """Check settings, and write them to the file that the first line names."""
        content = yaml.safe_load(code)
        if set(content) == {"groups"}:
            return  # rules for Prometheus
        RunConfig(**{"input": "in.csv", "output": "out.parquet", **content})
        if named := re.match(r"# ([\w.-]+\.yaml)\b", code):
            self._write(self.directory / named[1], code)

    def _write(self, file: Path, code: str) -> None:
        content = yaml.safe_load(code)
        if content.get("endpoint", "hf") != "local":
            content["endpoint"] = self.stand_in.url
        file.write_text(yaml.safe_dump(content), encoding="utf-8")

    def _serve(self, line: str) -> None:
        self._end_serving()
        words = shlex.split(line)
        environ = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        command = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        command += ["--port", str(self._port), "--until-stdin-closes"]
        self._served = subprocess.Popen(
            command, cwd=self.directory, env={**_environment(), **environ}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._served.stdout is not None
        assert self._served.stdout.readline(), line

    def _end_serving(self) -> None:
        if self._served is not None:
            self._served.communicate(timeout=PATIENCE_S)
            assert self._served.returncode == 0

    def _execute(self, command: list[str], code: int, at: str, **environ: str) -> str:
        done = subprocess.run(
            command, cwd=self.directory, env={**_environment(), **environ}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{at} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def _compare(self, shown: str, printed: str, at: str) -> None:
        """Compare line by line; a line of three dots stands for any lines."""
        printed = printed.replace(f"127.0.0.1:{self._port}", "127.0.0.1:8080")
        printed = printed.replace(self.stand_in.url, self._address)
        rules = {**VARIES, **(VARIES_BY_FAULT if self._disturbed else {})}
        for varies, instead in rules.items():
            shown, printed = (re.sub(varies, instead, text) for text in (shown, printed))
        lines = [line.rstrip() for line in shown.strip("\n").splitlines()]
        pattern = "".join(r"(.*\n)*" if line == "..." else f"{re.escape(line)}\n" for line in lines)
        there = "".join(f"{line.rstrip()}\n" for line in printed.strip("\n").splitlines())
        assert re.fullmatch(pattern, there), f"{at} shows\n{shown}\nbut there is\n{there}"

    def close(self) -> None:
        self._end_serving()
        self.stand_in.close()


def _environment() -> dict[str, str]:
    """The reader's shell: the installed command first, no settings and no token around."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLASSIFY_", "HF_TOKEN"))}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}


def _free_port() -> int:
    """A port that the kernel gives to nobody by itself, so that it stays free between two uses."""
    first = 20_000 + os.getpid() % 10_000
    for port in range(first, first + 1_000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def reader(tmp_path):
    """Start a reader whose stand-in speaks in one way; closed at the end."""
    started = []

    def start(speaks: str = "hf", saved_model: Path | None = None) -> Reader:
        started.append(Reader(tmp_path, speaks, saved_model))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def my_bucket(monkeypatch):
    """A bucket with the reader's tables, and its credentials in the environment."""
    server = S3Server()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = server.bucket("my-bucket")
    reviews = pq.read_table(ROOT / "data" / "sample" / "reviews.parquet")
    content = pa.BufferOutputStream()
    pq.write_table(reviews.filter(pc.is_valid(reviews["review"])), content)
    for month in ("01", "02"):
        bucket.put(f"reviews/month={month}/part-0.parquet", content.getvalue().to_pybytes())
    yield
    server.close()


@pytest.fixture
def blocks():
    """The fenced blocks of a document."""
    return blocks_of


@pytest.fixture
def never() -> dict[str, Any]:
    """The lines that are not executed."""
    return NEVER
