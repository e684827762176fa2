"""Chunks of rows become inputs, and outcomes become columns."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.rows.inputs
from pipeline.engines import open_engine
from pipeline.errors import InputError, SettingsError
from pipeline.outcomes import RowError
from pipeline.responses import Keys, ResponseStores
from pipeline.rows import (
    Allowance,
    Dedup,
    DriftGuard,
    Resolved,
    Resolver,
    Revision,
    check_columns,
    joined,
    output_schema,
)
from pipeline.rows.drift import NOBODY_TOLD
from pipeline.rows.inputs import prepare
from pipeline.rows.results import PREDICTIONS, finish
from pipeline.system.threads import Stop

KEYS = Keys({})


def prepared_of(kit, table, *, first_row=0, **settings):
    return prepare(table, kit.config(**settings), KEYS, first_row=first_row)


def resolved(kit, table, *, fails=frozenset(), first_row=0, top_k=1, **settings):
    """The rows with the results that right answers give."""
    config = kit.config(top_k=top_k, **settings)
    ready = prepare(table, config, KEYS, first_row=first_row)
    count = None if top_k == "all" else top_k
    outcomes = [
        RowError(f"bad {item}") if item in fails else kit.outcome_of(item, count)
        for item in ready.items
    ]
    return finish(first_row, table, ready, outcomes, config)


def rows_of(table):
    return table.select(["label", "score", "error"]).to_pylist()


def expected_row(kit, item, fails=frozenset()):
    if item in fails:
        return {"label": None, "score": None, "error": f"bad {item}"}
    ((label, score),) = kit.outcome_of(item)
    return {"label": label, "score": score, "error": None}


STRINGS = [
    pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()), pa.string_view(),
]  # fmt: skip


@pytest.mark.parametrize("kind", STRINGS, ids=str)
@pytest.mark.parametrize("dedup", [True, False])
def test_every_type_of_text_column(kit, kind, dedup):
    """Rows keep their order and columns; a null is that row's error, the others are labelled."""
    texts = ["a", None, "b", "a", "", "é😀", None]
    table = pa.table({"n": list(range(7)), "text": pa.array(texts, pa.string()).cast(kind)})
    result = resolved(kit, table, dedup=dedup)
    assert result.table.select(["n", "text"]).equals(table)
    assert result.table.schema.equals(output_schema(table.schema, kit.config()))
    null = {"label": None, "score": None, "error": "null text"}
    assert rows_of(result.table) == [
        null if text is None else expected_row(kit, text) for text in texts
    ]
    assert result.errors == 2
    assert sum(result.labels.values()) == 5


def test_chunks_of_a_column_with_different_dictionaries(kit):
    one = pa.array(["a", "b"]).dictionary_encode()
    two = pa.array(["c", "a"]).dictionary_encode()
    table = pa.table({"text": pa.chunked_array([one, two])})
    assert rows_of(resolved(kit, table).table) == [expected_row(kit, t) for t in "abca"]
    assert prepared_of(kit, table).items == ["a", "b", "c"]


@pytest.mark.parametrize(
    "texts", [[], [None], [None, None]], ids=["no rows", "one null", "all null"]
)
@pytest.mark.parametrize("kind", [pa.string(), pa.null()], ids=str)
@pytest.mark.parametrize("dedup", [True, False])
@pytest.mark.parametrize("top_k", [1, 3])
def test_nothing_to_send(kit, texts, kind, dedup, top_k):
    """The schema never depends on the data."""
    table = pa.table({"text": pa.array(texts, kind)})
    result = resolved(kit, table, dedup=dedup, top_k=top_k)
    assert result.table.schema.equals(output_schema(table.schema, kit.config(top_k=top_k)))
    assert result.table.column("error").to_pylist() == ["null text"] * len(texts)
    assert result.errors == len(texts)
    assert result.labels == {}


def test_a_text_that_is_too_long_is_its_rows_error(kit, monkeypatch):
    monkeypatch.setattr(pipeline.rows.inputs, "MAX_REQUEST_BYTES", 10)
    table = pa.table({"text": ["a" * 10, "a" * 11, "é" * 6, "b"]})
    errors = resolved(kit, table).table.column("error").to_pylist()
    assert [error is None for error in errors] == [True, False, False, True]
    assert "longer than a request may be" in errors[1]


