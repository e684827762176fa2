"""Storage on 127.0.0.1: servers of S3 (moto, s3rver) and Azure (Azurite), of the web, a small Hub.

`make test-storage` installs Azurite and s3rver from npm, in `.servers/`.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import itertools
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from hashlib import md5, sha1, sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen

import boto3
import obstore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer
from obstore.store import AzureStore, S3Store

if TYPE_CHECKING:
    from collections.abc import Callable


def certificate_of(address: str) -> bytes:
    """Return a certificate that vouches for itself, and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(pem, form, serialization.NoEncryption())
    return made.public_bytes(pem) + private


PROGRAMS = Path(__file__).resolve().parents[1] / ".servers" / "storage"
# For tests of what only S3 has.
ONLY_S3 = pytest.mark.parametrize("storage", ["s3"], indirect=True)
# All servers of a process have the same buckets.
_numbers = itertools.count(1)


class S3Server:
    """An S3 server; `methods` counts the requests by method."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.methods: Counter[str] = Counter()
        answer = self._server._server.app

        def counting(environ: Any, start: Any) -> Any:
            self.methods[environ["REQUEST_METHOD"]] += 1
            return answer(environ, start)

        self._server._server.app = counting
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"

    def environment(self, url: str = "") -> dict[str, str]:
        """What a user of this server, or of a proxy before it, has in the environment."""
        return {
            "AWS_ENDPOINT": url or self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }

    def bucket(self, name: str = "") -> Bucket:
        """Make a new one."""
        name = name or f"bucket-{next(_numbers)}"
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_bucket(Bucket=name)
        store = S3Store(
            name,
            endpoint=self.url,
            region="us-east-1",
            access_key_id="testing",
            secret_access_key="testing",
            client_options={"allow_http": True},
        )
        return Bucket(f"s3://{name}", store)

    def close(self) -> None:
        self._server.stop()


class _FromNpm:
    """A server in a process of its own; `{directory}` and `{port}` in its command are replaced."""

    def __init__(self, directory: Path, *command: str, **environ: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program, *arguments = (each.format(directory=directory, port=port) for each in command)
        said = directory / "log"
        with said.open("wb") as log:
            path = PROGRAMS / "node_modules" / ".bin" / program
            self._process = subprocess.Popen(
                [path, *arguments], stdout=log, stderr=log, env={**os.environ, **environ}
            )
        self.url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            assert self._process.poll() is None, said.read_text()
            assert time.monotonic() < until, said.read_text()
            time.sleep(0.05)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class S3rver(_FromNpm):
    """An S3 server that has a bucket `box`, and ignores all conditions."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory,
            *("s3rver", "-d", "{directory}", "-a", "127.0.0.1", "-p", "{port}", "--silent"),
            *("--configure-bucket", "box"),
        )

    def environment(self) -> dict[str, str]:
        """What a user of this server has in the environment."""
        return {
            "AWS_ENDPOINT": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "S3RVER",
            "AWS_SECRET_ACCESS_KEY": "S3RVER",
        }


