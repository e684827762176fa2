"""A page that follows a run, in a real browser; nobody gets it who was not told its address."""

import http.client
import re
import signal
from time import monotonic, sleep

import pyarrow as pa
import pytest

from pipeline.report.live import LivePage


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i}" for i in range(100)])


@pytest.fixture
def live(start, eventually):
    """Follow the run of `out.parquet`; return the command, and the port and path of its page."""

    def follow(*arguments):
        process = start("report", "out.parquet", "--live", *arguments)
        eventually(lambda: process.printed().endswith("ends it.\n"))
        port, path = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)(/[\w-]{22}) follows the run; Ctrl-C ends it\.\n",
            process.printed(),
        ).groups()
        return process, int(port), path

    return follow


def asked(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_it_follows_a_run_to_its_end(start, live, source, server, browser, eventually):
    """Whoever reads further down stays there when the page is replaced by a newer one."""

    def words():
        return browser.eval("document.body?.innerText ?? ''")

    server.script = lambda request: server.reply(hold=request.number > 10)
    settings = ("--batch-size", 4, "--concurrency", 1, "-o", "out.parquet")
    work = start("run", source, "--endpoint", server.url, *settings)
    server.wait_for(lambda: server.in_flight == 1 and len(server.requests) > 10)
    follower, port, path = live()
    browser.open(f"http://127.0.0.1:{port}{path}", height=300)
    assert browser.complaints == []
    assert "The run is complete" not in words()
    assert browser.eval("window.scrollTo(0, 200), window.scrollY") == 200
    server.release()
    server.script = lambda _: None
    assert work.ended().code == 0
    eventually(lambda: "The run is complete. All 100 rows are labelled." in words())
    eventually(lambda: browser.eval("window.scrollY") > 0)
    assert not browser.eval("document.body.dataset.reloadS")
    follower.send(signal.SIGINT)
    ended = follower.ended()
    assert (ended.code, ended.stderr) == (0, "")


def test_only_whoever_has_its_address_gets_the_page(cli, live, source, server):
    """Other users of the machine, and web sites in the browser, can ask the port, too."""
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    follower, port, path = live()
    assert asked(port, path)[0] == 200
    for other in ("/", path[:-1], path + "a", path + "/", "/x"):
        status, content = asked(port, other)
        assert (status, "text 1" in content) == (404, False)
    follower.send(signal.SIGTERM)
    assert follower.ended().code == 0


def test_a_run_that_is_removed_is_told(cli, live, source, server, tmp_path, eventually):
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    _, *page = live()
    (tmp_path / "out.parquet.run").rename(tmp_path / "elsewhere")
    eventually(lambda: "No run is recorded in" in asked(*page)[1])
    assert 'http-equiv="refresh"' in asked(*page)[1]
    (tmp_path / "elsewhere").rename(tmp_path / "out.parquet.run")
    eventually(lambda: "The run is complete." in asked(*page)[1])


def test_a_page_that_cannot_be_drawn_rests_and_is_tried_again(monkeypatch):
    """Whatever the failure is: a file may change while it is read."""
    monkeypatch.setattr("pipeline.report.live.RELOAD_S", 1)
    drawn = []

    def draw_page():
        drawn.append(monotonic())
        if len(drawn) == 2:
            sleep(0.2)
            raise pa.ArrowInvalid("<cut off>")
        return b"<body>the page", False

    page = LivePage(draw_page)
    page.draw()
    while b"&lt;cut off&gt;" not in page.get():
        assert len(drawn) < 3
    while page.get() != b'<body data-reload-s="5">the page':
        assert len(drawn) < 3
    assert drawn[2] - drawn[1] >= 0.2 + 2 * 0.2


def test_what_cannot_be_followed_is_refused(cli, live, source, server):
    done = cli("report", "out.parquet", "--live")
    assert (done.code, "No run is recorded" in done.stderr) == (2, True)
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    done = cli("report", "out.parquet", "--live", "-o", "page.html")
    said = "--live and --page cannot be combined. Drop one of the two.\n"
    assert (done.code, done.stderr) == (2, said)
    done = cli("report", "out.parquet", "--port", 8080)
    assert (done.code, done.stderr) == (2, "--port needs --live. Add --live, or drop --port.\n")
    _, port, _ = live()
    done = cli("report", "out.parquet", "--live", "--port", port)
    assert done.code == 2
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use." in done.stderr
