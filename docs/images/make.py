"""Make the images of the README again: `make images`. Needs Chromium, nothing is drawn by hand.

A rehearsal of the installed command is labelled in a real terminal (a pty, emulated by pyte) by the
embedded endpoint, which loads its model first, fails at times and refuses some rows. The terminal
and the report on that run are then photographed by the browser. It takes about two minutes.
"""

from __future__ import annotations

import csv
import html
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pyte

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.endpoint.process import EndpointProcess  # noqa: E402
from tests.report.chromium import Chromium  # noqa: E402

ROWS = 16_000
COLUMNS, LINES = 116, 9
FAULTS = ["--cold-start", "8", "--latency-ms", "300", "--share-500", "0.02"]
FAULTS += ["--share-reset", "0.01", "--poison", "thermometer"]
PATIENCE_S = 300.0
PROMPT = "$ "
# The sixteen colours of the terminal, as far as progress uses them.
COLORS = {"default": "#d7dae0", "red": "#f08a80", "green": "#8fce8a", "brown": "#e5c07b",
          "blue": "#82aaff", "magenta": "#d795e6", "cyan": "#7fd1de", "black": "#5c6370",
          "white": "#d7dae0"}  # fmt: skip


def write_reviews(file: Path) -> None:
    """Make a table of so many reviews out of those of the sample, two and two together."""
    with (ROOT / "data/sample/reviews.csv").open(encoding="utf-8", newline="") as sample:
        reviews = [row["review"] for row in csv.DictReader(sample) if row["review"]]
    with file.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "review"])
        for i in range(ROWS):
            one, other = (
                reviews[i % len(reviews)],
                reviews[(i * 7 + i // len(reviews)) % len(reviews)],
            )
            writer.writerow([f"{i:06d}", f"{one} {other}"])


class Terminal:
    """A shell in a terminal, and what is on its screen."""

    def __init__(self, directory: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._descriptor, other = pty.openpty()
        ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._shell = subprocess.Popen(
            ["/bin/bash", "--norc", "--noprofile", "-i"],
            cwd=directory,
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            env={
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "HOME": str(directory),
                "TERM": "xterm-256color",
                "LANG": "C.UTF-8",
                "PS1": PROMPT,
            },
        )
        os.close(other)

    def type(self, words: str) -> None:
        """Type words, as a person would."""
        os.write(self._descriptor, words.encode())

    def until(self, shows: str) -> None:
        """Look on until the screen shows something."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(shows, "\n".join(self.screen.display)):
            if time.monotonic() > end:
                raise TimeoutError("\n".join(self.screen.display))
            if select.select([self._descriptor], [], [], 0.2)[0]:
                self._stream.feed(os.read(self._descriptor, 1 << 16))

    def close(self) -> None:
        """End the shell."""
        self.type("exit\n")
        self._shell.wait()
        os.close(self._descriptor)

    def shown(self) -> str:
        """The screen as HTML, letter by letter in its colours, down to its last words."""
        last = max(y for y, line in enumerate(self.screen.display) if line.strip())
        return "\n".join("".join(map(_letter, self._row(y))) for y in range(last + 1))

    def _row(self, y: int) -> list[pyte.screens.Char]:
        return [self.screen.buffer[y][x] for x in range(COLUMNS)]


def _letter(cell: pyte.screens.Char) -> str:
    shade = COLORS.get(cell.fg, f"#{cell.fg}")
    weight = "bold" if cell.bold else "normal"
    return f'<span style="color:{shade};font-weight:{weight}">{html.escape(cell.data)}</span>'


def main() -> None:
    """Run the rehearsal and write the images beside this file."""
    with tempfile.TemporaryDirectory() as name, Chromium() as browser:
        work = Path(name)
        write_reviews(work / "reviews.csv")
        terminal = Terminal(work)
        with EndpointProcess(arguments=FAULTS) as endpoint:
            terminal.until(re.escape(PROMPT))
            terminal.type(
                "classify run reviews.csv --text review -o labelled.parquet "
                f"--endpoint {endpoint.url}\n"
            )
            terminal.until(r"model loading, [45] s of")
            frames = [terminal.shown()]
            terminal.until(r"6\d%")
            frames.append(terminal.shown())
            terminal.until(r"labelled\.parquet: [\d,]+ rows")
            terminal.until(re.escape(PROMPT) + r"\s*$")
            frames.append(terminal.shown())
            terminal.type("clear; classify report labelled.parquet\n")
            terminal.until(r"The report is in")
        terminal.close()
        photograph_terminal(browser, frames, work)
        for look in ("light", "dark"):
            photograph_report(browser, work / "labelled.parquet.html", look)


def photograph_terminal(browser: Chromium, frames: list[str], work: Path) -> None:
    """Photograph the screen at some moments, one below the other."""
    style = (
        "body{margin:0;background:#4a515c;width:max-content;display:grid;gap:2px}"
        "pre{margin:0;padding:14px 20px;background:#1e2227;"
        "font:15px/1.45 'DejaVu Sans Mono',Menlo,monospace}"
    )
    page = work / "terminal.html"
    screens = "".join(f"<pre>{frame}</pre>" for frame in frames)
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{style}</style>{screens}', encoding="utf-8"
    )
    browser.open(page, width=1200)
    box = browser.eval(
        "(() => { const box = document.body.getBoundingClientRect();"
        " return {x: 0, y: 0, width: box.width, height: box.height}; })()"
    )
    browser.screenshot(HERE / "progress.png", box)


def photograph_report(browser: Chromium, page: Path, look: str) -> None:
    """Photograph the upper part of a report, down to the first chart over time."""
    browser.open(page, dark=look == "dark", width=1000)
    # Few rows, so that all kinds of sections are in the picture.
    browser.eval("document.querySelector('.tall').style.maxHeight = '150px'")
    height = browser.eval("document.querySelectorAll('figure h3')[3].getBoundingClientRect().top")
    box = {"x": 0, "y": 0, "width": 1000, "height": round(height)}
    browser.screenshot(HERE / f"report-{look}.png", box)


if __name__ == "__main__":
    main()