class Azurite(_FromNpm):
    """Microsoft's emulator of its storage, with one account."""

    ACCOUNT, KEY = "devstoreaccount1", b64encode(b"known to everybody").decode()

    def __init__(self, directory: Path) -> None:
        super().__init__(
            directory,
            *("azurite-blob", "--silent", "--location", "{directory}", "--blobPort", "{port}"),
            *("--blobHost", "127.0.0.1", "--skipApiVersionCheck", "--disableTelemetry"),
            AZURITE_ACCOUNTS=f"{self.ACCOUNT}:{self.KEY}",
        )

    def environment(self, url: str = "") -> dict[str, str]:
        """What a user of this server, or of a proxy before it, has in the environment."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": url or self.url,
            "AZURE_STORAGE_ACCOUNT_NAME": self.ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": self.KEY,
        }

    def bucket(self) -> Bucket:
        """Make a new container."""
        name = f"bucket-{next(_numbers)}"
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        signed = "".join(f"{key}:{value}\n" for key, value in headers.items())
        signed = (
            f"PUT{12 * chr(10)}{signed}/{self.ACCOUNT}/{self.ACCOUNT}/{name}\nrestype:container"
        )
        digest = hmac.digest(b64decode(self.KEY), signed.encode(), "sha256")
        headers["Authorization"] = f"SharedKey {self.ACCOUNT}:{b64encode(digest).decode()}"
        place = f"{self.url}/{self.ACCOUNT}/{name}?restype=container"
        with urlopen(Request(place, headers=headers, method="PUT")):
            pass
        store = AzureStore(
            name,
            endpoint=f"{self.url}/{self.ACCOUNT}",
            account_name=self.ACCOUNT,
            account_key=self.KEY,
            client_options={"allow_http": True},
        )
        return Bucket(f"abfs://{name}", store)


class Bucket:
    """A bucket, written to as others do."""

    def __init__(self, url: str, store: S3Store | AzureStore) -> None:
        self.url = url
        self._store = store

    def put(self, key: str, content: bytes) -> str:
        """Store an object. Return its address."""
        obstore.put(self._store, key, content)
        return f"{self.url}/{key}"

    def delete(self, key: str) -> None:
        obstore.delete(self._store, key)


class WebServer:
    """Serves `files` with TLS, by ranges; `on_get` is called before each answer to a GET.

    With `conditions` it honours If-Match, which many servers do not; `etags` says whether it sends
    any, `weak` whether they are weak, and `ranges` whether it knows ranges. `refuses` is for all
    requests, and `modified` of all files.
    """

    def __init__(self, certificate: str) -> None:
        self.files: dict[str, bytes] = {}
        self.on_get: Callable[[], None] = lambda: None
        self.conditions = self.etags = self.ranges = True
        self.weak = self.refuses = False
        self.modified = self.sent_bytes = 0
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                server._answer(self, with_body=False)

            def do_GET(self) -> None:
                server.on_get()
                server._answer(self, with_body=True)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"https://127.0.0.1:{self._server.server_port}"

    def _answer(self, handler: Any, *, with_body: bool) -> None:
        body = self.files.get(handler.path.lstrip("/"))
        if body is None or self.refuses:
            handler.send_error(403 if self.refuses else 404)
            return
        weak = "W/" if self.weak else ""
        etag = f'{weak}"{md5(body, usedforsecurity=False).hexdigest()}"'
        asked = handler.headers.get("If-Match")
        if self.conditions and asked and (asked != etag or self.weak):
            handler.send_error(412)
            return
        size, status, headers = len(body), 200, {}
        if with_body and self.ranges and (wanted := handler.headers.get("Range")):
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            body, status = body[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(body) - 1}/{size}"
        if self.etags:
            headers["ETag"] = etag
        headers |= {
            "Content-Length": str(len(body)),
            "Last-Modified": formatdate(self.modified, usegmt=True),
        }
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if with_body:
            handler.wfile.write(body)
            self.sent_bytes += len(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Hub:
    """As much of the Hub as reading and writing a dataset need; `files` are those of `owner/data`.

    A commit is what the files are; `token` is needed if it is given. `commits` has the paths that
    each commit changed, and `on_commit` is called before one is looked at.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.token: str | None = None
        self.on_read: Callable[[], None] = lambda: None
        self.on_commit: Callable[[], None] = lambda: None
        self.commits: list[list[str]] = []
        self.may_write = True
        self._commits: dict[str, dict[str, bytes]] = {}
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def do_POST(self) -> None:
                hub._answer(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _commit(self) -> str:
        facts = sorted((name, sha256(body).hexdigest()) for name, body in self.files.items())
        commit = sha1(json.dumps(facts).encode(), usedforsecurity=False).hexdigest()
        self._commits[commit] = dict(self.files)
        return commit

    def _answer(self, handler: Any) -> None:
        asked = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        if self.token and handler.headers.get("Authorization") != f"Bearer {self.token}":
            self._say(handler, 401, {"error": "who are you"})
            return
        url = urlsplit(handler.path)
        head = self._commit()
        path = unquote(url.path)
        if found := re.fullmatch(r"/api/datasets/owner/data(/revision/(\w+))?", path):
            self._say(handler, 200, {"id": "owner/data", "sha": head, "private": False})
        elif found := re.fullmatch(r"/api/datasets/owner/data/paths-info/(\w+)", path):
            names = json.loads(asked)["paths"] if asked[:1] == b"{" else parse_qs(asked)[b"paths"]
            wanted = [name if isinstance(name, str) else name.decode() for name in names]
            files = self._at(found[1])
            here = [name for name in wanted if name in files]
            self._say(handler, 200, [self._facts(name, files[name]) for name in here])
        elif found := re.fullmatch(r"/api/datasets/owner/data/tree/(\w+)/?(.*)", path):
            below = f"{found[2]}/" if found[2] else ""
            files = {k: v for k, v in self._at(found[1]).items() if k.startswith(below)}
            if files:
                self._say(handler, 200, [self._facts(*each) for each in files.items()])
            else:
                self._say(handler, 404, {"error": "x"}, {"X-Error-Code": "EntryNotFound"})
        elif path == "/api/datasets/owner/data/auth-check/write":
            self._say(handler, 200 if self.may_write else 403, {})
        elif path == "/api/datasets/owner/data/preupload/main":
            names = [each["path"] for each in json.loads(asked)["files"]]
            modes = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in names]
            self._say(handler, 200, {"files": modes})
        elif path == "/api/datasets/owner/data/commit/main":
            self.on_commit()
            self._take_commit(handler, [json.loads(line) for line in asked.splitlines()])
        elif found := re.fullmatch(r"/datasets/owner/data/resolve/(\w+)/(.*)", path):
            self.on_read()
            body = self._at(found[1])[found[2]]
            first, last = map(int, handler.headers["Range"].removeprefix("bytes=").split("-"))
            piece = body[first : last + 1]
            reach = f"bytes {first}-{first + len(piece) - 1}/{len(body)}"
            self._say(handler, 206, piece, {"Content-Range": reach})
        else:
            self._say(handler, 404, {"error": "x"}, {"X-Error-Code": "RepoNotFound"})

    def _take_commit(self, handler: Any, lines: list[dict[str, Any]]) -> None:
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") != self._commit():
            self._say(handler, 412, {"error": "A commit has happened since"})
            return
        for line in lines:
            if line["key"] == "file":
                self.files[line["value"]["path"]] = b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
        paths = [line["value"]["path"] for line in lines if line["key"] != "header"]
        self.commits.append(sorted(paths))
        url = f"{self.url}/datasets/owner/data/commit/{self._commit()}"
        facts = {"success": True, "commitOid": self._commit(), "commitUrl": url}
        self._say(handler, 200, {**facts, "hookOutput": "", "pullRequestUrl": None})

    def _at(self, revision: str) -> dict[str, bytes]:
        return self._commits.get(revision, self.files)

    @staticmethod
    def _facts(name: str, body: bytes) -> dict[str, Any]:
        digest = sha256(body).hexdigest()
        lfs = {"oid": digest, "size": len(body), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(body), "oid": digest[:40], "lfs": lfs}

    @staticmethod
    def _say(
        handler: Any, status: int, content: Any, headers: dict[str, str] | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
