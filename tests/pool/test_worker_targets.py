"""Where requests go, and where the token goes (docs/protocol.md: "Where requests go")."""

from __future__ import annotations

import os
import subprocess
import sys

import huggingface_hub
import pytest

from pipeline.client import Target, find_token
from pipeline.errors import EndpointRefused, SettingsError
from pipeline.events import OldHost, TokenFileIsOpen, TokenNotSent
from pipeline.observers.words import notice

ROUTER = "https://router.huggingface.co/hf-inference/models/"
OLD = "api-inference.huggingface.co"
DEDICATED = "https://abc.eu-west-1.aws.endpoints.huggingface.cloud/"


def target(kit, token, endpoint, model=None):
    return Target.of(kit.config(endpoint, model=model), token)


@pytest.mark.parametrize(
    ("endpoint", "model", "url", "sends_token", "says"),
    [
        pytest.param("hf", "org/name", f"{ROUTER}org/name", True, None, id="serverless-today"),
        pytest.param(
            f"https://{OLD}/models/org/name", None, f"{ROUTER}org/name", True, OldHost("org/name"),
            id="serverless-old",
        ),
        pytest.param(
            f"http://{OLD}/models/org/name/", None, f"{ROUTER}org/name", True, OldHost("org/name"),
            id="serverless-old-http-and-slash",
        ),
        pytest.param(
            f"https://{OLD}", "org/name", f"{ROUTER}org/name", True, OldHost("org/name"),
            id="serverless-old-model-setting",
        ),
        pytest.param(DEDICATED, None, DEDICATED, True, None, id="dedicated"),
        pytest.param(
            f"{DEDICATED}predict", None, f"{DEDICATED}predict", True, None, id="dedicated-predict"
        ),
        pytest.param("https://my.team/x?a=1", None, "https://my.team/x?a=1", True, None, id="own"),
        pytest.param(
            "http://my.team/x", None, "http://my.team/x", False, TokenNotSent("my.team"), id="http"
        ),
        pytest.param(
            "http://127.0.0.1.my.team/", None, "http://127.0.0.1.my.team/", False,
            TokenNotSent("127.0.0.1.my.team"), id="http-like-loopback",
        ),
        pytest.param("http://localhost/", None, "http://localhost/", True, None, id="localhost"),
        pytest.param("http://127.0.0.1:1/", None, "http://127.0.0.1:1/", True, None, id="loopback"),
        pytest.param("http://[::1]:1/", None, "http://[::1]:1/", True, None, id="loopback-v6"),
    ],
)  # fmt: skip
def test_where_requests_and_the_token_go(kit, endpoint, model, url, sends_token, says):
    found = target(kit, kit.TOKEN, endpoint, model)
    assert found.url == url
    assert found.token == (kit.TOKEN if sends_token else None)
    assert found.notice == says
    assert kit.TOKEN not in repr(found)
    assert kit.TOKEN not in str(found.notice)


def test_the_old_host_without_a_model_is_refused(kit):
    with pytest.raises(SettingsError, match='`endpoint="hf"` and `model="org/name"`'):
        target(kit, None, f"https://{OLD}/models/")


def test_the_embedded_endpoint_gets_no_token(kit):
    config = kit.config("local", dialect="auto", model="sentiment")
    found = Target.of(config, kit.TOKEN, "http://127.0.0.1:5")
    assert found == Target("http://127.0.0.1:5", "hf")


def test_no_token_makes_no_notice(kit):
    assert target(kit, None, "http://my.team/").notice is None


