"""A probe finds what a run would, with a handful of requests, and says how to fix it.

The servers are those of the protocol's tables, in virtual time.
"""

from __future__ import annotations

import asyncio

import pytest

from pipeline.client import Target
from pipeline.client.token import Token
from pipeline.errors import EndpointRefused, SettingsError, StoppedEarly
from pipeline.events import TokenFileIsOpen
from pipeline.probing import MOST_REQUESTS, Verdict

INFO = {"model_id": "org/name", "model_type": {"classifier": {"id2label": {}}},
        "max_client_batch_size": 8, "max_concurrent_requests": 64}  # fmt: skip
EMBEDDINGS = {**INFO, "model_type": {"embedding": {"pooling": "mean"}}}
SHA = {"x-sha": "0123abcd"}


def told(found):
    """The checks that are not well, by name."""
    return {
        check.name: (check.verdict.value, f"{check.seen} {check.mend}")
        for check in found.checks
        if check.verdict in (Verdict.WARNING, Verdict.FAILED)
    }


def verdict(found, name):
    return next(check for check in found.checks if check.name == name)


@pytest.mark.parametrize("speaks", ["hf", "compat"])
async def test_a_good_endpoint_is_well_in_every_check(kit, probe, speaks):
    async with kit.serve(lambda _: kit.Said(headers=SHA), speaks=speaks) as server:
        found = await probe(server, token=Token(kit.TOKEN, None, "the environment"))
    assert {check.verdict for check in found.checks} == {Verdict.OK}
    assert (found.state, found.exit_code, found.failure) == ("ok", 0, None)
    # What it is; the canary; three batches.
    assert [len(asked.items) for asked in server.requests] == [0, 1, 32, 32, 32]
    assert (found.dialect, found.texts_per_request, found.canaries) == ("hf", 32, 1)
    assert (found.model_revision, found.labels) == ("0123abcd", tuple(sorted(kit.LABELS)))
    assert len(set(server.items)) == 96
    assert kit.TOKEN not in repr(found.to_json())


async def test_the_speed_is_that_of_one_request_at_a_time(kit, probe):
    """What several at once would do is not known, and not made up."""
    async with kit.serve(lambda _: kit.Said(after_s=0.99), info=None) as server:
        found = await probe(server, concurrency=10)
    async with kit.serve(lambda _: kit.Said(after_s=0.99), info=None) as server:
        limited = await probe(server, concurrency=10, rate=0.5)
    async with kit.serve(lambda _: kit.Said(after_s=0.99), info=None) as server:
        alone = await probe(server, concurrency=1)
    assert found.latency_s == pytest.approx(1.0, rel=0.01)
    assert found.estimate.texts_per_second == pytest.approx(32 / 1.0, rel=0.01)
    assert found.estimate.least < 32
    assert found.estimate.most is None
    seen = verdict(found, "latency").seen
    assert "3 requests of 32 texts, one at a time: 32 texts/s, the least that a run does" in seen
    assert "several at once" in seen
    assert limited.estimate.most == pytest.approx(0.5 * 32)
    assert alone.estimate.least < 32 < alone.estimate.most


async def test_tei_tells_what_it_is_and_how_much_it_takes(kit, probe):
    async with kit.serve(speaks="tei", info=INFO) as server:
        found = await probe(server, concurrency=32, batch_size="auto")
    assert (found.dialect, found.texts_per_request, found.canaries) == ("tei", 8, 0)
    # Its permits count texts: 64 of them are 8 requests of 8.
    assert found.in_flight == 8
    assert "/info" in verdict(found, "dialect").seen
    assert "8 at most" in verdict(found, "batching").seen
    # It tells no revision.
    assert list(told(found)) == ["revision"]


async def test_a_batch_size_beyond_what_tei_takes_is_a_warning(kit, probe):
    async with kit.serve(speaks="tei", info=INFO) as server:
        found = await probe(server, batch_size=16)
    kind, words = told(found)["batching"]
    assert kind == "warning"
    assert "batch_size=8" in words


SINGLE = ["single", "first", "flat", "liar"]


