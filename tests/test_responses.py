"""The response store: what it gives back is exactly what was put, or nothing."""

from contextlib import closing
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import StoppedEarly
from pipeline.responses import Keys, ResponseStore, ResponseStores
from pipeline.responses.store import BLOCK_ANSWERS

ANSWER = (("positive", 0.75), ("négatif", 0.25))

texts = st.text(st.characters(exclude_categories=["Cs"]))
scores = st.floats(allow_nan=False, allow_infinity=False)
answers = st.lists(st.tuples(texts, scores), min_size=1, max_size=4).map(tuple)
items = texts | st.tuples(texts, texts)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "responses.journal"


@pytest.fixture
def store(path):
    with closing(ResponseStore(path)) as opened:
        yield opened


def _answers(found):
    """Give answer and revision, by place."""
    return {i: (known.answer, known.revision) for i, known in found.items()}


def _bits(answer):
    """Tell 0.0 from -0.0, which are equal."""
    return [(label, score.hex()) for label, score in answer]


@settings(max_examples=200, deadline=None)
@given(stored=st.dictionaries(st.binary(min_size=16, max_size=16), answers, max_size=8))
@example({b"\0" * 16: (("", -0.0),), b"\xff" * 16: (("a\0b\"\\'\u2028", 5e-324),)})
@example({b"\0" * 7 + b"\x80" + b"\0" * 8: (("lowest key", 1.7976931348623157e308),)})
@example({b"\xff" * 7 + b"\x7f" + b"\xff" * 8: (("highest key", 0.1 + 0.2),)})
def test_labels_and_scores_come_back_exactly(tmp_path_factory, stored):
    path = tmp_path_factory.mktemp("store") / "responses.journal"
    with closing(ResponseStore(path)) as store:
        if stored:
            store.put([([key], [answer], None) for key, answer in stored.items()])
    with closing(ResponseStore(path)) as store:
        found = store.get(list(stored))
    assert {position: _bits(answer) for position, (answer, *_) in found.items()} == {
        position: _bits(answer) for position, answer in enumerate(stored.values())
    }


@settings(max_examples=200, deadline=None)
@given(st.lists(items, unique=True, min_size=2, max_size=20))
@example(["a", ("a", ""), ("", "a"), ""])
@example([("a", "bc"), ("ab", "c"), ("1:a", "b"), "1:ab"])
def test_different_inputs_have_different_keys(several):
    """A text, a pair and the same characters cut elsewhere are all different questions."""
    keys = Keys({"model": "m"}).of(several)
    assert len(set(keys)) == len(several)
    assert {len(key) for key in keys} == {16}
    assert not set(keys) & set(Keys({"model": "n"}).of(several))
    assert keys == Keys({"model": "m"}).of(several)


def test_the_order_of_settings_does_not_change_a_key():
    assert Keys({"a": 1, "b": 2}).of(["x"]) == Keys({"b": 2, "a": 1}).of(["x"])


def test_unknown_keys_are_left_out(store):
    first, second, third = Keys({}).of(["a", "b", "c"])
    store.put([([second], [ANSWER], None)])
    assert _answers(store.get([first, second, third])) == {1: (ANSWER, None)}
    assert store.get([]) == {}


def test_a_later_answer_replaces_an_earlier_one(store):
    (key,) = Keys({}).of(["a"])
    store.put([([key], [ANSWER], "r1")])
    store.put([([key], [ANSWER[::-1]], "r2")])
    assert _answers(store.get([key])) == {0: (ANSWER[::-1], "r2")}


def test_two_keys_that_share_their_first_half_are_told_apart(store):
    """The index knows 64 bits; the other 64 are compared."""
    one, other = b"a" * 8 + b"1" * 8, b"a" * 8 + b"2" * 8
    store.put([([one], [ANSWER], None)])
    assert store.get([other]) == {}


def test_revisions_are_kept_with_the_answers(path):
    """Several in one group, none at all, and the same again after opening."""
    keys = Keys({}).of(["a", "b", "c"])
    with closing(ResponseStore(path)) as store:
        store.put(
            [([key], [ANSWER], name) for key, name in zip(keys, ("r1", None, "r2"), strict=True)]
        )
    with closing(ResponseStore(path)) as store:
        assert [store.get(keys)[i][1] for i in range(3)] == ["r1", None, "r2"]


def test_any_bit_may_flip_while_the_store_is_open(path, store):
    """No bit of a stored answer can flip and become a wrong label, or cost another frame's."""
    key, other = Keys({}).of(["a", "b"])
    store.put([([key], [ANSWER], "r1")])
    store.put([([other], [ANSWER[::-1]], "r1")])
    right = {key: (ANSWER, "r1"), other: (ANSWER[::-1], "r1")}
    good = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in range(len(good)):
            for bit in range(8):
                file.seek(at)
                file.write(bytes([good[at] ^ 1 << bit]))
                found = _answers(store.get([key, other]))
                assert len(found) >= 1
                assert all(right[(key, other)[i]] == answer for i, answer in found.items())
            file.seek(at)
            file.write(good[at : at + 1])
    assert _answers(store.get([key, other])) == {0: right[key], 1: right[other]}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 4 * BLOCK_ANSWERS))
