"""What each status means (docs/protocol.md: "Errors"; faults 12 and 15)."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.client.statuses import binding_hint_s, error_of
from pipeline.errors import Cause, EndpointRefused, Retryable, RowsRejected

pytestmark = pytest.mark.fault(15)

TOO_LONG = (
    "The size of tensor a (502) must match the size of tensor b (64) at non-singleton dimension 1"
)
HTML = b"<html>\n <body>\n  502 Bad Gateway</body></html>"

# status, body, error, cause, wait_s, words that the message has
ROWS = [
    pytest.param(400, {"error": TOO_LONG}, RowsRejected, None, TOO_LONG, id="400 too long"),
    pytest.param(400, {"error": "CUDA out of memory"}, RowsRejected, None, "CUDA", id="400 cuda"),
    pytest.param(400, {"error": ["a", "b"]}, RowsRejected, None, "a; b", id="400 list"),
    pytest.param(400, {"detail": "bad"}, RowsRejected, None, "bad", id="400 detail"),
    pytest.param(
        400, {"detail": [{"loc": ["body"], "msg": "field required"}]}, RowsRejected, None,
        "field required", id="400 detail list of objects",
    ),
    pytest.param(400, b"bad request", RowsRejected, None, "bad request", id="400 text"),
    pytest.param(400, b"", RowsRejected, None, "no message", id="400 empty"),
    pytest.param(400, {"error": None}, RowsRejected, None, "400", id="400 null"),
    pytest.param(
        400, {"error": "Authorization header is correct, but the token seems invalid"},
        EndpointRefused, None, "token", id="400 token",
    ),
    pytest.param(
        400, {"error": "Model not supported by provider hf-inference"},
        EndpointRefused, None, "model is served", id="400 provider",
    ),
    pytest.param(401, b"Unauthorized", EndpointRefused, None, "HF_TOKEN", id="401 text"),
    pytest.param(401, {"error": "no such token"}, EndpointRefused, None, "HF_TOKEN", id="401"),
    pytest.param(402, {"error": "used up"}, EndpointRefused, None, "credits", id="402"),
    pytest.param(403, b"Forbidden", EndpointRefused, None, "permission", id="403 text"),
    pytest.param(404, b"Not Found", EndpointRefused, None, "model id", id="404 text"),
    pytest.param(
        410, {"error": "no longer supported"}, EndpointRefused, None, '`endpoint="hf"`', id="410"
    ),
    pytest.param(413, {"error": "too large"}, RowsRejected, None, "413", id="413"),
    pytest.param(422, b"invalid type: map", RowsRejected, None, "invalid type", id="422 text"),
    pytest.param(422, {"error": "`inputs` empty"}, RowsRejected, None, "empty", id="422"),
    pytest.param(424, {"error": "backend"}, Retryable, Cause.SERVER_ERROR, "backend", id="424"),
    pytest.param(
        424,
        {"error": "Backend error: Model is not a classifier model", "error_type": "Backend"},
        EndpointRefused, None, "text classification", id="424 no classifier",
    ),
    pytest.param(
        429, {"error": "Rate limit reached"}, Retryable, Cause.THROTTLED, "Rate limit", id="429"
    ),
    pytest.param(
        429, {"error": "Model is overloaded", "error_type": "Overloaded"}, Retryable,
        Cause.OVERLOADED, "overloaded", id="429 overloaded",
    ),
    pytest.param(500, HTML, Retryable, Cause.SERVER_ERROR, "502 Bad Gateway", id="500 html"),
    pytest.param(500, {"error": "boom"}, Retryable, Cause.SERVER_ERROR, "boom", id="500"),
    pytest.param(502, HTML, Retryable, Cause.SERVER_ERROR, "502 <html> <body>", id="502 html"),
    pytest.param(504, HTML, Retryable, Cause.SERVER_ERROR, "504", id="504 html"),
    pytest.param(
        503, {"error": "Model X is currently loading", "estimated_time": 20.0}, Retryable,
        Cause.LOADING, "loading", id="503 loading",
    ),
    pytest.param(
        503, {"error": "Model X is currently loading"}, Retryable, Cause.LOADING, "loading",
        id="503 loading, no estimate",
    ),
    pytest.param(503, {"error": "busy"}, Retryable, Cause.OVERLOADED, "busy", id="503 overload"),
    pytest.param(503, HTML, Retryable, Cause.OVERLOADED, "503", id="503 html"),
    pytest.param(204, b"", Retryable, Cause.UNREADABLE, "204", id="204"),
    pytest.param(408, b"", Retryable, Cause.SERVER_ERROR, "408", id="408"),
    pytest.param(307, b"", EndpointRefused, None, "redirects", id="307"),
    pytest.param(405, b"", EndpointRefused, None, "405", id="405"),
    pytest.param(418, b"", EndpointRefused, None, "418", id="418"),
]  # fmt: skip


def as_bytes(body):
    return body if isinstance(body, bytes) else orjson.dumps(body)


@pytest.mark.parametrize(("status", "body", "kind", "cause", "words"), ROWS)
def test_the_error_of_a_status(status, body, kind, cause, words):
    """The status is read first, the body guardedly; every message is one line."""
    error = error_of(status, {}, as_bytes(body))
    assert type(error) is kind
    assert error.status == status
    assert getattr(error, "cause", None) is cause
    assert words in str(error)
    assert str(status) in str(error)
    assert "\n" not in str(error)
    if kind is EndpointRefused:
        assert error.exit_code == 4


@pytest.mark.parametrize(("status", "body", "kind", "cause", "words"), ROWS)
async def test_what_the_pool_makes_of_a_status(kit, status, body, kind, cause, words):
    """Once in the middle of a run: retried, or its batch is split; all rows get a label.

    Also a refusal of the account: what was answered before is asked once more, and answered.
    """

    def script(asked):
        return kit.Said(status, as_bytes(body)) if asked.number == 1 else None

    texts = kit.texts(12)
    async with kit.serve(script) as server:
        async with kit.pool(server, concurrency=1) as running:
            assert await running.label(texts) == kit.right(texts)
        after = [asked.items for asked in server.requests[2:]]
        if kind is EndpointRefused:
            assert after.pop(0) == texts[:1]
        assert after[0] == (texts[4:8] if kind is Retryable else texts[4:6])


NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
HINTS = [
    pytest.param({}, None, id="absent"),
    pytest.param({"Retry-After": "7"}, 7.0, id="seconds"),
    pytest.param({"Retry-After": "0.5"}, 0.5, id="fraction"),
    pytest.param({"Retry-After": " 7 "}, 7.0, id="blanks"),
    pytest.param({"Retry-After": "0"}, 0.0, id="zero"),
    pytest.param({"Retry-After": "1000000000"}, 1e9, id="10^9"),
    pytest.param({"Retry-After": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0, id="date"),
    pytest.param({"Retry-After": "Mon, 23 Nov 2026 12:00:30"}, 30.0, id="date without zone"),
    pytest.param({"Retry-After": "Mon, 23 Nov 2026 13:00:30 +0100"}, 30.0, id="date with zone"),
    pytest.param({"Retry-After": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0, id="date in the past"),
    pytest.param({"Retry-After": "-5"}, None, id="negative"),
    pytest.param({"Retry-After": "soon"}, None, id="garbage"),
    pytest.param({"Retry-After": ""}, None, id="empty"),
    pytest.param({"Retry-After": "nan"}, None, id="nan"),
    pytest.param({"Retry-After": "inf"}, None, id="inf"),
    pytest.param({"Retry-After": "1e400"}, None, id="beyond floats"),
    pytest.param({"Retry-After": "Mon, 99 Nov 2026 12:00:30 GMT"}, None, id="no such date"),
    pytest.param({"Retry-After": "0x10"}, None, id="hexadecimal"),
    pytest.param({"RateLimit": '"api";r=0;t=3'}, 3.0, id="RateLimit r=0"),
    pytest.param({"RateLimit": '"api";r=5;t=3'}, None, id="RateLimit r=5"),
    pytest.param({"RateLimit": '"api";r=0'}, None, id="RateLimit without t"),
    pytest.param({"RateLimit": '"api";t=3'}, None, id="RateLimit without r"),
    pytest.param({"RateLimit": '"api"; r=0; t=3'}, 3.0, id="RateLimit with blanks"),
    pytest.param({"RateLimit": '"api";r=0;t=-3'}, None, id="RateLimit negative"),
    pytest.param({"RateLimit": '"api";r=01;t=3'}, None, id="RateLimit r=01"),
    pytest.param({"RateLimit": "nonsense"}, None, id="RateLimit garbage"),
    pytest.param({"Retry-After": "7", "RateLimit": '"a";r=0;t=3'}, 7.0, id="both"),
    pytest.param(
        {"Retry-After": "soon", "RateLimit": '"a";r=0;t=3'}, 3.0, id="garbage beside RateLimit"
    ),
    pytest.param(
        {"Retry-After": "-5", "RateLimit": '"a";r=0;t=3'}, 3.0, id="negative beside RateLimit"
    ),
]


@pytest.mark.parametrize(("headers", "wait_s"), HINTS)
@pytest.mark.parametrize("status", [429, 503])
def test_the_hint_of_an_answer(status, headers, wait_s):
    """Seconds, a date, or a RateLimit with nothing left; negative values and garbage are none."""
    assert error_of(status, headers, b"", now=NOW).wait_s == wait_s


@pytest.mark.parametrize(("headers", "wait_s"), HINTS)
def test_only_a_rate_limit_binds_after_success(headers, wait_s):
    expected = (
        wait_s
        if "Retry-After" not in headers
        else binding_hint_s({"RateLimit": headers.get("RateLimit", "")})
    )
    assert binding_hint_s(headers) == expected


@pytest.mark.parametrize(
    ("estimated", "wait_s"),
    [
        (20.0, 20.0), (300.9, 300.9), (1809.2, 1809.2), (0, 0.0), (20, 20.0), ("20", 20.0),
        (-1, None), ("soon", None), (True, None), ([], None), ({}, None),
    ],
)  # fmt: skip
def test_the_estimate_of_a_loading_model(estimated, wait_s):
    body = as_bytes({"error": "Model X is currently loading", "estimated_time": estimated})
    failure = error_of(503, {}, body)
    assert failure.cause is Cause.LOADING
    assert failure.wait_s == wait_s


@settings(max_examples=300, deadline=None)
@given(
    status=st.integers(201, 599),
    after=st.none() | st.text(max_size=30) | st.sampled_from(["Mon, 23 Nov 2026 12:00 +99999999"]),
    limit=st.none() | st.text(max_size=30),
    body=st.binary(max_size=40)
    | st.builds(
        as_bytes,
        st.dictionaries(
            st.sampled_from(["error", "detail", "estimated_time", "error_type"]),
            st.none() | st.text("ab\n", max_size=9) | st.floats() | st.lists(st.booleans()),
        ),
    ),
)
def test_whatever_comes_is_an_error_of_the_tree(status, after, limit, body):
    headers = {"Retry-After": after, "RateLimit": limit}
    error = error_of(status, {k: v for k, v in headers.items() if v is not None}, body)
    assert isinstance(error, Retryable | RowsRejected | EndpointRefused)
    wait_s = getattr(error, "wait_s", None)
    assert wait_s is None or 0 <= wait_s < float("inf")


@pytest.mark.parametrize("status", [401, 402, 403, 404, 410])
@pytest.mark.parametrize("concurrency", [1, 4, 32])
@pytest.mark.parametrize("dialect", ["hf", "auto", "single", "tei"])
async def test_a_refusal_stops_at_once(kit, status, concurrency, dialect):
    """Row 15: exit 4, after one request for labels."""
    async with kit.serve(lambda _: kit.Said(status, {"error": "no"})) as server:
        with pytest.raises(EndpointRefused) as refused:
            async with kit.pool(
                server, concurrency=concurrency, dialect=dialect, token=kit.TOKEN
            ) as running:
                await running.label(kit.texts(500))
        assert len(server.posts) == 1
    assert refused.value.exit_code == 4
    assert refused.value.status == status
    assert kit.TOKEN not in repr(running.events) + str(refused.value)


@pytest.mark.parametrize("status", [401, 402, 403, 404, 410])
async def test_a_refusal_in_the_middle_keeps_what_was_answered(kit, status):
    """Row 15: the requests that are refused are no more than were in flight."""
    refuse = kit.Said(status, b"no")
    async with kit.serve(lambda asked: refuse if asked.number >= 20 else None) as server:
        with pytest.raises(EndpointRefused):
            async with kit.pool(server, concurrency=8) as running:
                await running.label(kit.texts(400))
        assert server.statuses.count(status) <= 8 + 1  # and what was answered before, once
        assert len(running.saved) == 4 * server.statuses.count(200) == 80
