"""`tfidf`: a linear readout of the words and pairs of words in a conversation's text, weighed by TF-IDF.

The text becomes numbers here, in training and in serving alike, exactly as scikit-learn's TfidfVectorizer would have
it; scikit-learn itself fits the readout, and is not needed to serve it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.artifact import VOCABULARY
from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError, Reads
from probes.card import ProbeCard, Task
from probes.parts import check_labels, check_tensors
from probes.selection import choose

WORD = re.compile(r"\b\w+\b")
"""scikit-learn's own pattern drops words of one letter, and with them the digits."""
MAX_TERMS, MAX_TERM_LENGTH = 50_000, 64
"""The most frequent terms, none longer: 13 MiB in the worst of alphabets, which the artifact's limit admits."""
ALPHAS = (0.1, 1.0, 10.0, 100.0)
TOLERANCE, MAX_ITERATIONS = 1e-6, 1000

Array = NDArray[np.float32]
Row = tuple[NDArray[np.int64], FloatArray]
"""One text's terms, as indices in the vocabulary, and their weights, of Euclidean length 1."""


class Tfidf(Probe):
    """raw = tfidf(text) . weight + bias: the rate (ridge, regression) or a logit (logistic regression, classification).

    tfidf(text) = occurrences of each term * idf, divided by its Euclidean length; idf = ln((1 + n) / (1 + texts that
    have the term)) + 1.
    """

    kind: ClassVar[str] = "tfidf"
    reads: ClassVar[Reads] = "text"

    def __init__(self, terms: Sequence[str], idf: Array, weight: Array, bias: Array) -> None:
        self._terms, self._idf, self._weight, self._bias = list(terms), idf, weight, bias
        self._index = {term: i for i, term in enumerate(terms)}

    def raw(self, inputs: Inputs) -> FloatArray:
        weight, bias = self._weight.astype(np.float64), float(self._bias[0])
        rows = (features(text, self._index, self._idf) for text in inputs.texts)
        return np.array([values @ weight[terms] + bias for terms, values in rows], dtype=np.float64)

    def tensors(self) -> dict[str, Array]:
        return {"idf": self._idf, "weight": self._weight, "bias": self._bias}

    def files(self) -> dict[str, bytes]:
        return {VOCABULARY: json.dumps(self._terms, ensure_ascii=False, separators=(",", ":")).encode()}

    @classmethod
    def from_artifact(cls, card: ProbeCard, tensors: Mapping[str, Array], files: Mapping[str, bytes]) -> Self:
        if card.pass_ is not None or card.site is not None:
            raise ProbeError("a tfidf probe reads text alone: its card has neither pass nor site")
        if VOCABULARY not in files:
            raise ProbeError(f"a tfidf probe needs {VOCABULARY}, which the card's files do not name")
        terms = _vocabulary(files[VOCABULARY])
        check_tensors(cls.kind, tensors, {"idf": (len(terms),), "weight": (len(terms),), "bias": (1,)})
        if (tensors["idf"] <= 0).any():
            raise ProbeError("a tfidf probe's idf is greater than 0 for every term")
        return cls(terms, tensors["idf"], tensors["weight"], tensors["bias"])

    @classmethod
    def fit(
        cls,
        train: Examples,
        validation: Examples,
        task: Task = "regression",
        *,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> list[Fit]:
        """See `Probe.fit`. Alpha is chosen on validation. Draws nothing but `choose`'s folds."""
        check_labels(train.labels, validation.labels)
        if len(train.inputs.texts) != len(train.labels):
            raise ProbeError("a tfidf probe reads the conversations' text, which these inputs lack")
        index, idf = learn_vocabulary(train.inputs.texts)
        if not index:
            raise ProbeError("the training texts hold no word: a tfidf probe cannot be fitted")
        x, x_validation = (_matrix(one.inputs.texts, index, idf) for one in (train, validation))
        fits = []
        for labels, held_out in zip(train.labels.T, validation.labels.T, strict=True):
            probes = []
            for alpha in ALPHAS:
                weight, bias = _fit_linear(x, labels, alpha, task)
                probes.append(cls(list(index), idf, weight.astype(np.float32), np.array([bias], dtype=np.float32)))
                on_step(1 / len(ALPHAS) / train.labels.shape[1])
            raw = [x_validation @ probe._weight.astype(np.float64) + float(probe._bias[0]) for probe in probes]
            choice = choose(raw, held_out, task, seed)
            fits.append(Fit(probes[choice.best], choice.score, choice.held_out, alpha=ALPHAS[choice.best]))
        return fits


def terms_of(text: str) -> list[str]:
    """Words in lower case, and pairs of neighbours."""
    words = WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in pairwise(words)]


