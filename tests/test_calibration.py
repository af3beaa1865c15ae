"""Calibration and its measures, against scikit-learn, SciPy and truths known by construction."""

import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from probes import calibration
from probes.base import FloatArray
from probes.card import Calibration
from probes.logistic import fit_logistic, sigmoid

K = 8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sampled(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.binomial(K, p) / K


def test_platt_recovers_the_curve_that_made_the_labels(rng: np.random.Generator) -> None:
    raw = rng.normal(300.0, 50.0, size=20_000)
    fitted = calibration.fit_platt(raw, sampled(sigmoid(0.03 * raw - 8.0), rng))
    assert fitted.scale == pytest.approx(0.03, rel=0.05)
    assert fitted.bias == pytest.approx(-8.0, rel=0.05)


@pytest.mark.parametrize("labels", ["separable", "constant raw", "all correct"])
def test_platt_stays_finite(labels: str, rng: np.random.Generator) -> None:
    raw = np.ones(100) if labels == "constant raw" else rng.normal(size=100)
    rates = np.ones(100) if labels == "all correct" else (raw > 0).astype(float)
    fitted = calibration.fit_platt(raw, rates)
    p = calibration.apply(fitted, raw)
    assert np.isfinite(p).all()
    assert np.abs(p.mean() - rates.mean()) < 0.02


def test_apply_is_bounded_for_any_input() -> None:
    raw = np.array([-1e300, -1e3, 0.0, 1e3, 1e300])
    for method in (Calibration(scale=1.0, bias=0.0), Calibration(method="none")):
        p = calibration.apply(method, raw)
        assert ((p >= 0) & (p <= 1)).all()
    assert calibration.apply(Calibration(method="none"), 0.3) == 0.3


def test_logistic_regression_agrees_with_scikit_learn(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 20)) * rng.uniform(0.1, 30, size=20)
    y = (x @ rng.normal(size=20) + 40 * rng.normal(size=300) > 0).astype(float)
    for alpha in (1.0, 100.0, 10_000.0):
        ours = fit_logistic(x, y, alpha, start=np.zeros(20))
        theirs = LogisticRegression(C=1 / alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-10).fit(x, y)
        np.testing.assert_allclose(sigmoid(x @ ours), theirs.predict_proba(x)[:, 1], atol=1e-5)


def test_a_share_counts_as_its_samples(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 5))
    correct = rng.binomial(K, sigmoid(x[:, 0]))
    outcomes = (np.arange(K) < correct[:, None]).ravel().astype(float)
    shares = fit_logistic(x, correct / K, 1.0, start=np.zeros(5))
    samples = fit_logistic(np.repeat(x, K, axis=0), outcomes, 1.0 * K, start=np.zeros(5))
    np.testing.assert_allclose(shares, samples, atol=1e-7)
    score = x[:, 0]
    assert calibration.auroc(score, correct / K) == pytest.approx(roc_auc_score(outcomes, np.repeat(score, K)))
    p = sigmoid(score)
    assert calibration.brier(p, correct / K) == pytest.approx(np.mean((np.repeat(p, K) - outcomes) ** 2))


def test_rank_measures_agree_with_scipy_on_ties(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 9, size=(2, 500)).astype(float)
    assert calibration.spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    hard = (b > 4).astype(float)
    assert calibration.auroc(a, hard) == pytest.approx(roc_auc_score(hard, a))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(calibration.spearman(np.ones(5), np.arange(5.0)))
        assert np.isnan(calibration.auroc(a, np.ones(500)))


def test_ece_of_a_calibrated_probe_is_about_zero(rng: np.random.Generator) -> None:
    p = rng.uniform(size=(200, 600))
    values = [calibration.ece(row, sampled(row, rng)) for row in p]
    raw_gap = [
        np.abs(c.observed - c.predicted).mean() for c in (calibration.reliability(r, sampled(r, rng)) for r in p)
    ]
    assert np.mean(values) < 0.6 * np.mean(raw_gap)


def test_ece_of_a_probe_that_is_off_is_by_how_much(rng: np.random.Generator) -> None:
    p = rng.uniform(0.3, 0.7, size=20_000)
    assert calibration.ece(p, sampled(p + 0.1, rng)) == pytest.approx(0.1, abs=0.01)


def test_reliability_bins_hold_equally_many_problems(rng: np.random.Generator) -> None:
    p = rng.beta(0.3, 0.3, size=150)
    curve = calibration.reliability(p, sampled(p, rng))
    np.testing.assert_allclose(curve.weight, 1 / 15)
    assert (np.diff(curve.predicted) >= 0).all()


def test_intervals_cover_the_truth(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(60):
        p = rng.uniform(size=200)
        estimate = calibration.bootstrap(calibration.brier, p, sampled(p, rng), seed, resamples=300)
        assert estimate.low < estimate.value < estimate.high
        covered += estimate.low <= 1 / 6 <= estimate.high  # E[p (1 - p)] of a uniform p
    assert covered >= 51


@pytest.mark.parametrize("statistic", calibration.RANGES)
def test_intervals_stay_within_what_a_statistic_can_be(
    statistic: calibration.Statistic, rng: np.random.Generator
) -> None:
    low, high = calibration.RANGES[statistic]
    sure = rng.uniform(size=40) > 0.5
    for p in (np.where(sure, 0.999, 0.001), np.where(sure, 0.001, 0.999), rng.uniform(size=40)):
        for rate in (sure.astype(float), sampled(p, rng)):
            estimate = calibration.bootstrap(statistic, p, rate, seed=0, resamples=200)
            assert low <= estimate.low <= estimate.high <= high


def test_what_cannot_be_measured_tells_nothing(rng: np.random.Generator) -> None:
    p = rng.uniform(size=50)
    auroc = calibration.bootstrap(calibration.auroc, p, np.ones(50), seed=0, resamples=20)
    assert (auroc.value, auroc.low, auroc.high) == (0.5, 0.0, 1.0)
    spearman = calibration.bootstrap(calibration.spearman, np.full(50, 0.7), p, seed=0, resamples=20)
    assert (spearman.value, spearman.low, spearman.high) == (0.0, -1.0, 1.0)
