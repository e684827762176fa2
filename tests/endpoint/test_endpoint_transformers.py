"""A saved transformers model answers through the endpoint as it does through its own pipeline."""

from __future__ import annotations

import json
import shutil
from contextlib import asynccontextmanager

import aiohttp
import pyarrow.parquet as pq
import pytest

from pipeline.endpoint.models import load_model
from pipeline.endpoint.process import EndpointProcess
from pipeline.endpoint.server import Endpoint, listening
from pipeline.errors import SettingsError
from tests.tiny_bert import MAXIMUM, WORDS, save_bert, save_tokenizer

pytestmark = pytest.mark.transformers

LABELS = {f"emotion {i}": i for i in range(7)}
SEVEN = {"label2id": LABELS, "id2label": {i: label for label, i in LABELS.items()}}

# Configurations of the kinds of model for which the pipeline chooses its function differently.
KINDS = {
    "single-label": SEVEN,
    "multi-label": {**SEVEN, "problem_type": "multi_label_classification"},
    "one-label": {"num_labels": 1},
    "regression": {"num_labels": 1, "problem_type": "regression"},
}

TOO_LONG = "good " * 500
TEXTS = ["I love it", "", "really bad film, " * 15, "a \U0001f60d\x00 b!", "not greatly good"]
PAIRS = [
    {"text": "I love it", "text_pair": "really"},
    {"text": "this film", "text_pair": ""},
    {"text": "bad", "text_pair": None},
    {"text": "I hate it"},
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of each kind of model."""
    root = tmp_path_factory.mktemp("models")
    for kind, config in KINDS.items():
        save_tokenizer(save_bert(root / kind, **config))
    return root


def own_pipeline(path):
    from transformers import pipeline

    return pipeline("text-classification", model=str(path), device="cpu")


@pytest.fixture(scope="module")
def models(saved):
    return {kind: load_model(str(saved / kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def own_pipelines(saved):
    return {kind: own_pipeline(saved / kind) for kind in KINDS}


@asynccontextmanager
async def asking(*models):
    """Serve the models and give a function that POSTs a body and gives status and answer."""
    app = Endpoint(models).application()
    async with (
        listening(app, host="127.0.0.1", port=0) as url,
        aiohttp.ClientSession() as session,
    ):

        async def ask(body, path="/"):
            async with session.post(url + path, json=body) as response:
                return response.status, await response.json()

        yield ask


def answer_of(own_pipeline, body):
    """What the pipeline itself answers, nested as the serverless API nests it.

    Only the nesting is the API's: a text's answer is in a list, and so are the best labels of a
    list; a text without `top_k` gets up to five labels.
    """
    inputs, parameters = body["inputs"], body.get("parameters", {})
    if isinstance(inputs, str):
        return [own_pipeline(inputs, **{"top_k": 5, **parameters})]
    answer = own_pipeline(inputs, **parameters)
    return answer if "top_k" in parameters else [answer]


def labels(answer):
    return [[each["label"] for each in ranking] for ranking in answer]


def scores(answer):
    return [each["score"] for ranking in answer for each in ranking]


def assert_same(answer, expected):
    assert labels(answer) == labels(expected)
    assert scores(answer) == pytest.approx(scores(expected), rel=2e-5, abs=2e-6)


def body(inputs, **parameters):
    return {"inputs": inputs, "parameters": parameters}


BODIES = [
    pytest.param({"inputs": "I love it"}, id="text"),
    pytest.param({"inputs": ""}, id="empty text"),
    pytest.param({"inputs": TEXTS}, id="list"),
    pytest.param({"inputs": ["I love it"]}, id="list of one"),
    pytest.param({"inputs": PAIRS}, id="pairs"),
    pytest.param(body([*TEXTS, *PAIRS], top_k=None), id="texts and pairs"),
    *(
        pytest.param(body(inputs, top_k=top_k), id=f"{name}, top_k {top_k}")
        for name, inputs in {"text": "I love it", "list": TEXTS, "pairs": PAIRS}.items()
        for top_k in (1, 3, None, 99, 0, -1)
    ),
    *(
        pytest.param(body(inputs, function_to_apply=function, **top_k), id=f"{name}, {function}")
        for name, inputs, top_k in (("text", "I love it", {}), ("list", TEXTS, {"top_k": None}))
        for function in ("softmax", "sigmoid", "none", None)
    ),
    pytest.param(body(TEXTS * 20, top_k=2), id="more texts than go in one batch"),
    pytest.param(body([TOO_LONG, *TEXTS], top_k=None, truncation=True), id="truncation"),
    pytest.param(body(TOO_LONG, truncation=True), id="truncation of one text"),
    pytest.param(body([TOO_LONG, *TEXTS], top_k=2, truncation=True, max_length=9), id="max_length"),
    pytest.param(
        body([{"text": TOO_LONG, "text_pair": "bad"}], top_k=2, truncation="only_first"),
        id="truncation of the first of a pair",
    ),
    pytest.param(body(TEXTS, top_k=2, add_special_tokens=False), id="no special tokens"),
    pytest.param(
        body(TEXTS, top_k=2, padding="max_length", max_length=MAXIMUM), id="padding of its own"
    ),
    pytest.param(body(TEXTS, top_k=2, batch_size=2, num_workers=0), id="batch_size"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_body", BODIES)
async def test_every_form_of_request_is_answered_as_the_pipeline_does(
    models, own_pipelines, kind, request_body
):
    if request_body.get("parameters", {}).get("add_special_tokens") is False:
        # Of an empty text nothing is left then, which is an error: see below.
        request_body = {**request_body, "inputs": [text for text in TEXTS if text]}
    async with asking(models[kind]) as ask:
        status, answer = await ask(request_body)
    assert status == 200, answer
    assert_same(answer, answer_of(own_pipelines[kind], request_body))


def test_texts_have_answers_of_their_own(own_pipelines):
    """The random models tell texts apart; otherwise a mixed up order would not show."""
    for own in own_pipelines.values():
        found = {round(each["score"], 4) for each in own(TEXTS)}
        assert len(found) == len(TEXTS)


@pytest.mark.parametrize(
    ("request_body", "says"),
    [
        pytest.param(
            body([*TEXTS, TOO_LONG, TOO_LONG * 2], top_k=1),
            r"The size of tensor a \(502\) must match the size of tensor b \(64\) at .*dimension 1",
            id="too long text in a list",
        ),
        pytest.param(
            {"inputs": TOO_LONG}, r"The size of tensor a \(502\) must match", id="too long text"
        ),
        pytest.param(body(TEXTS, truncation="sideways"), "sideways", id="unknown truncation"),
        pytest.param(
            body(TEXTS, top_k=1, return_tensors="pt"), "return_tensors", id="parameter twice"
        ),
        pytest.param(body(["b", ""], add_special_tokens=False), "tensor", id="no token"),
    ],
)
async def test_an_error_of_the_pipeline_is_a_400_with_its_message(
    models, own_pipelines, request_body, says
):
    """The message is the one that the pipeline has for the text alone, as in the toolkit."""
    with pytest.raises(Exception, match=says) as caught:
        answer_of(own_pipelines["single-label"], request_body)
    async with asking(models["single-label"]) as ask:
        assert await ask(request_body) == (400, {"error": str(caught.value)})
        assert (await ask({"inputs": TEXTS}))[0] == 200


async def test_addressed_by_the_name_of_its_directory(saved, models, monkeypatch):
    monkeypatch.chdir(saved / "one-label")
    assert load_model(".").name == "one-label"
    async with asking(models["single-label"], models["one-label"]) as ask:
        _, default = await ask({"inputs": "a"})
        assert await ask({"inputs": "a"}, "/models/single-label") == (200, default)
        _, other = await ask({"inputs": "a"}, "/models/one-label")
        assert (len(default[0]), len(other[0])) == (5, 1)
        assert (await ask({"inputs": "a"}, "/models/regression"))[0] == 404


def altered(source, target, name, **settings):
    """Copy a model with other settings in one of its JSON files."""
    shutil.copytree(source, target)
    file = target / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return target


def gpt(path, pad_token_id):
    """Save a tiny GPT-2, which classifies the last token that is no padding."""
    import torch
    import transformers

    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_positions=MAXIMUM, n_embd=32, n_layer=2, n_head=2,
        initializer_range=0.3, bos_token_id=2, eos_token_id=3, pad_token_id=pad_token_id, **SEVEN,
    )  # fmt: skip
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.mark.parametrize(
    ("make", "pads"),
    [
        (lambda saved, path: shutil.copytree(saved / "single-label", path), True),
        (
            lambda saved, path: altered(
                saved / "single-label", path, "tokenizer_config.json", padding_side="left"
            ),
            False,
        ),
        (
            lambda saved, path: altered(
                saved / "single-label", path, "tokenizer_config.json", pad_token=None
            ),
            False,
        ),
        (lambda _, path: gpt(path, 0), True),
        (lambda _, path: gpt(path, None), False),
        (lambda _, path: gpt(path, WORDS.index("!")), False),
    ],
    ids=[
        "padding at the end",
        "padding before absolute positions",
        "tokenizer without padding",
        "last token",
        "last token, model without padding",
        "last token, model with another padding",
    ],
)
async def test_texts_are_padded_into_batches_only_where_that_changes_nothing(
    saved, tmp_path, make, pads
):
    """A text's answer is that of the text alone, whatever else is in the request."""
    path = make(saved, tmp_path / "model")
    model = load_model(str(path))
    assert model._pads is pads
    request_body = body([text for text in TEXTS if text], top_k=None)
    async with asking(model) as ask:
        status, answer = await ask(request_body)
    assert status == 200, answer
    assert_same(answer, answer_of(own_pipeline(path), request_body))


def test_revision_is_that_of_the_files(saved, models, tmp_path):
    """Equal files in another place have the same revision, and another byte has another."""
    sha = models["single-label"].sha
    assert len(sha) == 40
    assert int(sha, 16)
    assert sha != models["multi-label"].sha
    copy = shutil.copytree(saved / "single-label", tmp_path / "copy")
    (copy / ".DS_Store").touch()
    assert load_model(str(copy)).sha == sha
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_model(str(copy)).sha != sha


def base_model(path):
    save_bert(path, "AutoModel")
    save_tokenizer(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (base_model, "no sequence-classification model: it lacks .*classifier.bias"),
        (save_bert, "tokenizer"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be loaded: .*config.json"),
        (
            lambda path: (path / "config.json").write_text('{"model_type": "bert"}'),
            "cannot be loaded: .*safetensors",
        ),
    ],
    ids=["base model", "no tokenizer", "broken config", "no weights"],
)
def test_directory_that_holds_no_such_model_is_a_settings_error(tmp_path, make, says):
    path = tmp_path / "model"
    path.mkdir()
    make(path)
    with pytest.raises(SettingsError, match=rf"(?s)the model in {path} .*{says}"):
        load_model(str(path))


def test_a_run_labels_a_table_with_it(saved, own_pipelines, tmp_path, cli):
    """`classify run` gets the pipeline's labels, and a too long text is its own row's error."""
    texts = [f"{'I love it' if i % 3 else 'I hate it'} {'really ' * (i % 7)}" for i in range(40)]
    texts[17] = TOO_LONG
    table = "\n".join(["id,text", *(f"{i},{text}" for i, text in enumerate(texts))])
    (tmp_path / "in.csv").write_text(table + "\n")
    with EndpointProcess((str(saved / "single-label"),)) as endpoint:
        arguments = ("--endpoint", endpoint.url, "--max-errors", 1, "--json", "-o", "out.parquet")
        done = cli("run", "in.csv", *arguments, CLASSIFY_DIALECT="auto", HF_HUB_OFFLINE="1")
    assert done.code == 0, done.stderr
    assert (done.json["labelled"], done.json["errors"]) == (39, 1)
    assert done.json["model_revision"] == load_model(str(saved / "single-label")).sha
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert rows[17]["label"] is None
    assert "The size of tensor a (502)" in rows[17]["error"]
    rest = [row for i, row in enumerate(rows) if i != 17]
    assert_same([rest], [own_pipelines["single-label"]([row["text"] for row in rest])])
