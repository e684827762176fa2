"""Whose fault it is: servers that answer with the real bodies of servers whose statuses lie.

Run and probe ask the same servers, and come to the same end.
"""

from __future__ import annotations

import asyncio
import math

import pytest

from pipeline.client import Client, Target
from pipeline.errors import Cause, ClassifyError, EndpointRefused, StoppedEarly
from pipeline.events import OneTextARequest
from pipeline.outcomes import RowError

FIREWALL = (
    "<html><head><title>403 Forbidden</title></head><body><center><h1>403 Forbidden</h1></center>"
    "<hr><center>awselb/2.0</center></body></html>"
)
CUDA = {
    "error": "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously "
    "reported at some other API call, so the stacktrace below might be incorrect."
}
PAUSED = {"error": "Bad Request: Invalid state"}
DEPRECATED = {
    "error": "The requested model is deprecated and no longer supported by provider hf-inference."
}
TOO_LONG = "The size of tensor a (502) must match the size of tensor b (64)"


class Broken:
    """Answers `good` requests with labels, and everything after them with `said`."""

    def __init__(self, said, good):
        self.said, self.good = said, good

    def __call__(self, asked):
        return None if asked.number < self.good else self.said


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [(PAUSED, 4, "Resume the endpoint"), (CUDA, 75, "CUDA error: device-side assert")],
    ids=["paused", "CUDA"],
)
@pytest.mark.parametrize("good", [3, 40])
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("concurrency", [1, 16])
async def test_a_server_that_refuses_everything_blames_no_row(
    kit, body, code, words, good, batch_size, concurrency
):
    """After it had answered: no row gets an error, few requests are lost, and it goes on later."""
    texts = kit.texts(2000 if batch_size > 1 else 400)
    script = Broken(kit.Said(400, body), good)
    async with kit.serve(script) as server:
        settings = {"batch_size": batch_size, "concurrency": concurrency}
        with pytest.raises((EndpointRefused, StoppedEarly), match=words) as ended:
            async with kit.pool(server, **settings) as running:
                await running.label(texts)
        assert ended.value.exit_code == code
        assert not [o for o, _ in running.saved.values() if isinstance(o, RowError)]
        assert len(running.saved) == good * batch_size
        explained = max(5, concurrency - 1 + batch_size.bit_length())
        assert server.statuses.count(400) <= explained + concurrency + 2
        script.good = math.inf
        async with kit.pool(server, **settings) as running:
            assert await running.label(texts) == kit.right(texts)


@pytest.mark.parametrize(
    ("status", "body"),
    [(403, FIREWALL), (401, FIREWALL), (403, {"error": "Forbidden"}), (406, "blocked")],
)
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("at", [60, 199])
async def test_a_text_that_a_firewall_refuses_carries_the_error_alone(
    kit, status, body, concurrency, at
):
    texts = kit.texts(200)

    def script(asked):
        return kit.Said(status, body) if texts[at] in asked.items else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, batch_size=16, concurrency=concurrency) as running,
    ):
        outcomes = await running.label(texts)
        assert isinstance(outcomes.pop(at), RowError)
        assert outcomes == kit.right(texts[:at] + texts[at + 1 :])
        # Each level of the split with what was answered before, and the row alone, twice.
        assert len(server.requests) <= math.ceil(200 / 16) + 3 * math.log2(16) + 3


@pytest.mark.parametrize("dialect", ["auto", "hf", "single"])
@pytest.mark.parametrize("at", [0, 3])
async def test_a_firewall_in_the_first_batch_ends_no_run(kit, dialect, at):
    """By its page it is told from a refusal of the account, and a plain text decides."""
    texts = kit.texts(40)

    def script(asked):
        return kit.Said(403, FIREWALL) if texts[at] in asked.items else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, dialect=dialect, batch_size=8) as running,
    ):
        outcomes = await running.label(texts)
        assert isinstance(outcomes.pop(at), RowError)
        assert outcomes == kit.right(texts[:at] + texts[at + 1 :])


@pytest.mark.parametrize("status", [401, 404])
async def test_a_refusal_that_passes_by_condemns_no_row(kit, status):
    """Of half the requests in flight, one text each."""
    texts = kit.texts(400)

    def script(asked):
        return kit.Said(status, "default backend") if 50 <= asked.number < 58 else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, dialect="single", concurrency=16) as running,
    ):
        assert await running.label(texts) == kit.right(texts)


