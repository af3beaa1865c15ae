"""TF-IDF without scikit-learn is scikit-learn's; its vocabulary is checked term by term."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from probes import tfidf
from probes.artifact import LIMITS, VOCABULARY, load_artifact, save_artifact
from probes.base import Examples, Inputs, ProbeError
from probes.tfidf import Tfidf, features, learn_vocabulary
from tests.support.examples import card_of, examples

TEXTS = [
    "How many cards does Bob have? Now Bob has 13. Bob sells 2.",
    "x = 7\nx += 3; x *= 2\nprint(x)",
    "Straße, naïve café — 東京 2024, İstanbul's don't\tstop",
    "13 13 13 cards, a a a",
    "",
    "...!?",
]
UNSEEN = ["Bob buys 13 cards and a KITTEN, naïve", "nothing in common", ""]


def examples_of(texts: list[str], seed: int = 0) -> Examples:
    labels = np.random.default_rng(seed).binomial(4, 0.5, size=(len(texts), 1)) / 4
    return Examples(Inputs(texts=texts), labels)


def test_transform_and_vocabulary_are_scikit_learns() -> None:
    theirs = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(TEXTS)
    index, idf = learn_vocabulary(TEXTS)
    assert index == theirs.vocabulary_
    np.testing.assert_allclose(idf, theirs.idf_, rtol=1e-6)
    for text in TEXTS + UNSEEN:
        terms, values = features(text, index, idf)
        mine = np.zeros(len(index))
        mine[terms] = values
        np.testing.assert_allclose(mine, theirs.transform([text]).toarray()[0], atol=1e-6)


def test_predictions_are_those_of_scikit_learns_pipeline() -> None:
    train, validation = examples(200, seed=0), examples(100, seed=1)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    x = vectorizer.fit_transform(train.inputs.texts)
    x_validation = vectorizer.transform(validation.inputs.texts)
    [ridge, _] = Tfidf.fit(train, validation, "regression")
    theirs = Ridge(alpha=ridge.alpha).fit(x, train.labels[:, 0]).predict(x_validation)
    np.testing.assert_allclose(ridge.probe.raw(validation.inputs), theirs, atol=1e-4)
    # Hard labels: shares have no counterpart there.
    hard_train, hard_validation = (Examples(one.inputs, np.round(one.labels)) for one in (train, validation))
    [logistic, _] = Tfidf.fit(hard_train, hard_validation, "classification")
    model = LogisticRegression(C=1 / (logistic.alpha or 0), tol=1e-8, max_iter=1000).fit(x, hard_train.labels[:, 0])
    np.testing.assert_allclose(
        logistic.probe.raw(validation.inputs), model.decision_function(x_validation), atol=5e-3, rtol=5e-3
    )


def test_shares_teach_what_as_many_single_samples_do() -> None:
    train, validation = examples(100, seed=0), examples(100, seed=1)
    weights, bias = [], []
    index, idf = learn_vocabulary(train.inputs.texts)
    x = tfidf._matrix(train.inputs.texts, index, idf)
    y = train.labels[:, 0]
    samples = np.concatenate([np.arange(8) < 8 * share for share in y]).astype(float)
    for rows, labels, alpha in ((np.arange(len(y)), y, 1.0), (np.repeat(np.arange(len(y)), 8), samples, 8.0)):
        found = tfidf._fit_linear(x[rows], labels, alpha, "classification")
        weights.append(found[0])
        bias.append(found[1])
    np.testing.assert_allclose(weights[0], weights[1], atol=5e-3)
    assert bias[0] == pytest.approx(bias[1], abs=5e-3)
    assert len(validation.labels) == 100


def test_the_vocabulary_keeps_to_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfidf, "MAX_TERMS", 3)
    index, idf = learn_vocabulary(["b b b a a c c d", "a" * 65, "b"])
    assert list(index) == ["a", "b", "b b"]
    assert idf.shape == (3,)
    monkeypatch.undo()
    worst = json.dumps(["\U00010400" * tfidf.MAX_TERM_LENGTH] * 1000, ensure_ascii=False).encode()
    assert len(worst) * tfidf.MAX_TERMS / 1000 < LIMITS[VOCABULARY]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": 0}', "must be a list"),
        ("[]", "must be a list"),
        ('["a", "a"]', "'a' stands there twice"),
        ('["a", 7]', "is no word"),
        ('["a", "b c d"]', "is no word"),
        ('["a", ""]', "is no word"),
        ('["a", "B"]', "is no word"),
        ('["a", "b\\n"]', "is no word"),
        ('["a", "b", "c"]', "shape"),
    ],
)
def test_a_vocabulary_that_cannot_be_right_is_refused(content: str, message: str, tmp_path: Path) -> None:
    ones = np.ones(2, dtype=np.float32)
    probe = Tfidf(["a", "b"], ones, ones, ones[:1])
    save_artifact(tmp_path / "a", card_of(probe), probe)
    load_artifact(tmp_path / "a")
    (tmp_path / "a" / VOCABULARY).write_text(content)
    with pytest.raises(ProbeError, match=message):
        load_artifact(tmp_path / "a")


def test_too_large_a_vocabulary_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones = np.ones(1, dtype=np.float32)
    probe = Tfidf(["a"], ones, ones, ones)
    save_artifact(tmp_path / "a", card_of(probe), probe)
    with (tmp_path / "a" / VOCABULARY).open("r+b") as file:
        file.truncate(LIMITS[VOCABULARY] + 1)
    with pytest.raises(ProbeError, match="more than 16 MiB"):
        load_artifact(tmp_path / "a")


def test_texts_without_words_are_told_of() -> None:
    with pytest.raises(ProbeError, match="no word"):
        Tfidf.fit(examples_of(["", "!", "?"]), examples_of(["a", "b", "c"]))


def test_an_unknown_text_gets_the_intercept() -> None:
    ones = np.ones(1, dtype=np.float32)
    probe = Tfidf(["a"], ones, 2 * ones, 3 * ones)
    np.testing.assert_array_equal(probe.raw(Inputs(texts=["zzz", "", "a A"])), [3, 3, 5])
