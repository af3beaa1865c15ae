"""What is said of probabilities, against scikit-learn, SciPy and truths known by construction."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import brier_score_loss, roc_auc_score

from probes import measures
from probes.base import FloatArray
from probes.logistic import sigmoid

K = 8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sampled(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.binomial(K, p) / K


def test_a_share_counts_as_its_samples(rng: np.random.Generator) -> None:
    score = rng.normal(size=200)
    correct = rng.binomial(K, sigmoid(score))
    outcomes = (np.arange(K) < correct[:, None]).ravel().astype(float)
    assert measures.auroc(score, correct / K) == pytest.approx(roc_auc_score(outcomes, np.repeat(score, K)))
    p = sigmoid(score)
    assert measures.brier(p, correct / K) == pytest.approx(brier_score_loss(outcomes, np.repeat(p, K)))


def test_rank_measures_agree_with_scipy_on_ties(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 9, size=(2, 500)).astype(float)
    assert measures.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    hard = (b > 4).astype(float)
    assert measures.auroc(a, hard) == pytest.approx(roc_auc_score(hard, a))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(measures.spearman(np.ones(5), np.arange(5.0)))
        assert np.isnan(measures.auroc(a, np.ones(500)))


def test_ece_of_a_calibrated_probe_is_about_zero(rng: np.random.Generator) -> None:
    p = rng.uniform(size=(200, 600))
    values = [measures.ece(row, sampled(row, rng)) for row in p]
    raw_gap = [np.abs(c.observed - c.predicted).mean() for c in (measures.reliability(r, sampled(r, rng)) for r in p)]
    assert np.mean(values) < 0.6 * np.mean(raw_gap)


def test_ece_of_a_probe_that_is_off_is_by_how_much(rng: np.random.Generator) -> None:
    p = rng.uniform(0.3, 0.7, size=20_000)
    assert measures.ece(p, sampled(p + 0.1, rng)) == pytest.approx(0.1, abs=0.01)


def test_reliability_bins_hold_equally_many_problems(rng: np.random.Generator) -> None:
    p = rng.permutation(rng.beta(0.3, 0.3, size=157))
    rate = sampled(p, rng)
    curve = measures.reliability(p, rate)
    order = np.argsort(p)
    edges = np.linspace(0, 157, 16).round().astype(int)
    for i, (start, end) in enumerate(pairwise(edges)):
        rows = order[start:end]
        assert curve.weight[i] == pytest.approx(len(rows) / 157)
        assert curve.predicted[i] == pytest.approx(p[rows].mean())
        assert curve.observed[i] == pytest.approx(rate[rows].mean())
        residual = rate[rows] - p[rows]
        assert curve.standard_error[i] == pytest.approx(residual.std(ddof=1) / np.sqrt(len(rows)))


def test_the_order_of_problems_of_equal_probability_tells_nothing(rng: np.random.Generator) -> None:
    """A file sorted by difficulty must not make a constant look uncalibrated."""
    rate = np.sort(sampled(np.full(600, 0.6), rng))
    curve = measures.reliability(np.full(600, rate.mean()), rate)
    np.testing.assert_allclose(curve.observed, rate.mean())
    assert measures.ece(np.full(600, rate.mean()), rate) == 0
    p = np.repeat(rng.uniform(size=40), 15)
    rate = sampled(p, rng)
    shuffled = rng.permutation(600)
    assert measures.ece(p, rate) == pytest.approx(measures.ece(p[shuffled], rate[shuffled]), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 14, 15, 16])
def test_few_problems_have_fewer_bins(n: int, rng: np.random.Generator) -> None:
    p = rng.uniform(size=n)
    curve = measures.reliability(p, sampled(p, rng))
    assert len(curve.weight) == min(n, 15)
    assert curve.weight.sum() == pytest.approx(1)
    assert 0 <= curve.ece <= 1


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_brier_splits_into_its_parts(bins: int, rng: np.random.Generator) -> None:
    """Murphy's terms and Stephenson's two, each computed as its paper defines it, from single samples."""
    p = rng.beta(0.5, 0.3, size=20 * bins)
    rate = sampled(p**2, rng)
    parts = measures.brier_parts(p, rate, measures.reliability(p, rate, bins))
    forecast = np.repeat(p, K)
    outcome = (np.arange(K) < (rate * K)[:, None]).ravel().astype(float)
    rows = np.array_split(np.argsort(forecast, kind="stable"), bins)
    weight = np.array([len(row) for row in rows]) / len(forecast)
    predicted = np.array([forecast[row].mean() for row in rows])
    observed = np.array([outcome[row].mean() for row in rows])
    within_variance = weight @ [forecast[row].var() for row in rows]
    within_covariance = weight @ [np.cov(forecast[row], outcome[row], ddof=0)[0, 1] for row in rows]
    murphy_resolution = weight @ (observed - outcome.mean()) ** 2

    assert parts.reliability == pytest.approx(weight @ (predicted - observed) ** 2, abs=1e-12)
    assert parts.resolution == pytest.approx(murphy_resolution - within_variance + 2 * within_covariance, abs=1e-12)
    assert parts.uncertainty == pytest.approx(outcome.var(), abs=1e-12)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(
        brier_score_loss(outcome, forecast), abs=1e-12
    )


def test_with_one_probability_per_bin_the_parts_are_murphys(rng: np.random.Generator) -> None:
    p = np.repeat([0.1, 0.5, 0.8], 40)
    rate = sampled(p, rng)
    parts = measures.brier_parts(p, rate, measures.reliability(p, rate, bins=3))
    observed = rate.reshape(3, 40).mean(axis=1)
    assert parts.resolution == pytest.approx(np.mean((observed - rate.mean()) ** 2))
