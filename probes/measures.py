"""How good probabilities are. NumPy alone.

Labels are success rates in [0, 1]: the share of an arm's k sampled answers that were correct. A single sample's outcome
is a success rate of 0 or 1, so everything here holds for hard labels too.
"""

from dataclasses import dataclass
from math import erf

import numpy as np

from probes.base import FloatArray

BINS = 15


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

    @property
    def squared_gap(self) -> float:
        """Mean squared difference of observed and predicted: the reliability of `brier_parts`; 0 is best."""
        return float(self.weight @ (self.observed - self.predicted) ** 2)

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between probability and success rate, debiased.

        A perfectly calibrated probe has gaps too, from sampling: what noise of each bin's size is expected to add to a
        gap as large as the one seen is subtracted. Source: Kumar, Liang, Ma, "Verified uncertainty calibration", 2019
        (normal debiasing, here in closed form).
        """
        gap = np.abs(self.observed - self.predicted)
        bias = _folded_normal_mean(gap, self.standard_error) - gap
        return float(max(0.0, self.weight @ (gap - bias)))


def reliability(p: FloatArray, success_rate: FloatArray, bins: int = BINS) -> Reliability:
    """The reliability curve, (n,), (n,). Problems of equal probability are shared evenly by the bins they reach."""
    order = np.argsort(p)
    p, rate = p[order], success_rate[order]
    n = len(p)
    # A bin's sum is a difference of cumulative sums, which are known where probability rises and rise evenly between.
    knots = np.concatenate([[0], np.flatnonzero(p[1:] != p[:-1]) + 1, [n]])
    edges = np.unique(np.linspace(0, n, bins + 1).round())
    size = np.diff(edges)

    def mean(values: FloatArray) -> FloatArray:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        means: FloatArray = np.diff(np.interp(edges, knots, sums[knots])) / size
        return means

    predicted, observed = mean(p), mean(rate)
    variance = np.maximum(mean((rate - p) ** 2) - (observed - predicted) ** 2, 0.0)
    return Reliability(predicted, observed, np.sqrt(variance / np.maximum(size - 1, 1)), size / n)


def ece(p: FloatArray, success_rate: FloatArray, bins: int = BINS) -> float:
    """`Reliability.ece` over bins of equal mass."""
    return reliability(p, success_rate, bins).ece


@dataclass(frozen=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty, exactly."""

    reliability: float
    """Mean squared gap between probability and success rate over the bins; 0 is best."""
    resolution: float
    """How far success differs with the probability; the larger the better."""
    uncertainty: float
    """Variance of a single sample's outcome: the Brier score of always predicting the mean."""


def brier_parts(p: FloatArray, success_rate: FloatArray, curve: Reliability) -> BrierParts:
    """The parts of the Brier score over the bins of the reliability curve of the same probabilities.

    Murphy's identity (1973) asks that a bin's probabilities be all the same. Where they differ, his resolution, the
    variance of the bins' success rates, needs two terms more, as it has here: plus twice the covariance of probability
    and outcome within bins, less the variance of the probability within bins. Source: Stephenson, Coelho, Jolliffe,
    "Two extra components in the Brier score decomposition", 2008.
    """
    gap = curve.squared_gap
    mean = float(success_rate.mean())
    uncertainty = mean * (1 - mean)
    return BrierParts(gap, gap + uncertainty - brier(p, success_rate), uncertainty)


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


def _folded_normal_mean(mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """E|N(mean, deviation^2)|, elementwise."""
    sigma = np.maximum(deviation, 1e-12)
    z = mean / sigma
    expected: FloatArray = sigma * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2)
    expected += mean * np.array([erf(x) for x in z / np.sqrt(2)])
    return expected