@pytest.mark.parametrize("speaks", SINGLE)
async def test_a_server_that_honours_no_batches(kit, probe, speaks):
    """What the probe finds is what a run does: the same dialect, after the same requests."""
    async with kit.serve(speaks=speaks) as server:
        found = await probe(server, batch_size=2, texts=6)
    assert found.dialect == "single"
    assert told(found)["batching"][0] == "warning"
    assert "2 times as many requests" in told(found)["batching"][1]
    assert found.exit_code == 0
    assert found.texts_per_request == 1
    async with (
        kit.serve(speaks=speaks) as server,
        kit.pool(server, dialect="auto", batch_size=2) as running,
    ):
        assert await running.label(kit.texts(6)) == kit.right(kit.texts(6))
        assert running.client.dialect.name == "single"
        assert len(server.posts) == 6 + found.canaries


@pytest.mark.parametrize("speaks", SINGLE)
async def test_its_requests_stay_few_where_each_carries_one_text(kit, probe, speaks):
    async with kit.serve(lambda _: kit.Said(headers=SHA), speaks=speaks) as server:
        found = await probe(server)
    assert found.requests == MOST_REQUESTS
    assert (found.dialect, found.exit_code) == ("single", 0)
    assert list(told(found)) == ["batching"]


async def test_a_dialect_that_is_given_is_trusted(kit, probe):
    async with kit.serve(speaks="tei") as server:
        found = await probe(server, dialect="tei", batch_size=4)
    assert [asked.method for asked in server.requests] == ["POST"] * 3
    assert "as the setting says" in verdict(found, "dialect").seen
    assert found.canaries == 0


async def test_a_wrong_dialect_is_told(kit, probe):
    """A list sent to TEI is a pair, whose answer is not one for each text."""
    async with kit.serve(speaks="tei", info=INFO) as server:
        found = await probe(server, dialect="hf", batch_size=2)
    kind, words = told(found)["dialect"]
    assert (kind, found.exit_code) == ("failed", 4)
    assert "dialect" in words


async def test_a_loading_model_is_waited_for(kit, probe):
    """With the gate of a run; requests to a loading model are counted apart."""
    began = kit.now()

    def script(asked):
        if kit.now() - began < 20:
            return kit.Said(503, {"error": "Model is currently loading", "estimated_time": 20.0})
        return kit.Said(headers=SHA)

    async with kit.serve(script) as server:
        found = await probe(server)
    assert found.exit_code == 0
    assert found.loading_requests > 0
    assert "after loading for" in verdict(found, "model").seen
    assert told(found) == {}


async def test_a_model_that_goes_on_loading_is_said_to(kit, probe):
    said = kit.Said(503, {"error": "Model is currently loading", "estimated_time": 300.0})
    async with kit.serve(lambda _: said) as server:
        found = await probe(server, max_loading_s=60)
    kind, words = told(found)["model"]
    assert (kind, found.exit_code) == ("failed", 75)
    assert "loading for 60 s" in words
    assert "max_loading_s" in words
    assert "Probe again later" in words
    assert isinstance(found.failure, StoppedEarly)
    assert verdict(found, "labels").verdict is Verdict.SKIPPED


REFUSED = [
    pytest.param(401, {"error": "Invalid credentials"}, "token", "HF_TOKEN", id="401"),
    pytest.param(402, {"error": "credits"}, "token", "credits", id="402"),
    pytest.param(403, "no", "token", "permission", id="403"),
    pytest.param(404, "Not Found", "model", "model id", id="404"),
    pytest.param(410, {"error": "no longer supported"}, "address", '`endpoint="hf"`', id="410"),
    pytest.param(424, {"error": "model is not a classifier"}, "model", "classification", id="424"),
    pytest.param(400, {"error": "the token seems invalid"}, "token", "token", id="400 token"),
    pytest.param(
        400, {"error": "Model not supported by provider hf-inference"}, "model", "served",
        id="400 model",
    ),
    pytest.param(405, "Method Not Allowed", "address", "address", id="405"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "name", "mend"), REFUSED)
