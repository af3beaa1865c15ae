"""Calibration, against scikit-learn and curves known by construction."""

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from probes import calibration
from probes.base import FloatArray, ProbeError
from probes.calibration import SIMPLEST_FIRST, Method
from probes.card import Calibration
from probes.logistic import fit_logistic, sigmoid
from probes.measures import ece

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


def test_temperature_recovers_the_curve_that_made_the_labels(rng: np.random.Generator) -> None:
    raw = rng.normal(20.0, 50.0, size=20_000)
    fitted = calibration.fit("temperature", raw, sampled(sigmoid(0.03 * raw), rng))
    assert fitted.scale == pytest.approx(0.03, rel=0.05)
    assert fitted.bias == 0


def test_temperature_and_platt_agree_with_scikit_learn(rng: np.random.Generator) -> None:
    raw = rng.normal(1.0, 3.0, size=3000)
    correct = rng.binomial(K, sigmoid(raw - 1))
    outcomes, repeated = (np.arange(K) < correct[:, None]).ravel(), np.repeat(raw, K)[:, None]
    for method, intercept in (("temperature", False), ("platt", True)):
        ours = calibration.apply(calibration.fit(method, raw, correct / K), raw)
        theirs = LogisticRegression(C=np.inf, fit_intercept=intercept, tol=1e-8).fit(repeated, outcomes)
        np.testing.assert_allclose(ours, theirs.predict_proba(raw[:, None])[:, 1], atol=1e-4)


def test_isotonic_agrees_with_scikit_learn(rng: np.random.Generator) -> None:
    raw = rng.normal(size=500)
    rate = sampled(sigmoid(raw), rng)
    new = rng.normal(size=500) * 2
    fitted = calibration.fit("isotonic", raw, rate)
    theirs = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(raw, rate)
    np.testing.assert_allclose(calibration.apply(fitted, new), theirs.predict(new), atol=1e-12)
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted


@pytest.mark.parametrize("method", SIMPLEST_FIRST)
@pytest.mark.parametrize("labels", ["separable", "constant raw", "zero raw", "all correct", "one problem"])
def test_fits_stay_finite(method: Method, labels: str, rng: np.random.Generator) -> None:
    raw = {"constant raw": np.ones(100), "zero raw": np.zeros(100), "one problem": np.array([0.4])}.get(
        labels, rng.normal(size=100)
    )
    rates = np.ones(len(raw)) if labels == "all correct" else (raw > 0).astype(float)
    p = calibration.apply(calibration.fit(method, raw, rates), raw)
    assert ((p >= 0) & (p <= 1)).all()
    if method in ("platt", "isotonic"):
        assert np.abs(p.mean() - rates.mean()) < 0.02
    assert calibration.choose(raw, rates).method in SIMPLEST_FIRST


@pytest.mark.parametrize("value", [0.1, -300.7])
def test_rounding_is_no_slope(value: float, rng: np.random.Generator) -> None:
    """The mean of equal numbers may differ from them in the last bit."""
    raw, rates = np.full(300, value), rng.random(300)
    fitted = calibration.fit_platt(raw, rates)
    for new in (raw, raw * (1 + 1e-6), raw * (1 - 1e-6)):
        np.testing.assert_allclose(calibration.apply(fitted, new), rates.mean(), atol=1e-3)


@pytest.mark.parametrize("method", SIMPLEST_FIRST)
def test_apply_is_bounded_for_any_input(method: Method) -> None:
    raw = np.array([-1e300, -1e3, 0.0, 1e3, 1e300])
    p = calibration.apply(Calibration(method=method, knots=[(-1.0, 0.1), (1.0, 0.9)]), raw)
    assert ((p >= 0) & (p <= 1)).all()
    assert (np.diff(p) >= 0).all()
    assert np.shape(calibration.apply(Calibration(method=method, knots=[(0.0, 0.3)]), 0.3)) == ()
    assert calibration.apply(Calibration(method="none"), 0.3) == 0.3


