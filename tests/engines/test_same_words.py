"""What a server sends means the same through a worker: outcomes, and errors with their words."""

from __future__ import annotations

import pytest

from pipeline.client import Client, Target
from pipeline.client.wire import Wire
from pipeline.config import RunConfig
from pipeline.engines.crew import Crew
from pipeline.engines.worker import Worker
from pipeline.errors import ClassifyError, Retryable
from pipeline.system.threads import Stop
from tests.client.conftest import raw_server, response  # noqa: F401
from tests.client.test_foreign_answers import HOSTILE, TOKEN

pytestmark = pytest.mark.fault(29)
HINTS = {
    "revision and quota": response(
        b'[[{"label":"a","score":0.5}],[{"label":"b","score":0.5}]]',
        headers=b'X-SHA: abc\r\nRateLimit: "x";r=0;t=7\r\n',
    ),
    "pause": response(b'{"error":"slow"}', "429 Slow", b"retry-after: 3\r\n"),
    "redirect": response(b"", "308 Moved", b"LOCATION: https://elsewhere.example/x\r\n"),
    "status of a container": response(
        b"{}", "424 No", b"ms-azureml-model-error-statuscode: 413\r\n"
    ),
    "the token": response(f'{{"error":"you said {TOKEN}"}}'.encode(), "500 No"),
    "half a character": response(b'{"error":"\\ud83d"}', "400 No"),
    "nothing": b"",
}


class Here:
    """Workers in this process: all but the process is real."""

    async def employ(self, worker):
        remote = Worker(lambda frames: worker.received(b"".join(frames)))
        worker.connect(lambda frames: remote.take(b"".join(frames)))
        await worker.leaves.wait()
        await remote.close()
        return ""

    async def close(self):
        pass


async def asked(config, target, wire):
    async with Client(config, target, wire) as client:
        try:
            return await client.ask(["a", "b"])
        except ClassifyError as error:
            return error


def told(found):
    """All there is to an outcome or an error; ports differ from one connection to the next."""
    if isinstance(found, ClassifyError):
        return type(found), {key: str(value) for key, value in vars(found).items()}
    return found


@pytest.mark.parametrize("name", [*HINTS, *HOSTILE])
async def test_every_answer_means_the_same(raw_server, name):  # noqa: F811
    answer = {**HINTS, **HOSTILE}[name]
    raw_server.answer = lambda _: answer or None
    config = RunConfig(
        input="in.csv", output="out.parquet", endpoint=raw_server.url, dialect="hf", timeout_s=5,
        engine="processes",
    )  # fmt: skip
    target = Target(raw_server.url, "hf", TOKEN)
    here = await asked(config, target, Wire)
    async with Crew(config, Here(), lambda _: None, Stop()) as crew:
        there = await asked(config, target, crew.wire)
    assert told(there) == told(here)
    assert TOKEN not in repr(told(there))


@pytest.mark.parametrize("host", ["nowhere.invalid:80", "127.0.0.1:1"])
async def test_so_does_a_server_that_is_not_there(host):
    url = f"http://{host}/"
    config = RunConfig(
        input="in.csv", output="out.parquet", endpoint=url, dialect="hf", engine="processes"
    )
    here = await asked(config, Target(url, "hf"), Wire)
    async with Crew(config, Here(), lambda _: None, Stop()) as crew:
        there = await asked(config, Target(url, "hf"), crew.wire)
    assert isinstance(there, Retryable)
    assert there.unreachable is here.unreachable is not None
    assert told(there) == told(here)