@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("left", [2, 16])
async def test_a_server_that_fails_at_the_very_end_blames_no_row(kit, batch_size, left):
    """Nothing is on its way that could vouch for the last refusals."""
    texts = kit.texts(64 + left)
    script = Broken(kit.Said(400, CUDA), 64 // batch_size)
    async with kit.serve(script) as server:
        with pytest.raises(StoppedEarly, match="CUDA"):
            async with kit.pool(server, batch_size=batch_size, concurrency=1) as running:
                await running.label(texts)
    assert len(running.saved) == 64


@pytest.mark.parametrize("status", [424, 500])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_texts_that_the_server_fails_on_cost_little(kit, status, concurrency):
    """Ten in two thousand: no gate closes for them, and they cost some seconds at most."""
    texts = kit.texts(2000)
    poison = set(texts[50::200])

    def script(asked):
        failed = kit.Said(status, {"error": "Internal Server Error"})
        return failed if poison & set(asked.items) else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, batch_size=32, concurrency=concurrency) as running,
    ):
        began = kit.now()
        outcomes = await running.label(texts)
        bad = {text for text, o in zip(texts, outcomes, strict=True) if isinstance(o, RowError)}
        assert bad == poison
        # Of each: twice whole, once a level and half, six times alone; each once with another text.
        alone = 2 * (2 + 2 * math.log2(32) + 6)
        assert len(server.requests) <= 63 + 10 * alone
        assert kit.now() - began < 60 / concurrency
        assert running.waits == []


async def test_azure_names_the_status_of_the_container(kit):
    """A 424 that stands for a 400 is split at once, as that is."""
    texts = kit.texts(64)
    headers = {"ms-azureml-model-error-statuscode": "400"}

    def script(asked):
        return kit.Said(424, {"error": TOO_LONG}, headers) if texts[9] in asked.items else None

    async with kit.serve(script) as server, kit.pool(server, batch_size=32) as running:
        outcomes = await running.label(texts)
        assert outcomes[9] == RowError(f"424 {TOO_LONG}")
        assert running.told[-1].retries == 0
        assert len(server.requests) <= 2 + 2 * math.log2(32)


@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_refusal_that_passes_by_does_not_end_batching(kit, at):
    """One 400 while the endpoint is met (the first request is for /info): batches go on."""
    texts = kit.texts(400)

    def script(asked):
        return kit.Said(400, {"error": "Bad Request"}) if asked.number == at else None

    async with (
        kit.serve(script) as server,
        kit.pool(server, dialect="auto", batch_size=16) as running,
    ):
        assert await running.label(texts) == kit.right(texts)
        assert len(server.posts) <= 400 / 16 + 12
        assert not any(isinstance(event, OneTextARequest) for event in running.events)


def kserve(kit):
    """Its own protocol: predictions for lists, an error for one text."""

    def script(asked):
        if isinstance(asked.body["inputs"], list):
            return kit.Said(200, {"predictions": [1] * len(asked.items)})
        return kit.Said(500, {"error": "TypeError : string indices must be integers"})

    return script


def loading(kit, said, until=5.0):
    """Loads for some seconds, then answers."""
    return lambda asked: said if asked.at < 1000 + until else None


SERVERS = {
    "paused": (lambda kit: lambda _: kit.Said(400, PAUSED), 4),
    "CUDA": (lambda kit: lambda _: kit.Said(400, CUDA), 4),
    "wrong task": (lambda kit: lambda _: kit.Said(422, {"error": "no such task"}), 4),
    "deprecated": (lambda kit: lambda _: kit.Said(410, DEPRECATED), 4),
    "firewall": (lambda kit: lambda _: kit.Said(403, FIREWALL), 4),
    "KServe": (kserve, 4),
    "a web page": (lambda kit: lambda _: kit.Said(200, "<html>Welcome</html>"), 4),
    "predictions": (lambda kit: lambda asked: kit.Said(200, {"predictions": []}), 4),
    "scaling up, 202": (lambda kit: loading(kit, kit.Said(202, "", {"Retry-After": "2"})), 0),
    "scaling up, 503": (
        lambda kit: loading(kit, kit.Said(503, {"error": "Endpoint is scaling up"})),
        0,
    ),
    "KServe not ready": (
        lambda kit: loading(kit, kit.Said(503, {"error": "Model with name m is not ready."})),
        0,
    ),
    "good": (lambda kit: None, 0),
}


@pytest.mark.parametrize("dialect", ["auto", "hf"])
@pytest.mark.parametrize("name", SERVERS)
async def test_run_and_probe_judge_alike(kit, probe, name, dialect):
    """From the first request on: the same exit code, soon, and no row with an error."""
    make, code = SERVERS[name]
    async with kit.serve(make(kit)) as server:
        began, ended = kit.now(), None
        try:
            async with kit.pool(server, dialect=dialect, batch_size=32) as running:
                await running.label(kit.texts(200))
        except ClassifyError as error:
            ended = error
        assert (0 if ended is None else ended.exit_code) == code
        assert kit.now() - began < 30
        assert len(server.requests) < 60
        assert not [o for o, _ in running.saved.values() if isinstance(o, RowError)]
    async with kit.serve(make(kit)) as server:
        found = await probe(server, dialect=dialect)
    assert found.exit_code == code


