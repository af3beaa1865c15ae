"""From raw probe outputs to probabilities, and how good those are. NumPy alone, so that serving may import it.

Labels are success rates in [0, 1]: the share of an arm's k sampled answers that were correct. A single sample's outcome
is a success rate of 0 or 1, so everything here holds for hard labels too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erf

import numpy as np
from numpy.typing import ArrayLike

from probes.base import FloatArray
from probes.card import Calibration, Estimate
from probes.logistic import fit_logistic, sigmoid

RIDGE = 1e-6
"""Keeps Platt's scale finite where labels are separable."""


def apply(calibration: Calibration, raw: ArrayLike) -> FloatArray:
    """Raw outputs to probabilities, of the same shape."""
    values = np.asarray(raw, dtype=np.float64)
    if calibration.method == "none":
        return np.clip(values, 0.0, 1.0)
    return sigmoid(calibration.scale * values + calibration.bias)


def fit_platt(raw: FloatArray, success_rate: FloatArray) -> Calibration:
    """The logistic curve with the least cross-entropy to success rates: (n,), (n,) -> scale and bias.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999, with rates as targets.
    """
    mean, deviation = float(raw.mean()), float(raw.std()) or 1.0
    design = np.stack([(raw - mean) / deviation, np.ones_like(raw)], axis=1)  # (n, 2)
    scale, bias = fit_logistic(design, success_rate, RIDGE * len(raw), start=np.zeros(2)) / (deviation, 1.0)
    return Calibration(method="platt", scale=float(scale), bias=float(bias - scale * mean))


def brier(p: FloatArray, success_rate: FloatArray) -> float:
    """Mean squared error of p against single samples, each problem's correct and wrong ones weighed by its rate."""
    return float(np.mean(success_rate * (1 - p) ** 2 + (1 - success_rate) * p**2))


@dataclass(frozen=True)
class Reliability:
    """Bins of equally many problems, in order of probability; each field (bins,)."""

    predicted: FloatArray
    """Mean probability."""
    observed: FloatArray
    """Mean success rate."""
    standard_error: FloatArray
    """Of observed - predicted."""
    weight: FloatArray
    """Share of the problems."""


def reliability(p: FloatArray, success_rate: FloatArray, bins: int = 15) -> Reliability:
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    residual = success_rate - p
    return Reliability(
        predicted=np.array([p[part].mean() for part in parts]),
        observed=np.array([success_rate[part].mean() for part in parts]),
        standard_error=np.array([residual[part].std(ddof=len(part) > 1) / np.sqrt(len(part)) for part in parts]),
        weight=np.array([len(part) / len(p) for part in parts]),
    )


def ece(p: FloatArray, success_rate: FloatArray, bins: int = 15) -> float:
    """Expected calibration error: the mean gap between probability and success rate over bins of equal mass, debiased.

    A perfectly calibrated probe has gaps too, from sampling: what noise of each bin's size is expected to add to a gap
    as large as the one seen is subtracted. Source: Kumar, Liang, Ma, "Verified uncertainty calibration", 2019
    (normal debiasing, here in closed form).
    """
    curve = reliability(p, success_rate, bins)
    gap = np.abs(curve.observed - curve.predicted)
    bias = _folded_normal_mean(gap, curve.standard_error) - gap
    return float(max(0.0, curve.weight @ (gap - bias)))


def auroc(score: FloatArray, success_rate: FloatArray) -> float:
    """Probability that a correct sample scores above a wrong one, ties counting half: (n,), (n,) -> [0, 1].

    Each problem's success rate weighs it among the correct, the rest among the wrong ones: exactly the AUROC over all
    samples. NaN where all samples are correct, or all wrong.
    """
    correct, wrong = success_rate, 1.0 - success_rate
    total = correct.sum() * wrong.sum()
    if total <= 0:
        return float("nan")
    _, group = np.unique(score, return_inverse=True)
    correct_at, wrong_at = np.bincount(group, correct), np.bincount(group, wrong)
    wrong_below = np.cumsum(wrong_at) - wrong_at
    return float(correct_at @ (wrong_below + wrong_at / 2) / total)


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm > 0 else float("nan")


def ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, ties at their mean: (n,) -> (n,)."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    rank: FloatArray = (np.cumsum(count) - (count + 1) / 2)[group]
    return rank


Statistic = Callable[[FloatArray, FloatArray], float]
RANGES: dict[Statistic, tuple[float, float]] = {
    brier: (0.0, 1.0),
    ece: (0.0, 1.0),
    auroc: (0.0, 1.0),
    spearman: (-1.0, 1.0),
}
"""What a statistic can be. In the middle of a rank measure's range nothing is known."""


def bootstrap(
    statistic: Statistic, p: FloatArray, success_rate: FloatArray, seed: int, resamples: int = 1000
) -> Estimate:
    """One of `RANGES`' statistics with its 95% interval over resampled problems.

    The percentiles are shifted to have the statistic in their midst: resampling repeats a statistic's bias (that of an
    absolute gap, say), which the interval should not contain twice. Where the statistic is undefined, as a rank
    measure of constants is, nothing is known: the middle of its range, and all of it as interval.
    """
    bottom, top = RANGES[statistic]
    value = statistic(p, success_rate)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(p), size=(resamples, len(p)))
    values = np.array([statistic(p[draw], success_rate[draw]) for draw in draws])
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or not len(values):
        return Estimate(value=value if np.isfinite(value) else (bottom + top) / 2, low=bottom, high=top)
    low, high = np.clip(np.quantile(values, [0.025, 0.975]) - values.mean() + value, bottom, top)
    return Estimate(value=value, low=float(low), high=float(high))


def _folded_normal_mean(mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """E|N(mean, deviation^2)|, elementwise."""
    sigma = np.maximum(deviation, 1e-12)
    z = mean / sigma
    expected: FloatArray = sigma * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2)
    expected += mean * np.array([erf(x) for x in z / np.sqrt(2)])
    return expected
