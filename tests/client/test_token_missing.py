"""Without a token the serverless API refuses nearly all: that is told before anything is sent."""

import socket

import pytest


@pytest.fixture
def closed():
    """The address of a proxy that nobody listens at, so that nothing leaves this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{found.getsockname()[1]}"


@pytest.mark.parametrize(
    ("token", "endpoint", "told"), [("", "hf", True), ("hf_x", "hf", False), ("", "other", False)]
)
def test_a_missing_token_is_told_before_the_first_request(
    cli, server, write_csv, closed, tmp_path, token, endpoint, told
):
    address = ("--endpoint", "hf" if endpoint == "hf" else server.url, "--model", "org/m")
    ended = cli(
        "run", write_csv("in.csv", ["a"]), *address, "-o", "out.parquet", "--max-outage-s", "0.2",
        HTTPS_PROXY=closed, HF_TOKEN=token, HF_HOME=str(tmp_path / "home"),
    )  # fmt: skip
    assert ended.code == (75 if endpoint == "hf" else 0), ended.stderr
    lines = [line[20:] for line in ended.stderr.splitlines()]
    warned = [line.startswith("No token was found") for line in lines]
    assert any(warned) is told, ended.stderr
    if told:
        assert "Set HF_TOKEN" in ended.stderr
        assert "--token-file" in ended.stderr
        # Before what the first request came to.
        waiting = next(i for i, line in enumerate(lines) if "waiting" in line or "down" in line)
        assert warned.index(True) < waiting


def test_a_token_file_that_is_missing_is_told_in_words(cli, server, write_csv):
    address = ("--endpoint", server.url, "--token-file", "nowhere")
    ended = cli("run", write_csv("in.csv", ["a"]), *address, "-o", "out.parquet")
    assert ended.code == 2
    assert ended.stderr == "--token-file: nowhere cannot be read: No such file or directory.\n"
    assert server.requests == []