async def test_a_refusal_is_the_fault_of_one_check(kit, probe, status, body, name, mend):
    """It is told after one request with a text, and the checks that need an answer are skipped."""
    async with kit.serve(lambda _: kit.Said(status, body)) as server:
        found = await probe(server, token=Token(kit.TOKEN, None, "the environment"))
    kind, words = told(found)[name]
    assert list(told(found)) == [name]
    assert (kind, found.exit_code, found.state) == ("failed", 4, "failed")
    assert str(status) in words
    assert mend in words
    assert "resumes" not in words
    assert len(server.posts) == 1
    assert verdict(found, "latency").verdict is Verdict.SKIPPED
    assert isinstance(found.failure, EndpointRefused)
    assert mend in str(found.failure)
    assert kit.TOKEN not in repr(found.to_json())
    if name != "address":
        assert verdict(found, "address").verdict is Verdict.OK


async def test_where_no_token_is_found_a_refusal_says_so(kit, probe):
    async with kit.serve(lambda _: kit.Said(401, {"error": "Unauthorized"})) as server:
        found = await probe(server)
    assert "No token was found" in told(found)["token"][1]


async def test_a_token_that_is_not_sent_and_one_that_others_read(kit, probe):
    async with kit.serve(lambda _: kit.Said(headers=SHA)) as server:
        found = await probe(server, token=Token(kit.TOKEN, TokenFileIsOpen("t"), "t"))
    assert told(found)["token"] == (
        "warning", "Others can read the token in t. Run: chmod 600 t",
    )  # fmt: skip
    found = await probe("http://team.invalid:9", token=Token(kit.TOKEN, None, "HF_TOKEN"))
    assert "neither https nor this machine" in told(found)["token"][1]


async def test_a_redirect_is_not_followed(kit, probe):
    said = kit.Said(301, "", {"Location": "https://elsewhere.example/x"})
    async with kit.serve(lambda _: said) as server:
        found = await probe(server)
    assert "elsewhere.example" in told(found)["address"][1]
    assert found.exit_code == 4


async def test_the_old_host_is_explained(kit):
    """Nothing is sent for it: requests go to the router, and the address is a warning."""
    async with kit.serve(lambda _: kit.Said(headers=SHA)) as server:
        config = kit.config("https://api-inference.huggingface.co/models/org/name", dialect="auto")
        target = Target.of(config, None)
        assert target.url.startswith("https://router.huggingface.co/")
        moved = Target(server.url, "auto", None, target.notice)
        found = await kit.examined(config, moved, Token(None), ["a", "b"], lambda _: None)
    kind, words = told(found)["address"]
    assert kind == "warning"
    assert 'Set `endpoint="hf"` and `model="org/name"`' in words


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_an_endpoint_that_is_down_is_told_within_seconds(kit, probe, status):
    began = kit.now()
    async with kit.serve(lambda _: kit.Said(status, "<html>oh</html>")) as server:
        found = await probe(server)
    assert (told(found)["address"][0], found.exit_code) == ("failed", 75)
    assert str(status) in told(found)["address"][1]
    assert kit.now() - began < 10


async def test_where_nobody_listens(kit, probe):
    async with kit.serve() as server:
        url = server.url
    began = kit.now()
    found = await probe(url)
    assert (told(found)["address"][0], found.exit_code) == ("failed", 75)
    assert "Nothing listens there" in told(found)["address"][1]
    assert kit.now() - began < 10


async def test_https_to_a_server_that_speaks_http(kit, probe):
    async with kit.serve() as server:
        found = await probe(server.url.replace("http:", "https:"))
    assert (told(found)["address"][0], found.exit_code) == ("failed", 4)
    assert "Check the address and its certificate." in told(found)["address"][1]


async def test_a_failure_now_and_then_is_a_warning(kit, probe):
    script = lambda asked: kit.Said(500, "oh") if asked.number == 3 else kit.Said(headers=SHA)  # noqa: E731
    async with kit.serve(script) as server:
        found = await probe(server)
    assert list(told(found)) == ["address"]
    assert "1 of 6 requests failed" in told(found)["address"][1]
    assert found.exit_code == 0