@pytest.fixture
def login(tmp_path, monkeypatch):
    """A Hugging Face login."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_login\n")
    return tmp_path


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "secret"
    file.write_text("hf_file\n")
    file.chmod(0o600)
    return file


def test_the_environment_goes_before_the_file_and_the_login(login, token_file, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", " hf_environment\n")
    assert find_token(token_file) == ("hf_environment", None, "the environment variable HF_TOKEN")


def test_the_file_goes_before_the_login(login, token_file):
    assert find_token(token_file) == ("hf_file", None, str(token_file))


def test_the_login_is_found(login):
    assert find_token() == ("hf_login", None, "the Hugging Face login")


@pytest.mark.parametrize(
    "environ",
    [
        {"HF_HOME": "$ROOT/hf"},
        {"HF_TOKEN_PATH": "$ROOT/hf/token"},
        {"XDG_CACHE_HOME": "$ROOT/cache"},
        {"HUGGING_FACE_HUB_TOKEN": "hf_login"},
        {"HF_TOKEN": '"hf_login"'},
    ],
    ids=lambda environ: next(iter(environ)),
)
def test_the_login_is_found_as_the_hub_s_own_tools_find_it(login, environ):
    """In a process of its own: the environment is read once."""
    (login / "cache" / "huggingface").mkdir(parents=True)
    (login / "cache" / "huggingface" / "token").write_text("hf_login")
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    code = "from pipeline.client import find_token; print(find_token().value)"
    found = subprocess.run(
        [sys.executable, "-c", code], env={**plain, "ROOT": str(login), **environ},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert found.stdout == "hf_login\n"


def test_a_login_that_fails_is_refused_in_plain_words(login, monkeypatch):
    """Such as one that cannot be refreshed, which raises whatever the library likes."""

    def failing():
        raise ZeroDivisionError("no refresh")

    monkeypatch.setattr(huggingface_hub, "get_token", failing)
    with pytest.raises(SettingsError, match=r"no refresh\. Run `hf auth login`"):
        find_token()


def test_no_token_anywhere(login):
    (login / "hf" / "token").unlink()
    assert find_token() == (None, None, None)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_file_that_others_can_read_is_warned_of(token_file, login, mode):
    token_file.chmod(mode)
    value, warning, _ = find_token(token_file)
    assert value == "hf_file"
    assert warning == TokenFileIsOpen(str(token_file))
    assert "chmod 600" in notice(warning)


@pytest.mark.parametrize("content", [b"", b" \n", b"two tokens", b"a\nb", b"\xff\xfe"])
def test_a_token_file_without_a_token_is_refused(tmp_path, login, content):
    file = tmp_path / "bad"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match="token_file"):
        find_token(file)


def test_a_token_file_that_is_missing_is_refused(tmp_path, login):
    with pytest.raises(SettingsError, match="token_file"):
        find_token(tmp_path / "missing")


async def test_a_token_that_no_header_can_carry_is_refused_in_plain_words(login, monkeypatch, kit):
    """A line break in HF_TOKEN (two lines pasted) is a usage error, not a bug, and not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_first\nhf_second")
    async with kit.serve() as server:
        with pytest.raises((SettingsError, EndpointRefused)) as refused:
            async with kit.pool(server, token=find_token().value) as running:
                await running.label(["a"])
        assert not server.requests
    assert "hf_second" not in str(refused.value)


async def test_the_token_is_sent_as_bearer(kit):
    async with kit.serve() as server, kit.pool(server, token=kit.TOKEN) as running:
        await running.label(["a"])
        assert server.requests[0].headers["Authorization"] == f"Bearer {kit.TOKEN}"
        assert kit.TOKEN not in repr(running.client)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(kit, status):
    """The token never goes to another host."""
    async with kit.serve() as other:
        elsewhere = kit.Said(status, "", {"Location": other.url})
        async with kit.serve(lambda _: elsewhere) as server:
            with pytest.raises(EndpointRefused, match="redirects") as refused:
                async with kit.pool(server, token=kit.TOKEN) as running:
                    await running.label(["a"])
        assert other.url in str(refused.value)
        assert other.requests == []
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_a_token_that_the_server_echoes_goes_no_further(kit, status):
    """The token appears in no error, event or message, whatever the server says."""
    echo = kit.Said(status, {"error": f"invalid token: Bearer {kit.TOKEN}"})
    async with kit.serve(lambda _: echo) as server:
        seen = []
        try:
            async with kit.pool(
                server, token=kit.TOKEN, max_outage_s=5, max_loading_s=5
            ) as running:
                seen = running.events
                seen.append(await running.label(["a"]))
        except Exception as error:  # noqa: BLE001  (each kind is looked at)
            seen.append((repr(error), str(error)))
    assert kit.TOKEN not in repr(seen)


async def test_the_echo_of_a_redirect_is_no_leak(kit):
    where = {"Location": f"https://elsewhere.example/?token={kit.TOKEN}"}
    async with kit.serve(lambda _: kit.Said(307, "", where)) as server:
        with pytest.raises(EndpointRefused) as refused:
            async with kit.pool(server, token=kit.TOKEN) as running:
                await running.label(["a"])
    assert kit.TOKEN not in str(refused.value)


@pytest.mark.parametrize(
    "address", ["http://x:99999/", "http://[::1", "http://user:pw@my.team/", "http://127.0.0.1@b/"]
)
def test_an_address_that_cannot_be_is_refused(kit, address):
    """Before anything is sent; a user that looks like loopback must not get the token either."""
    with pytest.raises(SettingsError, match="endpoint"):
        kit.config(address)


@pytest.mark.parametrize("stray", ["\u00ad", "\u200d"], ids=["soft hyphen", "joiner"])
def test_an_address_with_a_stray_character_is_refused(kit, stray):
    """Copied from a page, and seen by nobody: refused before anything is sent."""
    with pytest.raises(SettingsError, match="is no address"):
        target(kit, None, f"https://my{stray}host.example/")