def learn_vocabulary(texts: Sequence[str]) -> tuple[dict[str, int], Array]:
    """Term -> index, in alphabetical order, and each term's idf, (terms,)."""
    occurrences: Counter[str] = Counter()
    texts_with: Counter[str] = Counter()
    for text in texts:
        terms = [term for term in terms_of(text) if len(term) <= MAX_TERM_LENGTH]
        occurrences.update(terms)
        texts_with.update(set(terms))
    frequent = sorted(occurrences, key=lambda term: (-occurrences[term], term))[:MAX_TERMS]
    index = {term: i for i, term in enumerate(sorted(frequent))}
    idf = np.log((1 + len(texts)) / (1 + np.array([texts_with[term] for term in index], dtype=np.float64))) + 1
    return index, idf.astype(np.float32)


def features(text: str, index: Mapping[str, int], idf: Array) -> Row:
    counts = Counter(found for term in terms_of(text) if (found := index.get(term)) is not None)
    terms = np.array(sorted(counts), dtype=np.int64)
    values = np.array([counts[i] for i in terms], dtype=np.float64) * idf[terms]
    length = np.sqrt(values @ values)
    return terms, values / length if length > 0 else values


def _matrix(texts: Sequence[str], index: Mapping[str, int], idf: Array) -> Any:
    """Sparse (n, terms)."""
    from scipy.sparse import csr_matrix

    rows = [features(text, index, idf) for text in texts]
    ends = np.cumsum([0, *(len(terms) for terms, _ in rows)])
    terms, values = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return csr_matrix((values, terms, ends), shape=(len(texts), len(index)))


def _fit_linear(x: Any, y: FloatArray, alpha: float, task: Task) -> tuple[FloatArray, float]:
    """Weights (terms,) and intercept. To logistic regression, a share is that much of a 1, and the rest of a 0."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression, Ridge

    if task == "regression":
        ridge = Ridge(alpha=alpha, solver="sparse_cg").fit(x, y)
        return ridge.coef_, float(ridge.intercept_)
    ones, zeros = y > 0, y < 1
    labels = np.repeat([1, 0], [ones.sum(), zeros.sum()])
    shares = np.concatenate([y[ones], 1 - y[zeros]])
    logistic = LogisticRegression(C=1 / alpha, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    logistic.fit(vstack([x[ones], x[zeros]]), labels, sample_weight=shares)
    return logistic.coef_[0], float(logistic.intercept_[0])


def _vocabulary(content: bytes) -> list[str]:
    """The terms of `vocabulary.json`.

    Raises:
        ProbeError: it is not a list of different words and pairs of words in lower case.
    """
    try:
        terms = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{VOCABULARY} is not valid JSON: {error}") from error
    if not isinstance(terms, list) or not terms or len(terms) > MAX_TERMS:
        raise ProbeError(f"{VOCABULARY} must be a list of 1 to {MAX_TERMS} terms")
    for term in terms:
        if not isinstance(term, str) or len(term) > MAX_TERM_LENGTH or term not in terms_of(term):
            raise ProbeError(
                f"{VOCABULARY}: {str(term)[:MAX_TERM_LENGTH]!r} is no word in lower case, nor a pair of them"
            )
    if len(set(terms)) < len(terms):
        twice = Counter(terms).most_common(1)[0][0]
        raise ProbeError(f"{VOCABULARY}: {twice!r} stands there twice")
    return terms