CURVES = {
    "none": lambda raw: raw,
    "temperature": lambda raw: sigmoid(12 * raw),
    "platt": lambda raw: sigmoid(8 * raw - 2),
    "isotonic": lambda raw: np.where(raw < 0.4, 0.2, 0.9),
}


@pytest.mark.parametrize("truth", SIMPLEST_FIRST)
def test_the_simplest_method_that_fits_is_chosen(truth: Method, rng: np.random.Generator) -> None:
    raw = rng.uniform(0 if truth == "none" else -1, 1, size=4000)
    assert calibration.choose(raw, sampled(CURVES[truth](raw), rng)).method == truth


def test_the_chosen_calibration_holds_on_new_problems(rng: np.random.Generator) -> None:
    for curve in CURVES.values():
        raw, new = rng.uniform(0, 1, size=(2, 4000))
        fitted = calibration.choose(raw, sampled(curve(raw), rng))
        assert ece(calibration.apply(fitted, new), sampled(curve(new), rng)) < 0.02


def test_logits_are_never_taken_for_probabilities(rng: np.random.Generator) -> None:
    for n in (30, 300, 3000):
        raw = rng.normal(0, 3, size=n)
        assert calibration.choose(raw, sampled(sigmoid(raw), rng)).method != "none"


def test_what_a_fold_is_judged_by_has_not_seen_it(rng: np.random.Generator) -> None:
    """Isotonic regression remembers: on labels that are noise it looks good only where it was fitted."""
    raw = rng.normal(size=400)
    noise = rng.binomial(1, 0.5, size=400).astype(float)
    seen = calibration.apply(calibration.fit("isotonic", raw, noise), raw)
    unseen = calibration.held_out("isotonic", raw, noise, seed=0)
    assert np.mean((seen - noise) ** 2) < 0.25 < np.mean((unseen - noise) ** 2)
    np.testing.assert_array_equal(unseen, calibration.held_out("isotonic", raw, noise, seed=0))


def test_nothing_to_fit_on_is_an_error() -> None:
    with pytest.raises(ProbeError, match="at least one problem"):
        calibration.choose(np.zeros(0), np.zeros(0))
    with pytest.raises(ProbeError, match="not all finite"):
        calibration.fit("platt", np.array([0.0, np.nan]), np.zeros(2))


@pytest.mark.parametrize(
    "knots", [[], [(0, 0.5), (0, 0.6)], [(1, 0.5), (0, 0.6)], [(0, 0.6), (1, 0.5)], [(0, 1.1)], [(np.inf, 1)]]
)
def test_a_card_with_broken_knots_is_refused(knots: list[tuple[float, float]]) -> None:
    with pytest.raises(ValidationError):
        Calibration(method="isotonic", knots=knots)


def test_logistic_regression_agrees_with_scikit_learn(rng: np.random.Generator) -> None:
    x = rng.normal(size=(300, 20)) * rng.uniform(0.1, 30, size=20)
    y = (x @ rng.normal(size=20) + 40 * rng.normal(size=300) > 0).astype(float)
    for alpha in (1.0, 100.0, 10_000.0):
        ours = fit_logistic(x, y, alpha, start=np.zeros(20))
        theirs = LogisticRegression(C=1 / alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-10).fit(x, y)
        np.testing.assert_allclose(sigmoid(x @ ours), theirs.predict_proba(x)[:, 1], atol=1e-5)


def test_logistic_regression_takes_a_share_for_its_samples(rng: np.random.Generator) -> None:
    x = rng.normal(size=(200, 5))
    correct = rng.binomial(K, sigmoid(x[:, 0]))
    outcomes = (np.arange(K) < correct[:, None]).ravel().astype(float)
    shares = fit_logistic(x, correct / K, 1.0, start=np.zeros(5))
    samples = fit_logistic(np.repeat(x, K, axis=0), outcomes, 1.0 * K, start=np.zeros(5))
    np.testing.assert_allclose(shares, samples, atol=1e-7)
