"""Whatever bytes a server sends become outcomes or an error of the tree (fault 28)."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.client import Client, Target
from pipeline.client.statuses import error_of
from pipeline.config import RunConfig
from pipeline.errors import ClassifyError, EndpointRefused, Retryable, RowsRejected
from pipeline.foreign import visible
from tests.client.conftest import response, right

pytestmark = pytest.mark.fault(28)

TOKEN = "hf_aSecretThatNobodyTells"
# Each character as JSON, an address, Python or HTML may write it.
FORMS = {
    "plain": str,
    "lower": str.lower,
    "json": lambda text: "".join(f"\\u{ord(c):04x}" for c in text),
    "json, twice": lambda text: "".join(f"\\\\u{ord(c):04X}" for c in text),
    "json, one": lambda text: text.replace("_", "\\u005f"),
    "percent": lambda text: "".join(f"%{ord(c):02x}" for c in text),
    "percent, twice": lambda text: "".join(f"%25{ord(c):02X}" for c in text),
    "html": lambda text: "".join(f"&#{ord(c)};" for c in text),
    "html, hexadecimal": lambda text: text.replace("_", "&#x5F;"),
}
DEEP = b"[" * 1000 + b"]" * 1000
HUGE = b"9" * 5000


async def asked(url, texts=("a", "b"), token=TOKEN, **settings):
    """What one request comes to: a reply, or an error of the tree."""
    config = RunConfig(
        input="in.csv", output="out.parquet", endpoint=url, dialect="hf", timeout_s=5, **settings
    )
    async with Client(config, Target(url, "hf", token)) as client:
        try:
            async with asyncio.timeout(30):
                return await client.ask(list(texts))
        except ClassifyError as error:
            return error


def assert_typed(found, texts=("a", "b")):
    """Outcomes and revision can be stored, errors can be printed, and neither tells the token."""
    if isinstance(found, ClassifyError):
        assert isinstance(found, Retryable | RowsRejected | EndpointRefused)
        said = str(found)
        assert said == visible(said)
        wait_s = getattr(found, "wait_s", None)
        assert wait_s is None or 0 <= wait_s <= 1e10
    else:
        assert len(found.outcomes) == len(texts)
        said = repr(found.outcomes) + (found.revision or "")
    said.encode()
    assert TOKEN.lower() not in said.lower()
    return said


HOSTILE = {
    "x-sha of bytes": response(b"[]", headers=b"x-sha: \xff\xfe\xfd\r\n"),
    "location of bytes": response(b"", "307 Away", b"Location: http://\xff\xfe/\r\n"),
    "date of a huge year": response(
        b"", "429 Slow", b"Retry-After: Mon, 23 Nov 99999999999 12:00:00 GMT\r\n"
    ),
    "zone of a huge offset": response(
        b"", "429 Slow", b"Retry-After: Mon, 01 Jan 0001 00:00:00 +2359\r\n"
    ),
    "RateLimit of 5,000 digits": response(
        b"", "429 Slow", b'RateLimit: "a";r=' + HUGE + b";t=" + HUGE + b"\r\n"
    ),
    "no time left, for 5,000 digits": response(
        b"[[], []]", headers=b'RateLimit: "a";r=0;t=' + HUGE + b"\r\n"
    ),
    "Retry-After of 5,000 digits": response(b"", "503 No", b"Retry-After: " + HUGE + b"\r\n"),
    "error nested deeply": response(b'{"error": [' + DEEP + b"]}", "400 Bad"),
    "detail nested deeply": response(b'{"detail": ' + DEEP + b"}", "500 Bad"),
    "error nested too deeply": response(b'{"error": ' + DEEP + DEEP + b"}", "400 Bad"),
    "answer nested deeply": response(DEEP),
    "estimate of 5,000 digits": response(b'{"estimated_time": ' + HUGE + b"}", "503 No"),
    "score of 5,000 digits": response(b'[[{"label": "a", "score": ' + HUGE + b"}], []]"),
    "lone surrogate": response(b'{"error": "\\ud800"}', "400 Bad"),
    "escapes": response(b'{"error": "\x1b]52;c;aGk=\x07 \\u001b[2J \xe2\x80\xae"}', "400 Bad"),
    "C1 escapes": response("\x9b2J\x9d52;c;aGk=\x9c".encode(), "403 No"),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_answer_is_a_typed_error(raw_server, raw):
    raw_server.answer = lambda _: raw
    found = await asked(raw_server.url)
    assert isinstance(found, ClassifyError)
    assert_typed(found)


async def test_a_revision_that_is_no_text_can_be_stored(raw_server):
    raw_server.answer = lambda texts: right(texts).replace(
        b"\r\n\r\n", b"\r\nx-sha: a\xffb\r\n\r\n"
    )
    assert (await asked(raw_server.url)).revision == "a\ufffdb"


def test_an_error_that_is_an_object_is_said_as_json():
    """And not as Python would print it."""
    error = error_of(422, {}, b'{"detail": [{"loc": ["body", 0], "ok": null}]}')
    assert '{"loc":["body",0],"ok":null}' in str(error)


PLACES = {
    "body": lambda echo: response(b'{"error": "no: %s"}' % echo, "403 No"),
    "text": lambda echo: response(b"no: " + echo, "500 No"),
    # Where it is cut, no part of it is left over.
    "end of an excerpt": lambda echo: response(b"x" * 190 + echo, "500 No"),
    "status": lambda echo: b"HTTP/1.1 403 %s\r\nContent-Length: 0\r\n\r\n" % echo,
    "status line": lambda echo: b"HTTP/9.9 %s\r\n\r\n" % echo,
    "redirect": lambda echo: response(b"", "307 A", b"Location: https://" + echo + b".x/\r\n"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_an_echo_of_the_token_in_any_form_goes_no_further(raw_server, place, form):
    raw_server.answer = lambda _: place(form(TOKEN).encode())
    found = await asked(raw_server.url)
    said = assert_typed(found)
    for plain in FORMS.values():
        assert plain(TOKEN)[:12].lower() not in said.lower()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_a_label_or_a_revision_that_echoes_the_token_is_kept_without_it(raw_server, form):
    echo = form(TOKEN)
    answer = f'[[{{"label": "so {echo}", "score": 0.5}}], [{{"label": "so", "score": 0.5}}]]'
    raw_server.answer = lambda _: response(
        answer.encode(), headers=b"x-sha: %s\r\n" % echo.encode()
    )
    found = await asked(raw_server.url)
    assert found.outcomes == [(("so ***", 0.5),), (("so", 0.5),)]
    assert found.revision == "***"


async def test_headers_without_an_end_are_cut_off(raw_server):
    """Each of them is small, and all together would fill the memory."""
    most, sent = 256 << 20, 0

    def answer(_):
        nonlocal sent
        connection, lines = raw_server.connections[-1], b"X-Header: more and more\r\n" * 1000
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        try:
            while sent < most:
                connection.sendall(lines)
                sent += len(lines)
        except OSError:  # the client has hung up
            pass

    raw_server.answer = answer
    assert isinstance(await asked(raw_server.url), Retryable)
    assert sent < most / 8


@pytest.mark.parametrize("seen", [False, True], ids=["in the kernel", "in the client"])
async def test_a_connection_with_bytes_that_nobody_asked_for_is_not_used_again(raw_server, seen):
    """A second copy of an answer would be taken for the next one."""
    url = raw_server.url
    config = RunConfig(input="in.csv", output="out.parquet", endpoint=url, dialect="hf")
    async with Client(config, Target(url, "hf")) as client:
        for turn in range(3):
            texts = [f"text {turn}"]
            found = await client.ask(texts)
            assert found.outcomes == (await asked(url, texts)).outcomes
            raw_server.connections[-2].sendall(right(texts))
            for _ in range(10 * seen):
                await asyncio.sleep(0)  # the loop reads what has arrived
    assert len(raw_server.connections) == 6


async def test_a_connection_is_used_again(raw_server):
    """Or the test above would show nothing."""
    url = raw_server.url
    config = RunConfig(input="in.csv", output="out.parquet", endpoint=url, dialect="hf")
    async with Client(config, Target(url, "hf")) as client:
        for turn in range(20):
            await client.ask([f"text {turn}"])
    assert len(raw_server.connections) == 1


NOISE = st.binary(max_size=60)
VALUES = (
    st.binary(max_size=40)
    | st.sampled_from([HUGE, b"0", b"-1", b"1e400", b"\xff", b'"a";r=0;t=' + HUGE, TOKEN.encode()])
    | st.datetimes().map(lambda at: at.strftime("%a, %d %b %Y %H:%M:%S GMT").encode())
    | st.integers().map(lambda n: b"Mon, 23 Nov %d 12:00:00 +%d" % (n, abs(n)))
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            b"Retry-After RateLimit x-sha Location Content-Type Set-Cookie Content-Encoding "
            b"Transfer-Encoding Connection Link X".split()
        ),
        VALUES,
    ),
    max_size=4,
).map(lambda found: b"".join(b"%s: %s\r\n" % pair for pair in found))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda each: (
        st.lists(each, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "detail", "message", "label", "score", "estimated_time"]),
            each,
        )
    ),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())
DEPTHS = st.integers(1, 3000).map(lambda n: b'{"error": ' + b"[" * n + b"]" * n + b"}")
BODIES = JSON | DEPTHS | NOISE
STATUSES = st.sampled_from([200, 204, 301, 400, 401, 403, 404, 413, 422, 424, 429, 500, 503, 999])
RAW = (
    st.builds(
        lambda status, reason, headers, body: (
            b"HTTP/1.1 %d %s\r\n" % (status, reason)
            + headers
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        ),
        STATUSES,
        NOISE | st.just(b"OK"),
        HEADERS,
        BODIES,
    )
    | NOISE
    | st.builds(lambda noise, body: response(body) + noise, NOISE, BODIES)
)
FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
MANY = settings(FEW, max_examples=6_000)


def check_raw(server, raw):
    def answer(_):
        server.connections[-1].sendall(raw)

    server.answer = answer
    assert_typed(asyncio.run(asked(server.url)))


@FEW
@given(raw=RAW)
@example(raw=b"")
def test_whatever_bytes_come_the_error_is_typed(raw_server, raw):
    check_raw(raw_server, raw)


@pytest.mark.slow
@pytest.mark.timeout(600)
@MANY
@given(raw=RAW)
def test_whatever_bytes_come_the_error_is_typed_many_times(raw_server, raw):
    check_raw(raw_server, raw)


HINTS = st.dictionaries(
    st.sampled_from(["Retry-After", "RateLimit", "Location", "x-sha"]),
    VALUES.map(lambda value: value.decode("utf-8", "replace")) | st.text(max_size=40),
)


def check_error(status, headers, body):
    assert_typed(error_of(status, headers, body))


@FEW
@given(STATUSES.filter(lambda status: status != 200), HINTS, BODIES)
def test_whatever_an_answer_says_its_error_is_typed(status, headers, body):
    check_error(status, headers, re.sub(TOKEN.encode(), b"", body))


@pytest.mark.slow
@settings(MANY, max_examples=40_000)
@pytest.mark.timeout(600)
@given(STATUSES.filter(lambda status: status != 200), HINTS, BODIES)
def test_whatever_an_answer_says_its_error_is_typed_many_times(status, headers, body):
    check_error(status, headers, re.sub(TOKEN.encode(), b"", body))
