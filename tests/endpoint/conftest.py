"""Real servers on 127.0.0.1 for the tests of the endpoint."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import aiohttp
import pytest

from pipeline.endpoint.faults import FaultOptions
from pipeline.endpoint.models import load_model
from pipeline.endpoint.server import Endpoint, listening


@dataclass
class Served:
    """A listening endpoint and a client's session."""

    url: str
    session: aiohttp.ClientSession

    async def ask(self, body: Any, path: str = "/", **request: Any) -> tuple[int, Any]:
        """POST a JSON body (or bytes as they are) and give status and parsed answer."""
        body = {"data": body} if isinstance(body, bytes | BytesIO) else {"json": body}
        async with self.session.post(self.url + path, **body, **request) as response:
            return response.status, await response.json()

    async def stats(self) -> dict[str, Any]:
        async with self.session.get(self.url + "/stats") as response:
            return await response.json()


@pytest.fixture(scope="session")
def sentiment():
    return load_model("sentiment")


@pytest.fixture(scope="session")
def language():
    return load_model("language")


@pytest.fixture
async def serving(sentiment, language):
    """Start endpoints with the options of Endpoint and FaultOptions; all end with the test."""
    async with AsyncExitStack() as stack:

        async def start(*, token=None, clock=None, **faults) -> Served:
            options = {} if clock is None else {"clock": clock}
            endpoint = Endpoint(
                [sentiment, language], faults=FaultOptions(**faults), token=token, **options
            )
            app = endpoint.application()
            url = await stack.enter_async_context(listening(app, host="127.0.0.1", port=0))
            return Served(url, await stack.enter_async_context(aiohttp.ClientSession()))

        yield start