async def test_an_answer_that_does_not_come_is_asked_for_once(kit, probe):
    began = kit.now()
    async with kit.serve(lambda _: kit.Said(how="never")) as server:
        found = await probe(server, timeout_s=90)
    assert len(server.posts) == 1
    assert (told(found)["latency"][0], found.exit_code) == ("failed", 75)
    assert "Raise `timeout_s`" in told(found)["latency"][1]
    assert 90 <= kit.now() - began < 92


async def test_an_answer_that_comes_late_is_a_warning(kit, probe):
    async with kit.serve(lambda _: kit.Said(headers=SHA, after_s=20)) as server:
        found = await probe(server, timeout_s=30)
    assert list(told(found)) == ["latency"]
    assert found.latency_s == pytest.approx(20, rel=0.01)


async def test_a_pause_is_made_where_it_is_short(kit, probe):
    def script(asked):
        if asked.number == 2:
            return kit.Said(429, {"error": "Rate limit reached"}, {"Retry-After": "30"})
        return kit.Said(headers=SHA)

    began = kit.now()
    async with kit.serve(script) as server:
        found = await probe(server)
    assert kit.now() - began >= 30
    assert "`rate`" in told(found)["address"][1]
    assert found.throttled
    assert found.exit_code == 0


async def test_an_account_without_requests_left_is_told_at_once(kit, probe):
    said = kit.Said(429, {"error": "Rate limit reached"}, {"Retry-After": "3000"})
    began = kit.now()
    async with kit.serve(lambda _: said) as server:
        found = await probe(server)
    assert (told(found)["address"][0], found.exit_code) == ("failed", 75)
    assert "a pause of 3000 s" in told(found)["address"][1]
    assert kit.now() - began < 10


async def test_a_page_that_is_broken_says_nothing_of_the_endpoint(kit, probe):
    async with kit.serve(lambda _: kit.Said(headers=SHA), info=kit.Said(500, "oh")) as server:
        found = await probe(server)
    assert told(found) == {}
    assert len(server.requests) <= MOST_REQUESTS


async def test_a_page_that_tells_of_loading_is_waited_for_too(kit, probe):
    said = kit.Said(503, {"error": "Model is currently loading"})
    async with kit.serve(info=said) as server:
        found = await probe(server, max_loading_s=40)
    assert (told(found)["model"][0], found.exit_code) == ("failed", 75)
    assert "Probe again later" in told(found)["model"][1]
    assert server.posts == []


@pytest.mark.parametrize("body", ["<html>Welcome</html>", {"hello": 1}, []], ids=str)
async def test_what_is_no_classifier(kit, probe, body):
    async with kit.serve(lambda _: kit.Said(200, body)) as server:
        found = await probe(server)
    assert (told(found)["dialect"][0], found.exit_code) == ("failed", 4)
    assert found.dialect is None


async def test_embeddings_are_no_classifier(kit, probe):
    async with kit.serve(speaks="tei", info=EMBEDDINGS) as server:
        found = await probe(server)
    assert (told(found)["model"][0], found.exit_code) == ("failed", 4)
    assert "embeddings" in told(found)["model"][1]
    assert server.posts == []


async def test_labels_without_names_are_a_warning(kit, probe):
    def script(asked):
        answers = [[{"label": f"LABEL_{len(str(item)) % 2}", "score": 0.9}] for item in asked.items]
        return kit.Said(200, answers, SHA)

    async with kit.serve(script) as server:
        found = await probe(server)
    assert list(told(found)) == ["labels"]
    assert "id2label" in told(found)["labels"][1]
    assert set(found.labels) <= {"LABEL_0", "LABEL_1"}


async def test_a_server_that_tells_no_revision_is_a_warning(kit, probe):
    async with kit.serve() as server:
        found = await probe(server)
    assert list(told(found)) == ["revision"]
    assert found.model_revision is None