def test_null_and_too_long_pairs(kit, monkeypatch):
    monkeypatch.setattr(pipeline.rows.inputs, "MAX_REQUEST_BYTES", 10)
    table = pa.table({"text": ["a", None, "c", None, "e"], "p": ["b", "b", None, None, "x" * 11]})
    result = resolved(kit, table, text_pair="p")
    errors = result.table.column("error").to_pylist()
    assert errors[:4] == [None, "null text", "null text_pair", "null text"]
    assert errors[4].startswith("text_pair longer")
    assert prepared_of(kit, table, text_pair="p").items == [("a", "b")]


@pytest.mark.parametrize("dedup", [True, False])
def test_text_that_is_no_utf8_is_its_rows_error(kit, dedup):
    """Arrow takes any bytes for a string, a lone surrogate as well.

    It is that row's error, the others are labelled, and the column comes back as it is.
    """
    values = [b"good", b"\xed\xa0\x80", b"\xff\xfe", b"fine"]
    raw = pa.array(values, pa.binary())
    column = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    result = resolved(kit, pa.table({"text": column}), dedup=dedup)
    labels, errors = (result.table.column(name).to_pylist() for name in ("label", "error"))
    assert [label is not None for label in labels] == [True, False, False, True]
    assert all("no valid text" in error for error in errors[1:3])
    assert result.table.column("text").cast(pa.binary()).to_pylist() == values


@pytest.mark.parametrize("dedup", [True, False])
def test_pair_that_is_no_utf8_is_its_rows_error(kit, dedup):
    raw = pa.array([b"good", b"\xff"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = pa.table({"text": ["a", "b"], "p": column})
    errors = resolved(kit, table, text_pair="p", dedup=dedup).table.column("error").to_pylist()
    assert errors[0] is None
    assert errors[1].startswith("text_pair is no valid text")


def test_a_slice_of_a_table(kit):
    """Offsets into shared buffers are honoured, also where a text is no UTF-8."""
    raw = pa.array([b"skipped", b"\xff", b"a", b"b", b"\xff"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 5, raw.buffers())
    table = pa.table({"text": column}).slice(2, 2)
    assert rows_of(resolved(kit, table).table) == [expected_row(kit, "a"), expected_row(kit, "b")]


def test_identical_inputs_are_one_item_and_without_dedup_one_each(kit):
    table = pa.table({"text": ["a", "b", "a", "a"]})
    assert prepared_of(kit, table).items == ["a", "b"]
    separate = prepared_of(kit, table, dedup=False, first_row=7)
    assert separate.items == ["a", "b", "a", "a"]
    assert len(set(separate.keys)) == 4
    again = prepared_of(kit, table.slice(1), dedup=False, first_row=8)
    assert again.keys == separate.keys[1:]


TEXT = st.none() | st.text(st.sampled_from("ab\0"), max_size=3)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=12), dedup=st.booleans())
def test_every_pair_gets_its_own_outcome(kit, rows, dedup):
    """Pairs are told apart whatever characters they hold, and each row gets its own pair's."""
    table = pa.table(
        {
            "text": pa.array([text for text, _ in rows], pa.string()),
            "p": pa.array([pair for _, pair in rows], pa.string()),
        }
    )
    ready = prepared_of(kit, table, text_pair="p", dedup=dedup)
    sent = [row for row in rows if None not in row]
    assert ready.items == (list(dict.fromkeys(sent)) if dedup else sent)
    assert len(set(ready.keys)) == len(ready.items)
    assert len(ready.keys) == len(ready.items)
    config = kit.config(text_pair="p", dedup=dedup)
    outcomes = [((repr(item), 0.5),) for item in ready.items]
    labels = finish(0, table, ready, outcomes, config).table.column("label").to_pylist()
    assert labels == [None if None in row else repr(row) for row in rows]


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.none() | st.text("abc", max_size=2), max_size=15),
    fails=st.sets(st.text("abc", max_size=2), max_size=3),
    dedup=st.booleans(),
    cuts=st.integers(1, 6),
)
def test_every_row_gets_the_outcome_of_its_text(kit, texts, fails, dedup, cuts):
    pieces = [pa.array(texts[at : at + cuts], pa.string()) for at in range(0, len(texts), cuts)]
    table = pa.table({"text": pa.chunked_array(pieces, pa.string())})
    result = resolved(kit, table, fails=fails, dedup=dedup)
    null = {"label": None, "score": None, "error": "null text"}
    expected = [null if text is None else expected_row(kit, text, fails) for text in texts]
    assert rows_of(result.table) == expected
    assert result.errors == sum(row["error"] is not None for row in expected)
    assert sum(result.labels.values()) == len(texts) - result.errors


