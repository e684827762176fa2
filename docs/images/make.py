"""Make the images of the documentation again: `make images`. Needs Chromium; nothing is drawn.

Rehearsals of the installed command are labelled in real terminals of several widths (a pty,
emulated by pyte) and in a real kernel, by the embedded endpoint, which loads its model first, fails
at times and refuses some rows. The terminals, what the notebook shows and the report are then
photographed by the browser. It takes about three minutes. `make.py WHAT` makes only `terminal`,
`notebook`, or `terminal report`, since the report is on what the terminal did.
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
import zlib
from fcntl import ioctl
from pathlib import Path

import pyte

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.endpoint.process import EndpointProcess  # noqa: E402
from tests.notebook.conftest import Kernel  # noqa: E402
from tests.report.chromium import Chromium  # noqa: E402

# Rows that are labelled in a terminal so wide; the report is on the first of these runs.
TERMINALS = {120: 4_000, 80: 1_500, 60: 1_500}
LINES = 16
NOTEBOOK_ROWS = 1_500
FAULTS = ["--cold-start", "8", "--latency-ms", "300", "--share-500", "0.02"]
FAULTS += ["--share-reset", "0.01", "--poison", "thermometer"]
PATIENCE_S = 200.0
PROMPT = "$ "
# The sixteen colours of the terminal, as far as progress uses them.
COLORS = {"default": "#d7dae0", "red": "#f08a80", "green": "#8fce8a", "brown": "#e5c07b",
          "blue": "#82aaff", "magenta": "#d795e6", "cyan": "#7fd1de", "black": "#5c6370",
          "white": "#d7dae0"}  # fmt: skip


def write_reviews(file: Path, rows: int) -> None:
    """Make a table of so many reviews out of those of the sample, two and two together."""
    with (ROOT / "data/sample/reviews.csv").open(encoding="utf-8", newline="") as sample:
        reviews = [row["review"] for row in csv.DictReader(sample) if row["review"]]
    with file.open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "review"])
        for i in range(rows):
            one, other = (
                reviews[i % len(reviews)],
                reviews[(i * 7 + i // len(reviews)) % len(reviews)],
            )
            writer.writerow([f"{i:06d}", f"{one} {other}"])


class Terminal:
    """A shell in a terminal, and what is on its screen."""

    def __init__(self, directory: Path, columns: int) -> None:
        self.screen = pyte.Screen(columns, LINES)
        self._stream = pyte.ByteStream(self.screen)
        self._descriptor, other = pty.openpty()
        ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, columns, 0, 0))
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
                # This checkout, whichever one is installed.
                "PYTHONPATH": str(ROOT),
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
        return [self.screen.buffer[y][x] for x in range(self.screen.columns)]


def _letter(cell: pyte.screens.Char) -> str:
    shade = COLORS.get(cell.fg, f"#{cell.fg}")
    weight = "bold" if cell.bold else "normal"
    return f'<span style="color:{shade};font-weight:{weight}">{html.escape(cell.data)}</span>'


def main(*wanted: str) -> None:
    """Run the rehearsals and write the images beside this file."""
    kinds = wanted or ("terminal", "notebook", "report")
    with tempfile.TemporaryDirectory() as name, Chromium() as browser:
        work = Path(name)
        if "terminal" in kinds:
            for columns, rows in TERMINALS.items():
                frames = in_terminal(work, columns, rows)
                photograph_terminal(browser, frames, work, HERE / f"progress-{columns}.png")
        if "notebook" in kinds:
            photograph_notebook(browser, work)
        if "report" in kinds:
            for look, width, dark in (
                ("light", 1000, False),
                ("dark", 1000, True),
                ("phone", 390, False),
            ):
                page = work / f"labelled-{next(iter(TERMINALS))}.parquet.html"
                photograph_report(browser, page, HERE / f"report-{look}.png", width, dark=dark)


def in_terminal(work: Path, columns: int, rows: int) -> list[str]:
    """Label a table in a terminal, and write the report; return what it shows at some moments."""
    write_reviews(work / "reviews.csv", rows)
    terminal = Terminal(work, columns)
    output = f"labelled-{columns}.parquet"
    with EndpointProcess(arguments=FAULTS) as endpoint:
        terminal.until(re.escape(PROMPT))
        terminal.type(
            f"classify run reviews.csv --text review -o {output} --endpoint {endpoint.url}\n"
        )
        terminal.until(r"model loading, [45] s of")
        frames = [terminal.shown()]
        terminal.until(r"[4-8]\d% ")
        frames.append(terminal.shown())
        terminal.until(r"Next: ")
        terminal.until(re.escape(PROMPT) + r"\s*$")
        frames.append(terminal.shown())
        terminal.type(f"clear; classify report {output} --columns id\n")
        terminal.until(r"The report is in")
    terminal.close()
    return frames


def photograph_terminal(browser: Chromium, frames: list[str], work: Path, image: Path) -> None:
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
    photograph(browser, page, image, "body")


NOTEBOOK = """
body { margin: 0; background: #fff; font: 14px/1.5 "Liberation Sans", Arial, sans-serif; }
main { width: 860px; padding: 14px 16px; display: grid; grid-template-columns: 60px 1fr; gap: 8px; }
.in, .out { font: 12px/2 "DejaVu Sans Mono", monospace; color: #307fc1; text-align: right; }
.out { color: #bf5b3d; }
pre { margin: 0; padding: 8px 10px; background: #f7f7f7; border: 1px solid #ddd;
  font: 13px/1.45 "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; margin-top: 6px; }
td, th { padding: 2px 10px 2px 0; }
"""


def photograph_notebook(browser: Chromium, work: Path) -> None:
    """Run a job in a kernel, and photograph what the cell shows in the middle and at the end."""
    write_reviews(work / "reviews.csv", NOTEBOOK_ROWS)
    (work / "sockets").mkdir()
    kernel = Kernel(work, work / "sockets")
    try:
        with EndpointProcess(arguments=FAULTS) as endpoint:
            code = (
                "import classify_pipeline as cp\n\n"
                'cp.run("reviews.csv", "labelled.parquet", text="review", '
                f'endpoint="{endpoint.url}")'
            )
            cell = kernel.work(code)
    finally:
        kernel.close()
    lines = cell.shown("text/html")
    middle = next(
        line for line, plain in zip(lines, cell.shown(), strict=True) if " left, " in plain
    )
    outputs = [("In [1]:", f"<pre>{html.escape(code)}</pre>"), ("", middle), ("", lines[-1])]
    cells = [f"<div class=in>{prompt}</div><div>{shown}</div>" for prompt, shown in outputs]
    cells.append(f"<div class=out>Out[1]:</div><div>{cell.result['text/html']}</div>")
    page = work / "notebook.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><style>{NOTEBOOK}</style><main>{"".join(cells)}'
        "</main>",
        encoding="utf-8",
    )
    photograph(browser, page, HERE / "notebook.png", "main")


def photograph_report(
    browser: Chromium, page: Path, image: Path, width: int, *, dark: bool
) -> None:
    """Photograph the upper part of a report, down to the first chart over time."""
    browser.open(page, dark=dark, width=width)
    # Few rows, so that all kinds of sections are in the picture.
    browser.eval(
        "for (const it of document.querySelectorAll('.tall, [aria-label=Samples] .table'))"
        " { it.style.maxHeight = '110px'; it.style.overflow = 'hidden'; }"
    )
    height = browser.eval(
        "Array.from(document.querySelectorAll('h3'))"
        ".find((it) => it.textContent === 'Latency').getBoundingClientRect().top"
    )
    take(browser, image, width, height)


def photograph(browser: Chromium, page: Path, image: Path, selector: str) -> None:
    """Photograph an element of a page."""
    browser.open(page, width=1200)
    width, height = browser.eval(
        f"(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect();"
        " return [box.width, box.height]; })()"
    )
    take(browser, image, width, height)


def take(browser: Chromium, image: Path, width: float, height: float) -> None:
    """Write the upper left of the page that is open as PNG, packed as well as zlib can."""
    browser.screenshot(image, {"x": 0, "y": 0, "width": round(width), "height": round(height)})
    content = image.read_bytes()
    chunks, at = [], 8
    while at < len(content):
        size = int.from_bytes(content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += size + 12
    pixels = zlib.decompress(b"".join(data for kind, data in chunks if kind == b"IDAT"))
    packed = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
    kept = [
        chunks[0],
        (b"IDAT", packed.compress(pixels) + packed.flush()),
        (b"IEND", b""),
    ]
    written = [
        len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)
        for kind, data in kept
    ]
    image.write_bytes(content[:8] + b"".join(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
