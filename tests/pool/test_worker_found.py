"""Servers of other makers are found by their address and their pages, before a text is sent."""

from __future__ import annotations

from contextlib import suppress

import pytest

from pipeline.client import Target, dialect_of, stated_dialect
from pipeline.client.dialects import REGISTRY
from pipeline.errors import EndpointRefused
from tests.other_servers import ASKED, NOT_FOUND, SERVERS, Server, fastapi


def test_each_dialect_of_another_maker_has_its_server():
    assert set(SERVERS) == set(REGISTRY) - {"hf", "single", "tei"}


@pytest.mark.parametrize("name", ASKED)
async def test_a_server_is_found_by_its_own_pages(kit, probe, name):
    """In three pages at most, and no text is sent to find out."""
    server, texts = SERVERS[name], kit.texts(100)
    async with kit.serve(server.script(kit), info=server.page(kit)) as running_server:
        async with kit.pool(running_server, dialect="auto", batch_size=32) as running:
            assert await running.label(texts) == kit.right(texts)
            assert running.client.dialect.name == name
            assert running.notices == []
        assert len(running_server.posts) == 4
        assert len(running_server.requests) - len(running_server.posts) <= 3
    async with kit.serve(server.script(kit), info=server.page(kit)) as running_server:
        found = await probe(running_server)
    assert (found.dialect, found.exit_code, found.canaries) == (name, 0, 0)


ADDRESSES = {
    "vllm": ["", "/", "/v1", "/v1/", "/classify"],
    "sglang": ["", "/v1", "/v1/classify"],
    "mlflow": ["", "/", "/invocations"],
    "infinity": ["", "/", "/classify"],
    "vertex": ["/v1/endpoints/1:predict"],
}


@pytest.mark.parametrize("dialect", ["auto", "stated"])
@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in ADDRESSES.items() for path in paths]
)
async def test_the_address_may_be_the_base_or_the_full_one(kit, name, path, dialect):
    """Its query, which may hold a key, is kept."""
    server, texts = SERVERS[name], kit.texts(9)
    if (name, dialect) == ("vertex", "auto"):
        return
    async with kit.serve(server.script(kit), info=server.page(kit)) as running_server:
        address = f"{running_server.url}{path}?code=x"
        stated = name if dialect == "stated" else "auto"
        async with kit.pool(address, dialect=stated) as running:
            assert await running.label(texts) == kit.right(texts)
        pages = [asked for asked in running_server.requests if asked.method == "GET"]
        assert bool(pages) == (dialect == "auto")


@pytest.mark.parametrize("prefix", ["/v1", "/team/models"])
@pytest.mark.parametrize("told", [True, False])
async def test_infinity_below_a_prefix(kit, prefix, told):
    """Its own (`--url-prefix`), which its pages name, or that of a gateway."""
    server = SERVERS["infinity"]
    pages = {prefix + path: page for path, page in server.pages.items()}
    if told:
        pages[prefix + "/openapi.json"] = fastapi(prefix + "/classify", prefix + "/models")
    below = Server(prefix + server.route, pages, server.answer)
    async with (
        kit.serve(below.script(kit), info=below.page(kit)) as running_server,
        kit.pool(running_server.url + prefix, dialect="auto") as running,
    ):
        assert await running.label(kit.texts(9)) == kit.right(kit.texts(9))
        assert running.client.dialect.name == "infinity"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://europe-west4-aiplatform.googleapis.com/v1/projects/p/endpoints/1:predict",
         "vertex"),
        ("https://1.europe-west4-2.prediction.vertexai.goog/v1/endpoints/1:predict", "vertex"),
        ("https://adb-1.2.azuredatabricks.net/serving-endpoints/e/invocations", "mlflow"),
        ("https://dbc-a.cloud.databricks.com/serving-endpoints/e/invocations", "mlflow"),
        ("https://cloud.databricks.com.example/serving-endpoints/e/invocations", None),
        ("https://abc.eu-west-1.aws.endpoints.huggingface.cloud", None),
    ],
)  # fmt: skip
def test_some_are_known_by_their_host(kit, address, name):
    """Nothing is asked to find out, and texts go to the address as it is."""
    config = kit.config(address, dialect="auto")
    found = Target.of(config, None).dialect
    assert found == (name or "auto")
    if name is not None:
        assert dialect_of(found, config).url(address) == address
        assert stated_dialect(kit.config(address, dialect="hf")) == "hf"


PAGES = {
    "the toolkit": lambda kit: lambda _: kit.Said(404, "Not Found"),
    "FastAPI": lambda kit: lambda path: (
        kit.Said(200, fastapi("/", "/predict", "/classify"))
        if path.endswith("/openapi.json") else kit.Said(404, NOT_FOUND)
    ),
    "FastAPI without its page": lambda kit: lambda _: kit.Said(404, NOT_FOUND),
    "FastAPI with nonsense": lambda kit: lambda path: (
        kit.Said(200, {"paths": 7}) if path.endswith("/openapi.json") else kit.Said(404, NOT_FOUND)
    ),
    "SageMaker": lambda kit: lambda _: kit.Said(404, {"code": 404, "type": "ResourceNotFound"}),
    "a page for everything": lambda kit: lambda _: kit.Said(200, "<html>"),
    "an object for everything": lambda kit: lambda _: kit.Said(200, {"data": [{"id": "m"}]}),
}  # fmt: skip


@pytest.mark.parametrize("path", ["", "/v1", "/invocations", "/classify", "/predict"])
@pytest.mark.parametrize("name", PAGES)
async def test_a_server_of_the_inference_api_sees_two_pages_at_most(kit, name, path):
    """And one where there is no hint at more, as before there were others."""
    texts = kit.texts(9)
    async with (
        kit.serve(info=PAGES[name](kit)) as server,
        kit.pool(server.url + path, dialect="auto") as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        pages = [asked.path for asked in server.requests if asked.method == "GET"]
        assert pages[0].endswith("/info")
        assert len(pages) <= 2
        if name == "the toolkit" and path in ("", "/predict"):
            assert len(pages) == 1


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("cut", ["openapi.json", "models", "version"])
async def test_garbled_pages_do_no_harm(kit, name, cut):
    """Nothing of a page is assumed; at the worst the dialect has to be stated."""
    server = SERVERS[name]
    for garbage in (b"\xff", b"[]", b"{}", b'{"paths": []}', b'{"data": {"id": 3}}',
                    b'{"data": [7, {"id": 7, "owned_by": [], "capabilities": 7}]}'):  # fmt: skip
        pages = {
            path: garbage if path.endswith(cut) else page for path, page in server.pages.items()
        }
        garbled = Server(server.route, pages, server.answer)
        async with kit.serve(garbled.script(kit), info=garbled.page(kit)) as running_server:
            with suppress(EndpointRefused):  # it is asked as if it were another
                async with kit.pool(running_server, dialect="auto") as running:
                    assert await running.label(kit.texts(4)) == kit.right(kit.texts(4))