@given(one=st.tuples(st.text(), st.text()), other=st.tuples(st.text(), st.text()) | st.text())
def test_keys_of_different_inputs_differ(one, other):
    assert (KEYS.of([one]) == KEYS.of([other])) == (one == other)


def test_all_predictions(kit):
    table = pa.table({"text": ["a", None, "bad"]})
    result = resolved(kit, table, fails={"bad"}, top_k="all")
    column = result.table.column("predictions")
    assert column.type == PREDICTIONS
    assert column.to_pylist() == [kit.labels_of("a"), None, None]
    assert rows_of(result.table)[0]["label"] == kit.labels_of("a")[0]["label"]


@pytest.mark.parametrize(
    ("table", "settings", "kind", "words"),
    [
        (pa.table({"x": ["a"]}), {}, SettingsError, "no column 'text'"),
        (pa.table({"text": ["a"]}), {"text_pair": "p"}, SettingsError, "no column 'p'"),
        (pa.table({"text": [1]}), {}, InputError, "not text"),
        (pa.table({"text": [["a"]]}), {}, InputError, "not text"),
        (pa.table({"text": pa.array([b"a"])}), {}, InputError, "not text"),
        (pa.table({"text": ["a"], "label": [1]}), {}, SettingsError, 'label_column="NAME"'),
        (pa.table({"text": ["a"], "error": [1]}), {}, SettingsError, 'error_column="NAME"'),
        (
            pa.table({"text": ["a"], "predictions": [1]}), {"top_k": 2}, SettingsError,
            'predictions_column="NAME"',
        ),
    ],
)  # fmt: skip
def test_unfit_columns_are_refused(kit, table, settings, kind, words):
    with pytest.raises(kind, match=words):
        check_columns(table.schema, kit.config(**settings))


def test_a_column_of_predictions_is_kept_where_none_is_made(kit):
    check_columns(pa.table({"text": ["a"], "predictions": [1]}).schema, kit.config())


async def test_chunks_are_resolved_together(kit, tmp_path):
    """Chunks that share texts ask for them once, and fill each other's batches."""
    texts = [f"text {i * 7919 % 90}" for i in range(300)]
    tables = [pa.table({"text": texts[at : at + 50]}) for at in range(0, 300, 50)]
    async with kit.serve() as server:
        config, stop, emit = kit.config(server.url, batch_size=16), Stop(), lambda _: None
        drift = DriftGuard(NOBODY_TOLD, emit, allow_drift=False)
        async with (
            Dedup(
                partial(ResponseStores, tmp_path / "s"), emit, drift, Allowance(config, 0, 0), stop
            ) as dedup,
            open_engine(config, emit, stop) as engine,
        ):
            with ThreadPoolExecutor(2) as threads:
                resolver = Resolver(config, engine, dedup, drift, threads, stop)
                tasks = [
                    asyncio.create_task(resolver.resolve(50 * i, table))
                    for i, table in enumerate(tables)
                ]
                await asyncio.sleep(0)
                engine.demand.end()
                results = await asyncio.gather(*tasks)
        assert [row for result in results for row in rows_of(result.table)] == [
            expected_row(kit, text) for text in texts
        ]
        assert [result.first_row for result in results] == [0, 50, 100, 150, 200, 250]
        assert len(server.requests) == 6


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_part_of_several_chunks_keeps_what_the_endpoint_told(order):
    """Chunks after the first may have been resolved before it, from stored answers."""
    told = [NOBODY_TOLD, Revision("one", told=True), Revision("one")]
    chunks = [
        Resolved(i, pa.table({"a": [i]}), 0, {}, told[which]) for i, which in enumerate(order)
    ]
    assert joined(chunks).revision == Revision("one", told=True)
