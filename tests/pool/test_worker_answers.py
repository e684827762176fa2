"""Reading answers: every shape that servers send, and never a wrong label."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.client.wire
from pipeline.client.answers import NON_FINITE
from pipeline.client.dialects import REGISTRY
from pipeline.client.dialects.hf import Hf
from pipeline.client.dialects.single import Single
from pipeline.client.dialects.tei import Tei
from pipeline.errors import Cause, EndpointRefused, Retryable
from pipeline.outcomes import RowError

pytestmark = pytest.mark.fault(19)

LA, LB = [{"label": "x", "score": 0.75}], [{"label": "y", "score": 0.5}]
TWO = [{"label": "x", "score": 0.25}, {"label": "y", "score": 0.75}]
A, B = (("x", 0.75),), (("y", 0.5),)
BOTH = (("y", 0.75), ("x", 0.25))


def read(kit, dialect, answer, count, top_k=1):
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return dialect(kit.config(top_k=top_k)).read(body, count)


@pytest.mark.parametrize(
    ("dialect", "answer", "count", "top_k", "outcomes"),
    [
        pytest.param(Single, LA, 1, 1, [A], id="main: one text, k"),
        pytest.param(Single, TWO, 1, "all", [BOTH], id="main: one text, null"),
        pytest.param(Single, [TWO], 1, "all", [BOTH], id="compat: one text, null"),
        pytest.param(Single, [LA], 1, 1, [A], id="compat: one text, k"),
        pytest.param(Hf, [LA, LB], 2, 1, [A, B], id="main and compat: list, k"),
        pytest.param(Hf, [TWO, TWO], 2, "all", [BOTH, BOTH], id="main and compat: list, null"),
        pytest.param(Hf, [LA], 1, 1, [A], id="main and compat: list of one"),
        pytest.param(Tei, [TWO, TWO], 2, 1, [BOTH[:1]] * 2, id="tei: batch, the best is kept"),
        pytest.param(Tei, [TWO, LA], 2, "all", [BOTH, A], id="tei: batch, all"),
        pytest.param(Hf, [TWO], 1, 1, [BOTH[:1]], id="more labels than asked for"),
        pytest.param(Hf, [LA], 1, 3, [A], id="fewer labels than asked for"),
        pytest.param(Hf, [[{"label": "x", "score": 1}]], 1, 1, [(("x", 1.0),)], id="integer"),
        pytest.param(
            Hf, [[{"label": "x", "score": -12.8}]], 1, 1, [(("x", -12.8),)], id="raw logit"
        ),
        pytest.param(
            Hf, [[{"label": "x", "score": None}], LB], 2, 1, [NON_FINITE, B], id="score null"
        ),
        pytest.param(
            Hf, [[{"label": "x", "score": None}, TWO[1]]], 1, "all", [NON_FINITE],
            id="score null beside a number",
        ),
        pytest.param(
            Hf, [[{"label": "x", "score": 0.5, "index": 3}]], 1, 1, [(("x", 0.5),)],
            id="a field that nobody knows",
        ),
    ],
)  # fmt: skip
def test_right_answers(kit, dialect, answer, count, top_k, outcomes):
    assert read(kit, dialect, answer, count, top_k) == outcomes


WRONG = [
    pytest.param(Hf, b"<html>busy</html>", 2, id="html"),
    pytest.param(Hf, b'[[{"label": "x", ', 2, id="bad json"),
    pytest.param(Hf, b"", 2, id="nothing"),
    pytest.param(Hf, b"\xff\xfe", 2, id="no text"),
    pytest.param(Hf, b'[[{"label": "x", "score": NaN}]]', 1, id="NaN"),
    pytest.param(Hf, b'[[{"label": "x", "score": Infinity}]]', 1, id="Infinity"),
    pytest.param(Hf, b'[[{"label": "x", "score": 1e999}]]', 1, id="1e999"),
    pytest.param(Hf, b'[[{"label": "\\ud800", "score": 1}]]', 1, id="lone surrogate"),
    pytest.param(Hf, b"[" * 5000 + b"]" * 5000, 1, id="very deep"),
    pytest.param(Hf, [], 2, id="[]"),
    pytest.param(Hf, {}, 2, id="{}"),
    pytest.param(Hf, {"error": "x"}, 2, id="error with 200"),
    pytest.param(Hf, None, 2, id="null"),
    pytest.param(Hf, "positive", 2, id="text"),
    pytest.param(Hf, [*LA, *LB], 2, id="flat for nested"),
    pytest.param(Hf, [[*LA, *LB]], 2, id="compat without top_k: one list around all"),
    pytest.param(Hf, [LA], 2, id="one list too few"),
    pytest.param(Hf, [LA, LB, LA], 2, id="one list too many"),
    pytest.param(Hf, [LA, []], 2, id="empty entry"),
    pytest.param(Hf, [LA, None], 2, id="entry null"),
    pytest.param(Hf, [LA, [LB]], 2, id="nested too deep"),
    pytest.param(Hf, [[{"score": 0.5}]], 1, id="label missing"),
    pytest.param(Hf, [[{"label": None, "score": 0.5}]], 1, id="label null"),
    pytest.param(Hf, [[{"label": 3, "score": 0.5}]], 1, id="label no text"),
    pytest.param(Hf, [[{"label": ["x"], "score": 0.5}]], 1, id="label a list"),
    pytest.param(Hf, [[{"label": "x"}]], 1, id="score missing"),
    pytest.param(Hf, [[{"label": "x", "score": "0.9"}]], 1, id="score a text"),
    pytest.param(Hf, [[{"label": "x", "score": True}]], 1, id="score true"),
    pytest.param(Hf, [[{"label": "x", "score": [0.5]}]], 1, id="score a list"),
    pytest.param(Tei, TWO, 1, id="tei: flat for a batch of one"),
    pytest.param(Tei, TWO, 2, id="tei: a pair's answer for two texts"),
    pytest.param(Single, [LA, LB], 1, id="single: two answers"),
    pytest.param(Single, [], 1, id="single: []"),
    pytest.param(Single, [[]], 1, id="single: empty entry"),
    pytest.param(Single, [[LA]], 1, id="single: nested too deep"),
]


@pytest.mark.parametrize(("dialect", "answer", "count"), WRONG)
def test_wrong_answers_are_unreadable(kit, dialect, answer, count):
    with pytest.raises(Retryable) as unreadable:
        read(kit, dialect, answer, count)
    assert unreadable.value.cause is Cause.UNREADABLE
    assert unreadable.value.status == 200


@pytest.mark.parametrize(
    "body",
    [b"<html>busy</html>", b"[]", b'[[{"label": "x", "score": "0.9"}]]', b'[{"label":"x"}]'],
)
@pytest.mark.parametrize("good_first", [True, False])
async def test_wrong_answers_never_become_labels(kit, body, good_first):
    """A server gone wrong stops the run; what it answered rightly before is kept."""

    def script(asked):
        return None if good_first and asked.number == 0 else kit.Said(body=body)

    async with kit.serve(script) as server:
        with pytest.raises(Exception, match="answer is") as stopped:
            async with kit.pool(server, max_outage_s=20) as running:
                await running.label(kit.texts(12))
        assert len(server.requests) <= 1 + 4 + 20 + 20
    assert stopped.value.exit_code == (75 if good_first else 4)
    assert [outcome for outcome, _ in running.saved.values()] == (
        kit.right(kit.texts(4)) if good_first else []
    )


async def test_a_wrong_answer_is_asked_for_again(kit):
    script = lambda asked: kit.Said(body=b"<html>") if asked.number == 1 else None  # noqa: E731
    async with kit.serve(script) as server, kit.pool(server) as running:
        assert await running.label(kit.texts(12)) == kit.right(kit.texts(12))
        assert len(server.requests) == 4


async def test_a_null_score_is_the_error_of_its_row_alone(kit):
    def script(asked):
        answers = [kit.labels_of(item)[:1] for item in asked.items]
        answers[0] = [{"label": "x", "score": None}]
        return kit.Said(body=answers)

    async with kit.serve(script) as server, kit.pool(server) as running:
        outcomes = await running.label(kit.texts(4))
        assert outcomes == [NON_FINITE, *kit.right(kit.texts(4))[1:]]
        assert len(server.requests) == 1


async def test_a_huge_answer_is_cut_off(kit, monkeypatch):
    """The memory is bounded; the rest of the answer is not read."""
    monkeypatch.setattr(pipeline.client.wire, "MAX_ANSWER_BYTES", 1 << 16)
    huge = b"[" + b" " * (1 << 22) + b"]"
    async with kit.serve(lambda _: kit.Said(body=huge)) as server:
        with pytest.raises(EndpointRefused, match="larger than"):
            async with kit.pool(server) as running:
                await running.label(["a"])


async def test_an_answer_just_within_the_cap_is_read(kit, monkeypatch):
    monkeypatch.setattr(pipeline.client.wire, "MAX_ANSWER_BYTES", 1 << 16)
    answer = json.dumps([kit.labels_of("a")[:1]]).encode()
    full = answer + b" " * ((1 << 16) - len(answer))
    async with (
        kit.serve(lambda _: kit.Said(body=full)) as server,
        kit.pool(server) as running,
    ):
        assert await running.label(["a"]) == kit.right(["a"])


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["label", "score", "x", "0.9", ""]),
)
FOUND = st.fixed_dictionaries({}, optional={"label": LEAVES, "score": LEAVES, "other": LEAVES})
ANYTHING = st.recursive(
    st.one_of(LEAVES, FOUND),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=12,
)


def is_outcome(outcome):
    return outcome == NON_FINITE or (
        type(outcome) is tuple
        and len(outcome) > 0
        and all(type(label) is str and type(score) is float for label, score in outcome)
        and [score for _, score in outcome] == sorted((s for _, s in outcome), reverse=True)
    )


# An entry of vLLM's answer, or nearly.
CLASSIFIED = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 3) | st.none() | st.booleans(),
        "label": st.text(max_size=3) | st.none() | st.integers(),
        "probs": ANYTHING | st.lists(st.floats() | st.integers() | st.none(), max_size=3),
    },
)


@settings(max_examples=300, deadline=None)
@given(
    answer=ANYTHING | st.lists(st.lists(FOUND, max_size=3), max_size=3),
    count=st.integers(1, 3),
    top_k=st.sampled_from([1, 2, "all"]),
    dialect=st.sampled_from([Hf, Tei, Single]),
)
def test_whatever_comes_is_outcomes_or_a_typed_error(kit, answer, count, top_k, dialect):
    """Never a label that the server did not give for that text, whatever JSON it sends."""
    count = 1 if dialect is Single else count
    body = json.dumps(answer).encode()
    try:
        outcomes = dialect(kit.config(top_k=top_k)).read(body, count)
    except Retryable as unreadable:
        assert unreadable.cause is Cause.UNREADABLE  # noqa: PT017  (what happens inside is the test)
        return
    entries = [answer] if dialect is Single and type(answer[0]) is dict else answer
    assert len(outcomes) == len(entries) == count
    for outcome, entry in zip(outcomes, entries, strict=True):
        assert is_outcome(outcome)
        if not isinstance(outcome, RowError):
            assert set(outcome) <= {(found["label"], float(found["score"])) for found in entry}
            assert top_k == "all" or len(outcome) <= top_k


@settings(max_examples=300, deadline=None)
@given(
    found=ANYTHING
    | st.lists(ANYTHING | FOUND | CLASSIFIED | st.lists(FOUND, max_size=2), max_size=3),
    count=st.integers(1, 3),
    name=st.sampled_from(["infinity", "mlflow", "sglang", "vertex", "vllm"]),
)
def test_whatever_comes_of_other_makers_is_outcomes_or_a_typed_error(kit, found, count, name):
    key = "predictions" if name in ("mlflow", "vertex") else "data"
    body = json.dumps({key: found}).encode()
    try:
        outcomes = REGISTRY[name](kit.config()).read(body, count)
    except Retryable as unreadable:
        assert unreadable.cause is Cause.UNREADABLE  # noqa: PT017  (what happens inside is the test)
        return
    assert len(outcomes) == len(found) == count
    assert all(map(is_outcome, outcomes))


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=60), dialect=st.sampled_from(list(REGISTRY.values())))
def test_whatever_bytes_come_is_a_typed_error(kit, body, dialect):
    with pytest.raises(Retryable):
        dialect(kit.config()).read(body, 1)