async def test_a_model_that_is_not_served_any_more_is_to_be_replaced(kit):
    async with kit.serve(lambda _: kit.Said(410, DEPRECATED)) as server:
        with pytest.raises(EndpointRefused, match="Choose another model") as refused:
            async with kit.pool(server) as running:
                await running.label(kit.texts(4))
    assert "endpoint" not in refused.value.fix.split("Choose another model")[0]


@pytest.mark.parametrize("allow_drift", [False, True])
async def test_another_model_after_an_outage_is_noticed_without_a_revision(kit, allow_drift):
    """The probe asks what was answered before, and compares."""
    texts = kit.texts(400)

    def script(asked):
        if 10 <= asked.number < 50:
            return kit.Said(500, "down")
        if asked.number < 10:
            return None
        return kit.Said(body=[[{"label": "OTHER", "score": 0.5}]] * len(asked.items))

    async with kit.serve(script) as server:
        if allow_drift:
            async with kit.pool(server, allow_drift=True) as running:
                outcomes = await running.label(texts)
            assert (("OTHER", 0.5),) in outcomes
            return
        with pytest.raises(StoppedEarly, match="another model") as stopped:
            async with kit.pool(server) as running:
                await running.label(texts)
    assert stopped.value.exit_code == 75
    labels = {outcome[0][0] for outcome, _ in running.saved.values()}
    assert "OTHER" not in labels


async def test_a_name_that_does_not_resolve_is_told_at_once_and_given_up_soon(kit):
    began = kit.now()
    with pytest.raises(StoppedEarly, match=r"The name no-such-host\.invalid cannot") as stopped:
        async with kit.pool("http://no-such-host.invalid", concurrency=2) as running:
            await running.label(kit.texts(4))
    assert 30 <= kit.now() - began < 70
    first = running.waits[0]
    assert first.so_far_s < 1
    assert "cannot be resolved" in first.detail
    assert "ssl:default" not in str(stopped.value) + "".join(each.detail for each in running.waits)


async def test_nothing_listens_yet_is_a_model_that_loads(kit):
    """Hugging Face's toolkit listens once its model is loaded."""
    texts = kit.texts(40)
    async with kit.serve() as server:
        await server.stop()
        async with kit.pool(server, max_outage_s=30, max_loading_s=600) as running:
            asking = asyncio.create_task(running.label(texts))
            await asyncio.sleep(200)
            await server.start()
            assert await asking == kit.right(texts)
        assert f"nothing listens at 127.0.0.1:{server.port} yet" in running.waits[0].detail
        assert set(running.causes) <= {Cause.CONNECTION.value, Cause.LOADING.value, None}
        # Nobody said that a model is loading, so nobody is asked to hold a request for it.
        assert not any("x-wait-for-model" in asked.headers for asked in server.requests)


async def test_a_dedicated_endpoint_is_asked_to_scale_up(kit):
    """Its proxy holds the request meanwhile, for less than an attempt may take."""

    async def headers(url):
        config = kit.config(url, timeout_s=100)
        async with Client(config, Target.of(config, None)) as client:
            return client._wire.headers

    dedicated = await headers("https://abc.eu-west-1.aws.endpoints.huggingface.cloud")
    assert dedicated["X-Scale-Up-Timeout"] == "90"
    assert "X-Scale-Up-Timeout" not in await headers("http://127.0.0.1:1")


@pytest.mark.parametrize("dialect", ["auto", "hf", "single"])
@pytest.mark.parametrize("at", [0, 1, 7, 31, 33, 64, 95])
@pytest.mark.parametrize("status", [400, 403, 500])
async def test_a_probe_tells_of_a_text_of_its_own_that_is_refused(kit, probe, dialect, at, status):
    """A run would end with 3 or 4, so not all is well."""
    texts = kit.texts(96)
    sent = []

    def script(asked):
        bad = texts[at] in asked.items
        sent.append(bad)
        said = kit.Said(headers={"x-sha": "0123abcd"})
        return kit.Said(status, {"error": TOO_LONG}) if bad else said

    async with kit.serve(script) as server:
        found = await probe(server, dialect=dialect)
    not_well = {check.name for check in found.checks if check.verdict in ("warning", "failed")}
    assert not_well <= {"token", "texts", "address", "batching", "dialect"}
    assert bool(not_well - {"batching"}) == any(sent)
