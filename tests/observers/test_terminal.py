"""The bar in a real terminal (a pty, emulated by pyte), at the widths that people have."""

import os
import pty
import re
import struct
import termios
from fcntl import ioctl

import pyte
import pytest

from pipeline.events import (
    ChunkLookedUp,
    NothingToRetry,
    PartCommitted,
    Requests,
    RunEnded,
    RunStarted,
    WaitEnded,
    Waiting,
    Why,
)
from pipeline.observers.progress import TerminalProgress

WIDTHS = [60, 80, 120]
BAR = "[━╸╺ ]+"


def requests(**facts):
    plain = {"sent": 0, "retries": 0, "in_flight": 0, "peak_in_flight": 0, "seconds": ()}
    plain |= {"inputs": 0, "failed_inputs": 0, "limit": 32, "rate": None}
    return Requests(ended={(200, None): 1}, **{**plain, **facts})


class Terminal:
    """A progress that draws in a terminal of some width, and a clock that the test moves."""

    def __init__(self, columns, monkeypatch):
        monkeypatch.setenv("TERM", "xterm-256color")
        # The width of a terminal is otherwise that of stdin, stdout or stderr.
        monkeypatch.setenv("COLUMNS", str(columns))
        self.now = 1_000.0
        self._there, here = pty.openpty()
        ioctl(here, termios.TIOCSWINSZ, struct.pack("HHHH", 12, columns, 0, 0))
        os.set_blocking(self._there, False)
        self._screen = pyte.Screen(columns, 12)
        self._stream = pyte.ByteStream(self._screen)
        self._file = os.fdopen(here, "w", encoding="utf-8")
        self.progress = TerminalProgress(self._file, lambda: self.now)

    def lines(self):
        """What is on the screen."""
        self._file.flush()
        while True:
            try:
                self._stream.feed(os.read(self._there, 65_536))
            except BlockingIOError:
                return [line.rstrip() for line in self._screen.display if line.strip()]

    def colours(self):
        """The colours of the bar in its last line, from the left."""
        rows = [row for row in range(12) if self._screen.display[row].strip()]
        cells = [self._screen.buffer[rows[-1]][column] for column in range(self._screen.columns)]
        bar = [cell.fg for cell in cells if cell.data in "━╸╺"]
        return list(dict.fromkeys(bar))

    def drawn(self):
        self.progress._draw()
        return self.lines()[-1]

    def close(self):
        self.progress.close()
        self._file.close()
        os.close(self._there)


@pytest.fixture(params=WIDTHS)
async def terminal(request, monkeypatch):
    found = Terminal(request.param, monkeypatch)
    found.columns = request.param
    yield found
    found.close()


ROWS = [100, 48_000, 1_000_000_000]


@pytest.mark.parametrize("rows", ROWS)
async def test_percentage_count_and_time_left_are_always_there(terminal, rows):
    """Whatever else there is to say, and in one line, which leaves room for ^C twice."""
    terminal.progress(RunStarted(rows, 0, "out.parquet", "http://x", "m"))
    assert re.fullmatch(rf"{BAR}   0% 0/{rows:,}( 0 rows/s.*)?", terminal.lines()[-1])
    done = rows * 4 // 10
    terminal.progress(ChunkLookedUp(rows=done, distinct=done, hits=40, asked=done))
    terminal.progress(
        requests(sent=1_300, retries=3_000, in_flight=28, rate=1_234.5, failed_inputs=20_000)
    )
    terminal.now += 3_600
    terminal.progress(PartCommitted(0, done, 12))
    line = terminal.drawn()
    assert re.match(rf"{BAR}  40% {done:,}/{rows:,} 1 h 30 min left", line), line
    assert len(terminal.lines()) == 1
    assert len(line) <= terminal.columns - len("^C^C")
    assert line.count("━") >= 1
    if len(f"{rows:,}") < 8 or terminal.columns == 120:
        assert "rows/s" in line


async def test_what_is_waited_for_stands_where_the_time_left_does(terminal):
    terminal.progress(RunStarted(48_000, 0, "out.parquet", "http://x", "m"))
    terminal.progress(Waiting(Why.LOADING, 20.0, "503 loading"))
    terminal.now += 12
    assert "  0% 0/48,000 model loading, 12 s of about 20 s" in terminal.drawn()
    terminal.progress(WaitEnded(Why.LOADING, 14.0))
    terminal.progress(Waiting(Why.THROTTLED, 5.0, "429 slow down"))
    assert "0/48,000 throttled, going on in 5 s" in terminal.drawn()


async def test_the_words_of_an_endpoint_give_way_to_the_bar_and_the_counts(terminal):
    terminal.progress(RunStarted(48_000, 0, "out.parquet", "http://x", "m"))
    terminal.progress(Waiting(Why.OUTAGE, 20.0, "503 " + "no such luck " * 20))
    line = terminal.drawn()
    assert re.match(rf"{BAR}   0% 0/48,000 .*…", line), line
    assert len(line) <= terminal.columns - len("^C^C")


async def test_all_but_a_row_is_no_hundred_percent(terminal):
    terminal.progress(RunStarted(1_000, 0, "out.parquet", "http://x", "m"))
    terminal.progress(PartCommitted(0, 999, 0))
    assert " 99% 999/1,000" in terminal.drawn()


async def test_the_last_line_says_what_was_done(terminal):
    """How many rows, in what time, and how fast: none of what is true of a moment only."""
    terminal.progress(RunStarted(48_000, 8_000, "out.parquet", "http://x", "m"))
    terminal.progress(NothingToRetry())
    terminal.progress(requests(sent=100, retries=3, in_flight=28, rate=20.0))
    terminal.now += 200
    terminal.progress(PartCommitted(0, 40_000, 2))
    assert "48,000/48,000 putting the output together" in terminal.drawn()
    terminal.progress(RunEnded("complete", 0, None))
    terminal.progress.close()
    said, last = terminal.lines()
    assert said.startswith("No row carries an error")
    words = "100% 48,000/48,000 in 3 min 20 s, 200 rows/s, 3 retries, 2 errors"
    assert words.startswith(last.lstrip("━ "))
    assert last.endswith(words if terminal.columns > 60 else " 200 rows/s")


async def test_an_output_that_was_complete_already(terminal):
    terminal.progress(RunStarted(48_000, 48_000, "out.parquet", "http://x", "m"))
    terminal.progress(RunEnded("complete", 0, None))
    terminal.progress.close()
    assert re.fullmatch("━+ 100% 48,000/48,000 in 0 s", terminal.lines()[-1])


async def test_the_bar_does_not_look_like_an_error(terminal, monkeypatch):
    """What is done is cyan, and green once all is."""
    monkeypatch.delenv("NO_COLOR")
    terminal.progress(RunStarted(100, 0, "out.parquet", "http://x", "m"))
    terminal.progress(PartCommitted(0, 50, 0))
    terminal.drawn()
    assert terminal.colours()[0] == "cyan"
    terminal.progress(PartCommitted(50, 50, 0))
    terminal.drawn()
    assert terminal.colours() == ["green"]
