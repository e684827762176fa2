"""The HTTP application answers as the serverless API: routes, headers, errors."""

from __future__ import annotations

import asyncio
from io import BytesIO

import pytest

from pipeline.endpoint.models import ModelError
from pipeline.endpoint.server import MAX_BODY_BYTES, Endpoint, listening
from pipeline.errors import SettingsError

BODY = {"inputs": ["I love it"], "parameters": {"top_k": 1}}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/", "positive"),
        ("/predict", "positive"),
        ("/models/sentiment", "positive"),
        ("/models/language", "en"),
    ],
)
async def test_routes(serving, path, label):
    served = await serving()
    status, [[best]] = await served.ask(BODY, path)
    assert (status, best["label"]) == (200, label)


@pytest.mark.parametrize("name", ["nope", "organisation/model", "sentiment/x"])
async def test_unknown_model(serving, name):
    served = await serving()
    answer = await served.ask(BODY, f"/models/{name}")
    assert answer == (404, {"error": f"Model {name} does not exist"})


async def test_headers_tell_revision_and_compute(serving, sentiment):
    served = await serving()
    async with served.session.post(served.url, json=BODY) as response:
        assert response.headers["x-sha"] == sentiment.sha
        assert response.headers["x-compute-type"] == "cpu"
        assert float(response.headers["x-compute-time"]) > 0
        assert response.content_type == "application/json"
        first = response.headers["x-request-id"]
    async with served.session.post(served.url, data=b"{") as response:
        assert response.headers["x-request-id"] not in ("", first)


@pytest.mark.parametrize("body", [b"{", b"{}", rb'{"inputs": "\ud800"}', b'{"inputs": [["a"]]}'])
async def test_bad_request_is_a_400_with_an_error(serving, body):
    served = await serving()
    status, answer = await served.ask(body)
    assert status == 400
    assert set(answer) == {"error"}
    assert answer["error"]


async def test_body_up_to_two_megabytes(serving):
    """The limit itself passes, one byte more is a 413 in JSON."""
    served = await serving()
    fits = b'{"inputs": ""}'.ljust(MAX_BODY_BYTES)
    assert (await served.ask(BytesIO(fits)))[0] == 200
    status, answer = await served.ask(BytesIO(fits + b" "))
    assert status == 413
    assert "2000000 bytes" in answer["error"]
    assert (await served.ask(BODY))[0] == 200


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "secret", "Bearer secret ", "Bearer: secret"]
)
async def test_token_is_demanded(serving, header):
    served = await serving(token="secret")
    headers = {} if header is None else {"Authorization": header}
    if header == "Bearer secret ":
        # White space around a header's value is not part of it.
        assert (await served.ask(BODY, headers=headers))[0] == 200
    else:
        assert await served.ask(BODY, headers=headers) == (
            401,
            {"error": "Invalid credentials in Authorization header"},
        )


async def test_token_is_accepted(serving):
    served = await serving(token="secret")
    assert (await served.ask(BODY, headers={"Authorization": "Bearer secret"}))[0] == 200


async def test_any_token_will_do_where_none_is_demanded(serving):
    served = await serving()
    assert (await served.ask(BODY, headers={"Authorization": "Bearer any"}))[0] == 200


async def test_stats_count_requests_texts_and_statuses(serving):
    served = await serving(poison="venom")
    await served.ask({"inputs": ["a", "b", "c"]})
    await served.ask({"inputs": "d"})
    await served.ask({"inputs": ["a", "venom"]})
    await served.ask(b"{")
    await served.ask(BODY, "/models/nope")
    assert await served.stats() == {
        "requests": 5,
        "texts": 4,
        "statuses": {"200": 2, "400": 2, "404": 1},
        "faults": {},
    }


async def test_health(serving):
    served = await serving()
    async with served.session.get(served.url + "/health") as response:
        assert response.status == 200
        assert await response.json() == {"status": "ok", "models": ["sentiment", "language"]}
    assert (await served.stats())["requests"] == 0


async def test_error_of_the_model_is_a_400_with_its_message(serving, sentiment, monkeypatch):
    def refuse(*_):
        raise ModelError("The size of tensor a (502) must match")

    served = await serving()
    monkeypatch.setattr(sentiment, "best", refuse)
    assert await served.ask(BODY) == (400, {"error": "The size of tensor a (502) must match"})
    assert (await served.stats())["texts"] == 0


async def test_two_models_with_one_name_are_refused(sentiment):
    with pytest.raises(SettingsError, match="the same name, which is their address: sentiment, "):
        Endpoint([sentiment, sentiment])


async def test_loop_stays_free_while_the_model_runs(serving):
    """A long request does not keep the server from answering others."""
    served = await serving()
    long = asyncio.create_task(served.ask({"inputs": ["I love it so much"] * 20_000}))
    while (await served.stats())["requests"] == 0:
        pass
    async with served.session.get(served.url + "/health") as response:
        assert response.status == 200
    assert not long.done()
    status, [labels] = await long
    assert (status, len(labels)) == (200, 20_000)


async def test_many_requests_at_once_each_get_their_own_answer(serving):
    served = await serving()
    texts = ["I love it" if n % 3 else "I hate it" for n in range(300)]
    answers = await asyncio.gather(
        *(served.ask({"inputs": [text], "parameters": {"top_k": 1}}) for text in texts)
    )
    expected = ["positive" if n % 3 else "negative" for n in range(300)]
    assert [best["label"] for _, [[best]] in answers] == expected


async def test_taken_port_is_a_settings_error(serving):
    from aiohttp import web

    served = await serving()
    port = int(served.url.rpartition(":")[2])
    with pytest.raises(SettingsError, match=rf"127\.0\.0\.1 port {port}.*Choose another port"):
        async with listening(web.Application(), host="127.0.0.1", port=port):
            pytest.fail("two servers on one port")
