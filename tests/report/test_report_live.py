"""A page that follows a run, in a real browser; nobody else gets it."""

import http.client
import re
import signal

import pytest


@pytest.fixture
def source(write_csv):
    return write_csv("in.csv", [f"text {i}" for i in range(100)])


@pytest.fixture
def live(start, eventually):
    """Follow the run of `out.parquet`; return the command, and the port of its page."""

    def follow(*arguments):
        process = start("report", "out.parquet", "--live", *arguments)
        eventually(lambda: process.printed().endswith("ends it.\n"))
        (port,) = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+) follows the run; Ctrl-C ends it\.\n", process.printed()
        ).groups()
        return process, int(port)

    return follow


def asked(port, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    connection.request("GET", path, headers=headers)
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
    follower, port = live()
    browser.open(f"http://127.0.0.1:{port}/", height=300)
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


def test_only_this_machine_gets_the_page(cli, live, source, server):
    """A web site may point its own name to 127.0.0.1, and would then be let read what it gets."""
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    follower, port = live()
    for name in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost:8080", "localhost"):
        assert asked(port, Host=name)[0] == 200
    for name in ("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}"):
        assert asked(port, Host=name)[0] == 403
    assert asked(port, "/out.parquet")[0] == 404
    follower.send(signal.SIGTERM)
    assert follower.ended().code == 0


def test_a_run_that_is_removed_is_told(cli, live, source, server, tmp_path, eventually):
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    _, port = live()
    (tmp_path / "out.parquet.run").rename(tmp_path / "elsewhere")
    eventually(lambda: "No run is recorded in" in asked(port)[1])
    assert 'http-equiv="refresh"' in asked(port)[1]
    (tmp_path / "elsewhere").rename(tmp_path / "out.parquet.run")
    eventually(lambda: "The run is complete." in asked(port)[1])


def test_what_cannot_be_followed_is_refused(cli, live, source, server):
    done = cli("report", "out.parquet", "--live")
    assert (done.code, "No run is recorded" in done.stderr) == (2, True)
    assert cli("run", source, "--endpoint", server.url, "-o", "out.parquet").code == 0
    done = cli("report", "out.parquet", "--live", "-o", "page.html")
    assert (done.code, done.stderr) == (2, "--live writes no page. Drop it, or --page.\n")
    _, port = live()
    done = cli("report", "out.parquet", "--live", "--port", port)
    assert done.code == 2
    assert f"Cannot listen on 127.0.0.1 port {port}: Address already in use." in done.stderr