async def test_two_revisions_at_one_address_stop_a_run(kit, probe):
    async with kit.serve(lambda asked: kit.Said(headers={"x-sha": str(asked.number)})) as server:
        found = await probe(server)
    assert (told(found)["revision"][0], found.exit_code) == ("failed", 75)
    assert "allow_drift=True" in told(found)["revision"][1]
    assert "restart" not in told(found)["revision"][1]


async def test_rejected_texts_are_counted(kit, probe):
    """As the run splits them off, within the requests of a probe."""

    def script(asked):
        if "text 1" in asked.items:
            return kit.Said(400, {"error": "The size of tensor a (502) must match"})
        return kit.Said(headers=SHA)

    async with kit.serve(script) as server:
        found = await probe(server, texts=6, batch_size=2)
    assert list(told(found)) == ["texts"]
    assert "1 of 6" in told(found)["texts"][1]
    assert "truncate=True" in told(found)["texts"][1]


async def test_where_each_text_is_rejected_no_run_can_begin(kit, probe):
    async with kit.serve(lambda _: kit.Said(400, {"error": "no such task"})) as server:
        found = await probe(server, texts=2)
    assert (told(found)["texts"][0], found.exit_code) == ("failed", 4)
    assert "no such task. Check the settings" in told(found)["texts"][1]


async def test_a_batch_that_is_too_large_is_told(kit, probe):
    def script(asked):
        return kit.Said(413, "too large") if len(asked.items) > 16 else kit.Said(headers=SHA)

    async with kit.serve(script) as server:
        found = await probe(server)
    assert list(told(found)) == ["batching"]
    assert "batch_size=16" in told(found)["batching"][1]
    assert found.texts_per_request == 16


def scores(asked, *, honours):
    """An answer whose scores depend on the function that was asked for, where it is honoured."""
    parameters = asked.body["parameters"]
    score = 7.5 if honours and parameters.get("function_to_apply") == "none" else 0.9
    count = parameters["top_k"] if honours else 1
    return [
        [{"label": f"l{i}", "score": score - i / 10} for i in range(count)] for _ in asked.items
    ]


@pytest.mark.parametrize("function", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("honours", [True, False])
async def test_whether_settings_of_the_answer_are_honoured(kit, probe, function, honours):
    def script(asked):
        if not honours and len(str(asked.items[0])) > 10_000:
            return kit.Said(400, {"error": "too long"})
        return kit.Said(200, scores(asked, honours=honours), SHA)

    async with kit.serve(script) as server:
        found = await probe(server, function_to_apply=function, top_k=3, truncate=True)
    if honours:
        assert told(found) == {}
        assert verdict(found, "parameters").seen == "top_k, function_to_apply, truncate: honoured."
    else:
        assert list(told(found)) == ["parameters"]
        for name in ("top_k 3", f"function_to_apply {function}", "truncate"):
            assert name in told(found)["parameters"][1]
    # The trials are no outcomes of the input's texts.
    assert "96 from the first rows" in verdict(found, "texts").seen


async def test_what_tei_cannot_do_is_a_wrong_setting(kit, probe):
    async with kit.serve(speaks="tei", info=INFO) as server:
        found = await probe(server, function_to_apply="sigmoid")
    assert (told(found)["parameters"][0], found.exit_code) == ("failed", 2)
    assert isinstance(found.failure, SettingsError)
    assert server.posts == []


async def test_pairs_are_asked_as_pairs(kit, probe):
    async with kit.serve(lambda _: kit.Said(headers=SHA)) as server:
        found = await probe(server, text_pair="b", truncate=True)
    assert told(found) == {}
    assert all(item[1] in ("pair", "short") for item in server.items)


async def test_max_requests_is_kept(kit, probe):
    async with kit.serve(lambda _: kit.Said(headers=SHA)) as server:
        found = await probe(server, max_requests=2)
    assert len(server.posts) == 2
    assert found.exit_code == 0


async def test_an_interrupt_leaves_nothing_behind(kit, probe):
    asked = asyncio.Event()

    def script(_):
        asked.set()
        return kit.Said(how="never")

    async with kit.serve(script) as server:
        work = asyncio.create_task(probe(server))
        await asked.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert kit.nothing_left() == []
