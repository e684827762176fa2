"""The way to an endpoint: proxies, certificates, headers of a gateway, a refreshed login."""

from __future__ import annotations

import json

import pytest

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.headers import values_of
from tests.client.conftest import GATEWAY, response, right

KEY = "k3y-of-the-gateway"


@pytest.fixture
def job(write_csv):
    """The arguments of a run over a few texts."""
    return ("run", write_csv("in.csv", [f"text {i}" for i in range(40)]), "-o", "out.parquet")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_http_goes_through_the_proxy_of_the_environment(cli, job, raw_server, proxy, name):
    proxy.behind = raw_server
    address = f"http://me:passw0rd@{proxy.address}"
    done = cli(*job, "--endpoint", "http://gateway.test/x", **{name: address})
    assert (done.code, sum(map(len, raw_server.texts))) == (0, 40), done.stderr
    assert proxy.heads[0].startswith("POST http://gateway.test/x HTTP/1.1")
    assert "Proxy-Authorization: Basic" in proxy.heads[0]


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("trust", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_https_goes_through_the_proxy_of_the_environment(cli, job, gateway, proxy, name, trust):
    """By CONNECT, so that the proxy reads nothing; it may be named without http://."""
    proxy.behind = gateway
    environ = {"SSL_CERT_FILE": "", name: proxy.address, trust: str(GATEWAY)}
    environ |= {"HF_TOKEN": "hf_secretsecret", "GATEWAY_KEY": KEY}
    flags = ("--header-from", "x-api-key=env:GATEWAY_KEY")
    done = cli(*job, "--endpoint", "https://gateway.test/", *flags, **environ)
    assert (done.code, sum(map(len, gateway.texts))) == (0, 40), done.stderr
    assert {head.partition(" HTTP")[0] for head in proxy.heads} == {"CONNECT gateway.test:443"}
    assert not any(secret in "".join(proxy.heads) for secret in ("hf_secretsecret", KEY))
    assert f"x-api-key: {KEY}" in gateway.heads[0]
    assert "Authorization: Bearer hf_secretsecret" in gateway.heads[0]


def test_a_certificate_that_nobody_vouches_for_names_the_variable(cli, job, gateway):
    url = gateway.url.replace("http:", "https:")
    done = cli(*job, "--endpoint", url, SSL_CERT_FILE="")
    assert done.code == 4
    assert "set SSL_CERT_FILE" in done.stderr
    assert gateway.texts == []


@pytest.mark.parametrize("trust", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_holds_no_certificate_is_refused(cli, job, tmp_path, trust, content):
    if content:
        (tmp_path / "ca.pem").write_text(content)
    environ = {"SSL_CERT_FILE": "", trust: "ca.pem"}
    done = cli(*job, "--endpoint", "https://gateway.test/", **environ)
    assert done.code == 2
    assert done.stderr.startswith(f"{trust}: ca.pem holds no certificates")


def test_no_proxy_is_asked_for_a_host_that_no_proxy_names(cli, job, raw_server, proxy):
    environ = {"HTTP_PROXY": proxy.address, "NO_PROXY": "elsewhere.test,127.0.0.1"}
    assert cli(*job, "--endpoint", raw_server.url, **environ).code == 0
    assert proxy.heads == []


def test_the_embedded_endpoint_needs_no_proxy(cli, job, proxy):
    done = cli(*job, "--endpoint", "local", HTTP_PROXY=proxy.address, ALL_PROXY="socks5://x:1")
    assert (done.code, proxy.heads) == (0, [])


def test_a_probe_says_which_proxy_is_used(cli, raw_server, proxy):
    proxy.behind = raw_server
    environ = {"HTTP_PROXY": f"http://me:passw0rd@{proxy.address}"}
    found = cli("probe", "--json", "--endpoint", "http://gateway.test/", **environ)
    (address,) = [each for each in found.json["checks"] if each["name"] == "address"]
    assert f"by the proxy {proxy.address} (HTTP_PROXY)" in address["seen"]
    assert "passw0rd" not in found.stdout + found.stderr


def test_a_proxy_that_nobody_runs_is_blamed(cli, unused_port):
    environ = {"HTTPS_PROXY": f"127.0.0.1:{unused_port}"}
    found = cli("probe", "--endpoint", "https://gateway.test/", "--max-outage-s", "1", **environ)
    assert found.code == 75
    words = " ".join(found.stdout.split())
    assert f"by the proxy 127.0.0.1:{unused_port} (HTTPS_PROXY)" in words
    assert "Check the proxy and the host, or name the host in NO_PROXY" in words


@pytest.fixture
def unused_port(raw_server):
    raw_server.shutdown()
    raw_server.server_close()
    return raw_server.server_address[1]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_denies_ends_the_run(cli, job, proxy, scheme):
    proxy.denies = response(b"", "407 Proxy Authentication Required")
    environ = {f"{scheme}_proxy": f"http://me:passw0rd@{proxy.address}"}
    done = cli(*job, "--endpoint", f"{scheme}://gateway.test/", **environ)
    assert done.code == 4
    assert f"The proxy {proxy.address} ({scheme.upper()}_PROXY) refuses: 407" in done.stderr
    assert "passw0rd" not in done.stderr


@pytest.mark.parametrize("given", ["socks5://127.0.0.1:1", "http://[broken", "http://"])
def test_a_proxy_that_cannot_be_used_is_refused(cli, job, given):
    done = cli(*job, "--endpoint", "https://gateway.test/", HTTPS_PROXY=given)
    assert done.code == 2
    assert "HTTPS_PROXY: " in done.stderr
    assert "NO_PROXY to gateway.test" in done.stderr


@pytest.mark.parametrize("through", [True, False])
def test_no_token_is_read_from_netrc(cli, job, tmp_path, raw_server, proxy, through):
    (tmp_path / "netrc").write_text("default login me password passw0rd")
    proxy.behind = raw_server
    environ = {"HTTP_PROXY": proxy.address} if through else {}
    done = cli(*job, "--endpoint", raw_server.url, NETRC=str(tmp_path / "netrc"), **environ)
    assert done.code == 0
    assert bool(proxy.heads) is through
    assert "uthorization" not in "".join(raw_server.heads + proxy.heads)


def test_the_headers_of_a_gateway_are_sent(cli, job, tmp_path, raw_server):
    """From a variable and from a file; by flags, and by the environment."""
    (tmp_path / "key").write_text(f"{KEY}-2\n")
    flags = ("--header-from", "x-api-key=env:GATEWAY_KEY", "--header-from", "api-key=file:key")
    done = cli(*job, "--endpoint", raw_server.url, *flags, GATEWAY_KEY=KEY)
    assert done.code == 0, done.stderr
    assert all(f"x-api-key: {KEY}\r\n" in head for head in raw_server.heads)
    assert all(f"api-key: {KEY}-2\r\n" in head for head in raw_server.heads)
    places = "x-api-key=env:GATEWAY_KEY,api-key=file:key"
    again = cli(*job, "--overwrite", "--endpoint", raw_server.url,
                GATEWAY_KEY="another", CLASSIFY_HEADER_FROM=places)  # fmt: skip
    assert again.code == 0
    assert "x-api-key: another" in raw_server.heads[-1]


def config(**settings):
    return RunConfig(input="a", output="o", endpoint="https://gateway.test", **settings)


def test_places_of_headers_mean_the_same_in_each_form():
    places = {"x-api-key": "env:A", "api-key": "file:b/c"}
    for given in (places, "x-api-key=env:A, api-key=file:b/c",
                  ["x-api-key=env:A", "api-key=file:b/c"]):  # fmt: skip
        assert config(header_from=given).header_from == places
    assert config(header_from={}).header_from is None


@pytest.mark.parametrize(
    "given",
    [
        f"x-api-key={KEY}", {"x-api-key": KEY}, f"x-api-key:{KEY}", f"x-api-key: {KEY}", KEY,
        {f"x-api-key: {KEY}": "env:A"}, {"x-api-key": "env:"}, "x-api-key=vault:a", 7, [7],
        "Authorization=env:A", "content-length=env:A", {"a": "env:A", "A": "env:B"},
    ],
)  # fmt: skip
def test_what_names_no_place_of_a_header_is_refused_and_not_repeated(given):
    """It may be the secret itself."""
    with pytest.raises(SettingsError, match="header_from") as refused:
        config(header_from=given)
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("content", [None, "", " \n", "two\nlines", "k\u00e9y"])
def test_the_value_of_a_header_that_cannot_be_is_refused(tmp_path, monkeypatch, content):
    place = tmp_path / "key"
    if content is not None:
        place.write_text(content)
        monkeypatch.setenv("GATEWAY_KEY", content)
    for where in (f"file:{place}", "env:GATEWAY_KEY"):
        with pytest.raises(SettingsError, match="x-api-key"):
            values_of({"x-api-key": where})


def test_a_missing_value_ends_a_run_before_anything_is_sent(cli, job, raw_server):
    done = cli(*job, "--endpoint", raw_server.url, "--header-from", "x-api-key=env:GATEWAY_KEY")
    assert (done.code, raw_server.texts) == (2, [])
    assert "GATEWAY_KEY is not set" in done.stderr


def test_a_header_goes_to_https_or_this_machine_only(cli, job):
    flags = ("--header-from", "x-api-key=env:GATEWAY_KEY")
    done = cli(*job, "--endpoint", "http://gateway.test", *flags, GATEWAY_KEY=KEY)
    assert done.code == 2
    assert "anyone in between could read x-api-key" in done.stderr


def test_a_login_that_is_refreshed_in_a_long_run_is_taken(cli, job, tmp_path, raw_server):
    """All requests of a burst are refused, and one of them looks for a new token."""
    login = tmp_path / "login"
    login.write_text("hf_oldoldold")

    def answer(texts):
        if len(raw_server.heads) > 5:
            login.write_text("hf_newnewnew")
            if "hf_newnewnew" not in raw_server.heads[-1]:
                return response(json.dumps({"error": "expired"}).encode(), "401 Unauthorized")
        return right(texts)

    raw_server.answer = answer
    job += ("--batch-size", "1", "--concurrency", "1")
    done = cli(*job, "--endpoint", raw_server.url, HF_TOKEN_PATH=str(login))
    assert done.code == 0, done.stderr
    assert len(raw_server.heads) == 41
    sent = ["hf_newnewnew" in head for head in raw_server.heads]
    assert sent == [False] * 6 + [True] * 35


def test_a_token_that_stays_refused_ends_the_run_at_once(cli, job, tmp_path, raw_server):
    (tmp_path / "login").write_text("hf_oldoldold")
    raw_server.answer = lambda _: response(b"{}", "401 Unauthorized")
    done = cli(*job, "--endpoint", raw_server.url, HF_TOKEN_PATH=str(tmp_path / "login"))
    assert (done.code, len(raw_server.heads)) == (4, 1)
