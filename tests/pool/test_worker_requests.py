"""What is sent (docs/protocol.md: "Request")."""

from __future__ import annotations

import asyncio

import pytest

PAIR = ("a question", "an answer")


async def sent(kit, items, *, speaks="hf", script=None, **settings):
    """The POSTs that the server got for the items."""
    async with (
        kit.serve(script, speaks=speaks, info={"max_client_batch_size": 32}) as server,
        kit.pool(server, **settings) as running,
    ):
        await running.label(items)
        return server.posts


HF = {"inputs": ["a", "b"], "parameters": {"top_k": 1}}


@pytest.mark.parametrize(
    ("items", "settings", "body"),
    [
        pytest.param(["a", "b"], {}, HF, id="list"),
        pytest.param(["a"], {}, {**HF, "inputs": ["a"]}, id="list-of-one"),
        pytest.param([""], {}, {**HF, "inputs": [""]}, id="empty-text"),
        pytest.param(["\0", "😀"], {}, {**HF, "inputs": ["\0", "😀"]}, id="nul-and-emoji"),
        pytest.param(
            [PAIR], {"text_pair": "p"},
            {**HF, "inputs": [{"text": PAIR[0], "text_pair": PAIR[1]}]}, id="pairs",
        ),
        pytest.param(["a", "b"], {"top_k": 3}, {**HF, "parameters": {"top_k": 3}}, id="top_k-3"),
        pytest.param(
            ["a", "b"], {"top_k": "all"}, {**HF, "parameters": {"top_k": None}}, id="top_k-null"
        ),
        *(
            pytest.param(
                ["a", "b"], {"function_to_apply": name},
                {**HF, "parameters": {"top_k": 1, "function_to_apply": name}}, id=name,
            )
            for name in ("sigmoid", "softmax", "none")
        ),
        pytest.param(
            ["a", "b"], {"truncate": True},
            {**HF, "parameters": {"top_k": 1, "truncation": True}}, id="truncate",
        ),
    ],
)  # fmt: skip
async def test_body_of_hf(kit, items, settings, body):
    """Always a list, always an explicit top_k."""
    (asked,) = await sent(kit, items, **settings)
    assert asked.body == body
    assert asked.path == "/"


@pytest.mark.parametrize(
    ("items", "settings", "body"),
    [
        pytest.param(
            ["a", "b"], {}, {"inputs": [["a"], ["b"]], "truncate": False, "raw_scores": False},
            id="batch",
        ),
        pytest.param(
            [PAIR], {"text_pair": "p"},
            {"inputs": [list(PAIR)], "truncate": False, "raw_scores": False}, id="pair",
        ),
        pytest.param(
            ["a"], {"truncate": True},
            {"inputs": [["a"]], "truncate": True, "raw_scores": False}, id="truncate",
        ),
        pytest.param(
            ["a"], {"function_to_apply": "none"},
            {"inputs": [["a"]], "truncate": False, "raw_scores": True}, id="raw-scores",
        ),
    ],
)  # fmt: skip
async def test_body_of_tei(kit, items, settings, body):
    """Each text in a list of its own, no parameters but those at the root."""
    (asked,) = await sent(kit, items, speaks="tei", dialect="tei", **settings)
    assert asked.body == body
    assert asked.path == "/predict"


@pytest.mark.parametrize("path", ["", "/", "/predict", "/predict/"])
async def test_address_of_tei(kit, path):
    info = {"max_client_batch_size": 32}
    async with (
        kit.serve(speaks="tei", info=info) as server,
        kit.pool(server.url + path, dialect="tei") as running,
    ):
        assert await running.label(["a"]) == kit.right(["a"])
        assert [asked.path for asked in server.requests] == ["/predict"]


@pytest.mark.parametrize(
    ("items", "settings", "inputs"),
    [
        (["a"], {}, "a"),
        ([PAIR], {"text_pair": "p"}, {"text": PAIR[0], "text_pair": PAIR[1]}),
    ],
)
async def test_body_of_single(kit, items, settings, inputs):
    """One text in no list, with an explicit top_k all the same."""
    (asked,) = await sent(kit, items, speaks="single", dialect="single", **settings)
    assert asked.body == {"inputs": inputs, "parameters": {"top_k": 1}}


async def test_headers(kit):
    """Exactly application/json: a charset beside it gets a 400 from the toolkit."""
    (asked,) = await sent(kit, ["a"])
    assert asked.headers["Content-Type"] == "application/json"
    for name in ("Authorization", "X-HF-Bill-To", "x-use-cache", "x-wait-for-model"):
        assert name not in asked.headers


@pytest.mark.parametrize("dialect", ["hf", "single", "tei"])
async def test_headers_that_settings_ask_for(kit, dialect):
    (asked,) = await sent(
        kit, ["a"], speaks=dialect, dialect=dialect, bill_to="my-org", server_cache=False
    )
    assert asked.headers["X-HF-Bill-To"] == "my-org"
    assert asked.headers["x-use-cache"] == "false"
    assert asked.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("status", "body", "waits"),
    [
        pytest.param(503, {"error": "Model x is currently loading"}, True, id="503-loading"),
        pytest.param(503, {"error": "m", "estimated_time": 20.0}, True, id="503-estimated"),
        pytest.param(500, {"error": "boom"}, False, id="500"),
        pytest.param(429, {"error": "Rate limit reached"}, False, id="429"),
    ],
)
async def test_wait_for_model_is_sent_only_after_a_503(kit, status, body, waits):
    """Sent from the second try of a loading model on, and not after it is loaded."""

    def script(asked):
        return kit.Said(status, body) if asked.number == 1 else None

    posts = await sent(kit, kit.texts(12), script=script, concurrency=1)
    assert [asked.headers.get("x-wait-for-model") for asked in posts] == [
        None, None, "true" if waits else None, None,
    ]  # fmt: skip


async def test_no_cookie_is_kept(kit):
    """What one answer sets must not change the next request."""
    posts = await sent(
        kit, kit.texts(8), script=lambda _: kit.Said(headers={"Set-Cookie": "a=b"}), concurrency=1
    )
    assert len(posts) == 2
    assert "Cookie" not in posts[1].headers


async def test_batches_run_on_over_the_borders_of_calls(kit):
    """The number of requests is the ceiling of inputs over batch size, however they are cut."""
    texts = kit.texts(60)
    async with kit.serve() as server, kit.pool(server, batch_size=8) as running:
        async with asyncio.TaskGroup() as group:
            for at in range(0, 60, 5):
                group.create_task(running.ask(texts[at : at + 5]))
            await asyncio.sleep(0.5)
            running.pool.demand.end()
        assert len(server.requests) == 8
        assert sorted(server.items) == sorted(texts)
