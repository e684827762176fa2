"""Servers of other makers: what they are asked, what they answer, and whose fault an error is."""

from __future__ import annotations

import math

import pytest

from pipeline.client import dialect_of
from pipeline.errors import ClassifyError, EndpointRefused, SettingsError
from pipeline.outcomes import RowError
from tests.other_servers import ASKED, BAD, SERVERS, Server, classified, given

LIMITS = {
    "vllm": [
        {"text_pair": "b"}, {"top_k": 2}, {"top_k": "all"},
        {"function_to_apply": "softmax"}, {"function_to_apply": "sigmoid"},
    ],
    "sglang": [
        {"text_pair": "b"}, {"top_k": "all"}, {"function_to_apply": "none"}, {"truncate": True},
    ],
    "mlflow": [
        {"text_pair": "b"}, {"top_k": 3}, {"function_to_apply": "none"}, {"truncate": True},
    ],
    "vertex": [{"text_pair": "b"}],
    "infinity": [{"text_pair": "b"}, {"function_to_apply": "none"}, {"truncate": False}],
    "tei": [{"function_to_apply": "softmax"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"), [(name, each) for name, cases in LIMITS.items() for each in cases]
)
async def test_what_would_be_ignored_is_refused_before_a_text_is_sent(kit, probe, name, settings):
    """Stated or found: never a label that was made otherwise than asked."""
    (key,) = settings
    with pytest.raises(SettingsError, match=rf"`{key}`.* cannot be asked of .*dialect {name}"):
        dialect_of(name, kit.config(dialect=name, **settings))
    if name not in ASKED:
        return
    server = SERVERS[name]
    texts = [(text, "b") for text in kit.texts(4)] if key == "text_pair" else kit.texts(4)
    async with kit.serve(server.script(kit), info=server.page(kit)) as running_server:
        with pytest.raises(SettingsError, match=f"`{key}`"):
            async with kit.pool(running_server, dialect="auto", **settings) as running:
                await running.label(texts)
        found = await probe(running_server.url, **settings)
        assert found.exit_code == 2
        assert running_server.posts == []


HONOURED = {
    "vllm": [
        ({}, {}),
        ({"top_k": 1, "truncate": False}, {}),
        ({"model": "org/m"}, {"model": "org/m"}),
        ({"truncate": True}, {"truncate_prompt_tokens": -1}),
        ({"function_to_apply": "none"}, {"use_activation": False}),
    ],
    "sglang": [({}, {}), ({"model": "org/m"}, {"model": "org/m"})],
    "mlflow": [({}, {}), ({"model": "org/m"}, {})],
    "infinity": [({}, {}), ({"truncate": True}, {}), ({"model": "org/m"}, {"model": "org/m"})],
    "vertex": [
        ({}, {"parameters": {"top_k": 1}}),
        (
            {"top_k": "all", "function_to_apply": "none", "truncate": True},
            {"parameters": {"top_k": None, "function_to_apply": "none", "truncation": True}},
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "settings", "sent"),
    [(name, *case) for name, cases in HONOURED.items() for case in cases],
)
async def test_what_is_sent(kit, name, settings, sent):
    texts = kit.texts(3)
    async with (
        kit.serve(SERVERS[name].script(kit)) as server,
        kit.pool(server.url + given(name), dialect=name, **settings) as running,
    ):
        await running.label(texts)
        (asked,) = server.requests
    key = {"mlflow": "inputs", "vertex": "instances"}.get(name, "input")
    assert asked.body == {key: texts, **sent}


@pytest.mark.parametrize("name", ["infinity", "vertex"])
@pytest.mark.parametrize("top_k", [1, 2, "all"])
async def test_as_many_labels_as_are_asked_for(kit, name, top_k):
    most = None if top_k == "all" else top_k
    async with (
        kit.serve(SERVERS[name].script(kit)) as server,
        kit.pool(server.url + given(name), dialect=name, top_k=top_k) as running,
    ):
        expected = [kit.outcome_of(text, most) for text in kit.texts(9)]
        assert await running.label(kit.texts(9)) == expected


@pytest.mark.parametrize("name", ["infinity", "sglang"])
async def test_the_model_that_is_served_is_asked_for(kit, name):
    server = SERVERS[name]
    async with kit.serve(server.script(kit), info=server.page(kit)) as running_server:
        async with kit.pool(running_server, dialect="auto") as running:
            await running.label(kit.texts(3))
        assert running_server.posts[0].body["model"] == "m"


@pytest.mark.parametrize("name", ["infinity", "sglang"])
@pytest.mark.parametrize("model", [None, "n"])
async def test_of_several_models_one_has_to_be_named(kit, name, model):
    server = SERVERS[name]
    path, page = next((p, c) for p, c in server.pages.items() if p.endswith("models"))
    served = [{**page["data"][0], "id": each} for each in ("m", "n")]
    several = Server(server.route, {**server.pages, path: {"data": served}}, server.answer)
    async with kit.serve(several.script(kit), info=several.page(kit)) as running_server:
        if model is None:
            with pytest.raises(EndpointRefused, match=r"Several models .* m, n"):
                async with kit.pool(running_server, dialect="auto") as running:
                    await running.label(kit.texts(3))
            assert running_server.posts == []
            return
        async with kit.pool(running_server, dialect="auto", model=model) as running:
            assert await running.label(kit.texts(3)) == kit.right(kit.texts(3))
        assert running_server.posts[0].body["model"] == "n"


async def test_infinity_without_a_classifier_is_refused(kit):
    server = SERVERS["infinity"]
    models = {"data": [{"id": "m", "capabilities": ["embed", "rerank"]}]}
    pages = {**server.pages, "/models": models}
    other = Server(server.route, pages, server.answer)
    async with kit.serve(other.script(kit), info=other.page(kit)) as running_server:
        with pytest.raises(EndpointRefused, match=r"No model at 127\.0\.0\.1 is a classifier"):
            async with kit.pool(running_server, dialect="auto") as running:
                await running.label(kit.texts(3))
        assert running_server.posts == []


async def test_infinity_gets_no_more_than_it_takes(kit):
    async with (
        kit.serve(SERVERS["infinity"].script(kit)) as server,
        kit.pool(server, dialect="infinity", batch_size=5000) as running,
    ):
        texts = kit.texts(5000)
        assert await running.label(texts) == kit.right(texts)
        assert max(len(asked.items) for asked in server.posts) <= 2048


@pytest.mark.parametrize("dialect", ["auto", "stated"])
@pytest.mark.parametrize("at", [0, 40])
@pytest.mark.parametrize("name", SERVERS)
async def test_a_bad_row_carries_its_error_alone(kit, name, at, dialect):
    """Its error does not repeat the text, whatever the server sends back of it."""
    server, texts = SERVERS[name], kit.texts(100)
    texts[at] = BAD
    stated = name if dialect == "stated" or name == "vertex" else "auto"
    async with (
        kit.serve(server.script(kit), info=server.page(kit)) as running_server,
        kit.pool(running_server.url + given(name), dialect=stated, batch_size=32) as running,
    ):
        outcomes = await running.label(texts)
        error = outcomes.pop(at)
        assert isinstance(error, RowError)
        assert BAD not in error.message
        assert outcomes == kit.right(texts[:at] + texts[at + 1 :])
        assert len(running_server.posts) <= 4 + 2 * math.log2(32) + 4


CASES = [
    (name, case, said, 4) for name, server in SERVERS.items()
    for case, said in server.refusals.items()
] + [
    (name, case, said, 0) for name, server in SERVERS.items()
    for case, said in server.passing.items()
]  # fmt: skip


@pytest.mark.parametrize("dialect", ["auto", "stated"])
@pytest.mark.parametrize(
    ("name", "case", "said", "code"), CASES, ids=[f"{name}-{case}" for name, case, *_ in CASES]
)
async def test_run_and_probe_judge_alike(kit, probe, name, case, said, code, dialect):
    """The same exit code, and no row is blamed for what refuses every one."""
    server = SERVERS[name]
    stated = name if dialect == "stated" or name == "vertex" else "auto"
    until = 5.0 if code == 0 else math.inf

    def started():
        return kit.serve(server.script(kit, said, until), info=server.page(kit))

    async with started() as running_server:
        address = running_server.url + given(name)
        ended = None
        try:
            async with kit.pool(address, dialect=stated, batch_size=32) as running:
                await running.label(kit.texts(100))
        except ClassifyError as error:
            ended = error
        assert (0 if ended is None else ended.exit_code) == code, ended
        assert not [o for o, _ in running.saved.values() if isinstance(o, RowError)]
        assert len(running_server.requests) < 40
        if code == 0:
            assert set(running.causes) == {None, said[2].value}
    async with started() as running_server:
        found = await probe(running_server.url + given(name), dialect=stated)
    assert found.exit_code == code


def _changed(**changes):
    def change(kit, asked):
        answer = classified(kit, asked.items)
        answer["data"][-1].update(changes)
        return answer

    return change


WRONG = {
    "vllm": {
        "fewer": lambda kit, asked: classified(kit, asked.items[1:]),
        "twice": _changed(index=0),
        "beyond": _changed(index=99),
        "no index": _changed(index=None),
        "probs of text": _changed(probs=["a"]),
        "no probs": _changed(probs=[]),
        "probs of another kind": _changed(probs=None),
        "a label that is none": _changed(label=7),
        "embeddings": lambda kit, asked: {"data": [{"index": 0, "embedding": [0.1]}] * 4},
        "a list": lambda kit, asked: [[{"label": "A", "score": 1.0}]] * 4,
    },
    "mlflow": {
        "fewer": lambda kit, asked: {"predictions": [{"label": "A", "score": 0.5}]},
        "classes": lambda kit, asked: {"predictions": [1] * len(asked.items)},
        "KServe": lambda kit, asked: {"predictions": [{"0": 0.1255}] * len(asked.items)},
        "lists": lambda kit, asked: {"predictions": [[{"label": "A", "score": 1.0}]] * 4},
        "a list": lambda kit, asked: [{"label": "A", "score": 1.0}] * 4,
    },
    "vertex": {
        "fewer": lambda kit, asked: {"predictions": [[{"label": "A", "score": 0.5}]]},
        "flat": lambda kit, asked: {"predictions": [{"label": "A", "score": 0.5}] * 4},
    },
    "infinity": {
        "fewer": lambda kit, asked: {"data": [[{"label": "A", "score": 0.5}]]},
        "vllm": lambda kit, asked: classified(kit, asked.items),
        "nothing": lambda kit, asked: {},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in WRONG.items() for case in cases]
)
async def test_an_answer_of_another_form_is_never_a_label(kit, name, case):
    answer = WRONG[name][case]
    other = Server(SERVERS[name].route, {}, answer)
    async with kit.serve(other.script(kit)) as server:
        with pytest.raises(EndpointRefused, match="the dialect that it was asked in"):
            async with kit.pool(server.url + given(name), dialect=name) as running:
                await running.label(kit.texts(16))
        assert running.saved == {}


async def test_vllms_entries_are_taken_by_their_index(kit):
    def answer(kit, asked):
        found = classified(kit, asked.items)
        found["data"].reverse()
        return found

    server = Server("/classify", {}, answer)
    async with (
        kit.serve(server.script(kit)) as running_server,
        kit.pool(running_server, dialect="vllm") as running,
    ):
        assert await running.label(kit.texts(9)) == kit.right(kit.texts(9))


@pytest.mark.parametrize(
    ("entry", "outcome"),
    [
        ({"label": None, "probs": [0.1, 0.7, 0.2]}, (("LABEL_1", 0.7),)),
        ({"label": "b", "probs": [-3.5, 4, 0.0]}, (("b", 4.0),)),
        ({"label": "b", "probs": [1.0]}, (("b", 1.0),)),
        ({"label": "a", "probs": [0.1, None]}, None),
    ],
    ids=["no name", "logits", "one label", "not finite"],
)
async def test_the_best_label_of_vllm(kit, entry, outcome):
    """One without a name is called as transformers calls it."""

    def answer(kit, asked):
        return {"data": [{"index": i, **entry} for i, _ in enumerate(asked.items)]}

    server = Server("/classify", {}, answer)
    async with (
        kit.serve(server.script(kit)) as running_server,
        kit.pool(running_server, dialect="vllm") as running,
    ):
        (found,) = await running.label(["a"])
        assert found == outcome or (outcome is None and isinstance(found, RowError))