def test_every_place_of_every_block_is_found(tmp_path_factory, data, count):
    """Asked for in any order, several times, some of them or all; in memory and after opening."""
    path = tmp_path_factory.mktemp("store") / "responses.journal"
    keys = Keys({}).of([f"{i}" for i in range(count)])
    right = {key: ((f"label {i}", i / 7),) for i, key in enumerate(keys)}
    cuts = data.draw(st.lists(st.integers(0, count), max_size=3).map(sorted))
    with closing(ResponseStore(path)) as store:
        for start, stop in pairwise([0, *cuts, count]):
            store.put([(keys[start:stop], [right[key] for key in keys[start:stop]], None)])
        asked = data.draw(st.lists(st.sampled_from(keys), max_size=2 * count))
        stranger = Keys({}).of(["stranger"])
        for opened in (store, ResponseStore(path)):
            found = opened.get([*asked, *stranger])
            assert {i: known.answer for i, known in found.items()} == {
                i: right[key] for i, key in enumerate(asked)
            }
        opened.close()


def test_a_damaged_block_costs_its_own_answers(path):
    """While the store is open: those in the other blocks of its frame are still known."""
    keys = Keys({}).of([f"{i}" for i in range(3 * BLOCK_ANSWERS)])
    with closing(ResponseStore(path)) as store:
        store.put([(keys, [((f"label {i}", 0.5),) for i in range(len(keys))], None)])
        content = path.read_bytes()
        at = content.index(f"label {BLOCK_ANSWERS + 3}".encode())
        path.write_bytes(content[:at] + b"L" + content[at + 1 :])
        known = store.get(keys)
    assert sorted(known) == [i for i in range(len(keys)) if i // BLOCK_ANSWERS != 1]


def test_met_is_what_this_opening_put_or_looked_up(path):
    """It tells a text that comes again from one that is seen first."""
    keys = Keys({}).of(["a", "b", "c"])
    with closing(ResponseStore(path)) as store:
        store.put([([key], [ANSWER], None) for key in keys[:2]])
        assert [known.met for known in store.get(keys).values()] == [True, True]
    with closing(ResponseStore(path)) as store:
        assert [known.met for known in store.get(keys).values()] == [False, False]
        assert [known.met for known in store.get(keys).values()] == [True, True]


def test_stores_of_earlier_attempts_are_read_and_left_as_they_are(tmp_path):
    """The newest attempt's own store comes first; one that is gone is no reason to stop."""
    keys = Keys({}).of(["a", "b", "c"])
    paths = [tmp_path / name for name in ("own", "one", "other")]
    for path, key in zip(paths, keys, strict=True):
        with closing(ResponseStore(path)) as store:
            store.put([([key], [ANSWER], path.name)])
    before = [path.read_bytes() for path in paths[1:]]
    stores = ResponseStores(paths[0], [*paths[1:], tmp_path / "gone"])
    with closing(stores):
        stores.put([([keys[1]], [ANSWER[::-1]], "own")])
        assert [_answers(known) for known in stores.get(keys)] == [
            {0: (ANSWER, "own"), 1: (ANSWER[::-1], "own")},
            {1: (ANSWER, "one")},
            {2: (ANSWER, "other")},
        ]
    assert stores.passed_over == []
    assert [path.read_bytes() for path in paths[1:]] == before
    assert not (tmp_path / "gone").exists()


def test_an_earlier_store_that_cannot_be_read_is_passed_over(tmp_path):
    """It is no longer named, so it must not block the run; a line says what that costs."""
    (tmp_path / "garbage").write_bytes(b"no response store")
    (tmp_path / "directory").mkdir()
    with closing(ResponseStore(tmp_path / "torn")) as store:
        store.put([([key], [ANSWER], None) for key in Keys({}).of(["a", "b"])])
        store.put([([key], [ANSWER], None) for key in Keys({}).of(["c"])])
    torn = (tmp_path / "torn").read_bytes()[:-1]
    (tmp_path / "torn").write_bytes(torn)
    earlier = [tmp_path / name for name in ("garbage", "directory", "torn")]
    with closing(ResponseStores(tmp_path / "own", earlier)) as stores:
        known = stores.get(Keys({}).of(["a", "b", "c"]))
    assert [set(each) for each in known] == [set(), {0, 1}]
    assert ["garbage" in stores.passed_over[0], "directory" in stores.passed_over[1]] == [True] * 2
    assert (tmp_path / "torn").read_bytes() == torn


def test_a_place_where_no_file_can_be_stops_resumably(tmp_path):
    with pytest.raises(StoppedEarly, match="Is a directory") as stopped:
        ResponseStore(tmp_path)
    assert str(tmp_path) in str(stopped.value)


def test_what_was_put_is_there_after_a_kill(path):
    """Read by another opener while the first one was never closed."""
    (key,) = Keys({}).of(["a"])
    first = ResponseStore(path)
    first.put([([key], [ANSWER], None)])
    with closing(ResponseStore(path)) as second:
        assert _answers(second.get([key])) == {0: (ANSWER, None)}
    first.close()
