"""Corrections fitted on outcomes: what they find, what they refuse, and that they say what was checked."""

import numpy as np
import pytest

from offline.evaluate import DataError
from offline.recalibrate import LEAST, Correction, Observed, composed, correct_calibration, drawn, logits
from probes import calibration
from probes.base import FloatArray, ProbeError
from probes.card import Calibration
from probes.logistic import sigmoid
from routing_policies.off_policy import worth

PLATT = Calibration(method="platt", scale=1.7, bias=-0.4)
ISOTONIC = Calibration(method="isotonic", knots=[(-3.0, 0.05), (-1.0, 0.3), (0.5, 0.3), (2.0, 0.6), (4.0, 0.97)])
NONE = Calibration(method="none")


def outcomes(p: FloatArray, truth: FloatArray, seed: int = 1) -> Observed:
    correct = (np.random.default_rng(seed).random(len(p)) < truth).astype(np.float64)
    return Observed(p, correct, np.ones(len(p)))


def overconfident(n: int, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Probabilities as given, and what they should have been: half the logit, less a half."""
    p = sigmoid(np.random.default_rng(seed).normal(1.0, 1.5, n))
    return p, sigmoid(0.5 * logits(p) - 0.5)


def test_a_known_miscalibration_is_found_and_undone() -> None:
    raw = np.random.default_rng(0).normal(1.0, 1.0, 6000)
    p = calibration.apply(PLATT, raw)
    truth = sigmoid(0.5 * logits(p) - 0.5)
    found = correct_calibration(PLATT, outcomes(p, truth), seed=0)
    assert found.better
    assert found.after.ece.value < 0.02 < 0.1 < found.before.ece.value
    assert found.after.brier.value < found.before.brier.value
    assert found.fitted_on == 4000
    assert found.after.n == 2000
    np.testing.assert_allclose(calibration.apply(found.calibration, raw), truth, atol=0.04)


def test_a_calibrated_probe_is_left_alone() -> None:
    p, _ = overconfident(3000)
    found = [correct_calibration(PLATT, outcomes(p, p, seed), seed=seed) for seed in range(10)]
    assert sum(one.better for one in found) <= 1
    assert all(one.gain.low <= one.gain.value <= one.gain.high for one in found)


@pytest.mark.parametrize("old", [PLATT, ISOTONIC, NONE], ids=["platt", "isotonic", "none"])
@pytest.mark.parametrize(
    "correction",
    [
        Calibration(method="platt", scale=0.6, bias=0.3),
        Calibration(method="temperature", scale=2.0),
        Calibration(method="isotonic", knots=[(-2.0, 0.1), (0.0, 0.4), (3.0, 0.9)]),
    ],
    ids=["platt", "temperature", "isotonic"],
)
def test_one_calibration_does_what_both_did_in_turn(old: Calibration, correction: Calibration) -> None:
    raw = np.linspace(-4, 5, 2001)
    in_turn = calibration.apply(correction, logits(calibration.apply(old, raw)))
    np.testing.assert_allclose(calibration.apply(composed(old, correction), raw), in_turn, atol=2e-3)


def test_weights_undo_what_routing_selected() -> None:
    """Routing sends an arm what a hidden sign of ease speaks for: by its answers there it looks too modest."""
    rng = np.random.default_rng(0)
    n = 60_000
    p = sigmoid(rng.normal(0.5, 1.0, n))
    easy = rng.random(n) < 0.5
    truth = np.clip(p + np.where(easy, 0.15, -0.15), 0, 1)  # calibrated over all prompts
    propensity = np.where(easy, 0.95, 0.05)
    chosen = rng.random(n) < propensity
    correct = (rng.random(n) < truth).astype(np.float64)
    seen = Observed(p[chosen], correct[chosen], propensity[chosen])
    as_routed = correct_calibration(PLATT, Observed(seen.p, seen.correct, np.ones(len(seen.p))), seed=0)
    weighed = correct_calibration(PLATT, seen, seed=0)

    def off(found: Correction) -> float:
        return float(np.abs(calibration.apply(found.calibration, (logits(p) + 0.4) / 1.7) - p).mean())

    assert off(weighed) < 0.04 < 0.1 < off(as_routed)
    assert weighed.fitted_on < as_routed.fitted_on / 3


def test_few_that_stand_for_many_are_worth_few() -> None:
    assert worth(np.ones(50)) == pytest.approx(50)
    assert worth(np.array([1.0] * 99 + [1e6])) == pytest.approx(1, abs=0.01)
    weight = np.array([1.0, 2.0, 3.0] * 1000)
    rows = drawn(weight, seed=3)
    assert len(rows) == round(worth(weight))
    np.testing.assert_allclose(np.bincount(rows % 3) / len(rows), [1 / 6, 1 / 3, 1 / 2], atol=0.01)
    np.testing.assert_array_equal(drawn(np.full(17, 0.3), seed=4), np.arange(17))


@pytest.mark.parametrize(("n", "more"), [(0, "150"), (60, "about 90 more")])
def test_too_few_outcomes_say_how_many_are_needed(n: int, more: str) -> None:
    p, truth = overconfident(n)
    with pytest.raises(DataError, match=f"at least {LEAST} are needed, {more}"):
        correct_calibration(PLATT, outcomes(p, truth), seed=0)


def test_outcomes_that_are_all_alike_are_refused() -> None:
    p, _ = overconfident(600)
    with pytest.raises(DataError, match="all earlier outcomes are 1"):
        correct_calibration(PLATT, outcomes(p, np.ones(600)), seed=0)


def test_outcomes_that_say_the_opposite_are_refused() -> None:
    p, _ = overconfident(600)
    with pytest.raises(ProbeError, match="does not become likelier"):
        correct_calibration(PLATT, outcomes(p, 1 - p), seed=0)
