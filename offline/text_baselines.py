"""What text alone tells of success: the prompt's length, and its words. What every probe is compared with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from probes import calibration
from probes.base import FloatArray

TFIDF_ALPHAS = (0.1, 1.0, 10.0, 100.0)
# scikit-learn's own pattern drops words of one letter, and with them the digits.
WORD = r"(?u)\b\w+\b"
Rows = NDArray[np.bool_]


def length(prompt_tokens: FloatArray, success_rate: FloatArray, validation: Rows) -> FloatArray:
    """Success probabilities from the number of prompt tokens alone: (n,), (n,) -> (n,). Platt-scaled on validation."""
    platt = calibration.fit_platt(prompt_tokens[validation], success_rate[validation])
    return calibration.apply(platt, prompt_tokens)


def tfidf(problems: Sequence[str], success_rate: FloatArray, train: Rows, validation: Rows) -> FloatArray:
    """Success probabilities from TF-IDF of words and pairs of words, by ridge regression: n texts, (n,) -> (n,).

    Like the probes, fitted on train; alpha by Spearman and Platt's scale on validation.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD)
    vectorizer.fit([problem for problem, is_train in zip(problems, train, strict=True) if is_train])
    words = vectorizer.transform(problems)
    raws = [
        Ridge(alpha=alpha, solver="sparse_cg").fit(words[train], success_rate[train]).predict(words)
        for alpha in TFIDF_ALPHAS
    ]
    scores = [calibration.spearman(raw[validation], success_rate[validation]) for raw in raws]
    raw = raws[int(np.nanargmax(scores))] if np.isfinite(scores).any() else raws[0]
    return calibration.apply(calibration.fit_platt(raw[validation], success_rate[validation]), raw)
