"""A real browser, headless, driven over the pipe of its own DevTools protocol.

It needs only the browser: Debian's package `chromium`, or the one that CHROMIUM names.
`python -m tests.report.chromium` installs the package where it can.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_S = 40.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PACKAGES = ("chromium", "fonts-dejavu-core")
# Wait for another apt-get, and do not wait long for a mirror that is out of reach.
_APT = ("-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::http::Timeout=20")
_FLAGS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--force-device-scale-factor=1", "--mute-audio"),
)


def find() -> str | None:
    """Return the browser to use, None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


def install() -> str | None:
    """Install Debian's package, as root or by sudo without a password; return what went wrong."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", *_APT]
    if not all(map(shutil.which, [*root[:1], "apt-get"])):
        return "that takes apt-get, and root or sudo"
    sys.stderr.write("Installing Chromium, which the tests of the report use...\n")
    # If the package lists cannot be updated, those that are there may do.
    for step in (["update"], ["install", "-y", "--no-install-recommends", *_PACKAGES]):
        done = subprocess.run(
            [*command, *step],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    return (done.stderr.strip() or "apt-get failed").splitlines()[-1] if done.returncode else None


def main() -> str | None:
    """Install Chromium unless it is there.

    Return a message, which ends the process with 1, if it is missing and the tests must have it
    (CI=true). Elsewhere the tests that need it are left out, and pytest says so.
    """
    failure = None if find() else install()
    if failure is None:
        return None
    message = f"Chromium could not be installed: {failure}"
    if os.environ.get("CI") == "true":
        return f"{message}. Install it, or set CHROMIUM to another browser."
    sys.stderr.write(f"{message}\n")
    return None


class Chromium:
    """One browser with one page.

    `requests` are addresses that were asked for, `complaints` what the console and the page's
    errors say, since the last `open`.
    """

    def __init__(self) -> None:
        found = find()
        assert found, "Chromium is not installed: run `make test`, or set CHROMIUM"
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        # The protocol is spoken on the file descriptors 3 and 4.
        script = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "chromium", found, *_FLAGS, f"--user-data-dir={self._profile}"],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._read, self._write = read_here, write_here
        self._buffer, self._number = b"", 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(PATIENCE_S)
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and give its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        told: dict[str, Any] = json.loads(line)
        if "method" in told:
            self._events.append(told)
        return told

    def _until(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            self._next()

    def open(
        self, page: Path | str, *, dark: bool = False, width: int = 1100, height: int = 900
    ) -> None:
        """Open a file or an address, and wait until it is loaded."""
        self.look(dark=dark)
        self.resize(width, height)
        self._events.clear()
        url = page if isinstance(page, str) else page.resolve().as_uri()
        self.call("Page.navigate", url=url)
        self._until("Page.loadEventFired")

    def look(self, *, dark: bool = False, media: str = "") -> None:
        """Emulate a colour scheme, or paper with `print`."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    @property
    def requests(self) -> list[str]:
        """What was asked for, the page itself included."""
        self.eval("0")
        sent = [e for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    @property
    def complaints(self) -> list[Any]:
        self.eval("0")
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._events if event["method"] in kinds]

    def eval(self, expression: str) -> Any:
        """Give the value of an expression; a promise is waited for."""
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, text: str | None = None, *, shift: bool = False) -> None:
        """Press a key as a person would."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36,
                 "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        facts = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        facts |= {"modifiers": 8 if shift else 0}
        facts |= {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **facts)
        self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        for letter in text:
            self.press(letter, letter)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def point_at(self, selector: str) -> None:
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def middle(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view, and give the place of its middle once that is drawn."""
        x, y = self.eval(
            f"(async () => {{ const it = document.querySelector({json.dumps(selector)});"
            "it.scrollIntoView({block: 'center'});"
            # A scroll is told of before the next frame.
            "for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);"
            "const box = it.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return x, y

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "waited in vain"

    def screenshot(self, file: Path, clip: dict[str, float] | None = None) -> None:
        """Write what is seen, or all of the page within `clip`, as PNG."""
        more = {} if clip is None else {"clip": {**clip, "scale": 1}}
        told = self.call(
            "Page.captureScreenshot", format="png", captureBeyondViewport=clip is not None, **more
        )
        file.write_bytes(base64.b64decode(told["data"]))


if __name__ == "__main__":
    sys.exit(main())
