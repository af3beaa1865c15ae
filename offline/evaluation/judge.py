"""How accurate choices are by predictions that are corrected by what was measured.

Predicted success probabilities spread a third as much as measured outcomes do, if probes are calibrated. Where they are
not, choosing finds their errors first. So the mean prediction of the chosen arms is corrected by their mean residual,
measured - predicted, as far as that exceeds its noise (`corrected`).
"""

from dataclasses import dataclass

import numpy as np

from offline.evaluation.sweep import of_chosen
from routing_policies.base import FloatArray, IndexArray


@dataclass(frozen=True)
class Validation:
    """What is known of n problems and k arms."""

    success: FloatArray
    """Predicted success probabilities, (n, k)."""
    cost: FloatArray
    """Expected USD of one answer, (n, k)."""
    success_rate: FloatArray
    """Measured, (n, k)."""
    tier_cost: tuple[float, ...]
    """Mean USD of one answer per arm, (k,)."""
    prefill_usd: float = 0.0
    """What the probes' own prefill costs per query, on average."""

    @property
    def best_arm(self) -> int:
        """The single arm of the highest corrected accuracy."""
        return int(best_arms(self, uniform(len(self.success)))[0])

    def accuracy(self, arms: IndexArray) -> float:
        """See `judge`: (n,) arm indices."""
        return float(judge(self, arms[None])[0][0, 0])


def uniform(n: int) -> FloatArray:
    """The weights of n problems as they are, (1, n)."""
    return np.full((1, n), 1 / n)


def corrected(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean of the predictions plus the part of their mean residual that exceeds its noise, (n,), (n,).

    Empirical Bayes for one residual r with standard error s: its prior variance is estimated by max(0, r^2 - s^2), so
    the share 1 - s^2 / r^2 of it is believed (Efron & Morris, JASA 68, 1973).
    """
    residual = measured - predicted
    mean, square = residual.mean(keepdims=True), np.mean(residual**2, keepdims=True)
    return float(predicted.mean() + _believed(mean, square, len(residual))[0])


def judge(
    data: Validation, arms: IndexArray, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """By what targets are judged: accuracy and cost of choices, and the accuracy of the best single arm.

    Accuracy is the best single arm's, and what these choices gain on it. Both are corrected by what was measured. The
    gain, a difference on the same problems, has far less noise than either side of it.

    Args:
        arms: several choices for n problems, (settings, n).
        weights: of the problems in each of several resampled sets, (draws, n), each row adding up to 1; None: one set,
            as it is.

    Returns:
        Accuracy (draws, settings), mean expected USD with the probes' prefill (draws, settings), and the best single
        arm's accuracy (draws,).
    """
    n = len(data.success)
    if weights is None:
        weights = uniform(n)
    predicted, measured = of_chosen(data.success, arms), of_chosen(data.success_rate, arms)  # (settings, n)
    cost: FloatArray = weights @ of_chosen(data.cost, arms).T + data.prefill_usd
    best = best_arms(data, weights)
    accuracy, single = np.empty(cost.shape), np.empty(len(weights))
    for arm in np.unique(best):
        drawn = best == arm
        held = weights[drawn]
        p, rate = data.success[:, arm], data.success_rate[:, arm]
        single[drawn] = held @ p + _believed(held @ (rate - p), held @ (rate - p) ** 2, n)
        residual = (measured - predicted) - (rate - p)
        gain = held @ (predicted - p).T + _believed(held @ residual.T, held @ residual.T**2, n)
        accuracy[drawn] = np.clip(single[drawn, None] + gain, 0.0, 1.0)
    return accuracy, cost, single.clip(0.0, 1.0)


def best_arms(data: Validation, weights: FloatArray) -> IndexArray:
    """In each resampled set, the single arm of the highest corrected accuracy: (draws, n) -> (draws,)."""
    residual = data.success_rate - data.success
    believed = _believed(weights @ residual, weights @ residual**2, len(residual))
    arms: IndexArray = (weights @ data.success + believed).argmax(axis=1)
    return arms


def _believed(mean: FloatArray, square: FloatArray, n: int) -> FloatArray:
    """The part of mean residuals that exceeds their noise, elementwise.

    Args:
        square: mean squared residuals.
        n: over how many problems they are means.
    """
    variance = np.maximum(square - mean**2, 0.0) / n
    shares = np.divide(variance, mean**2, out=np.ones_like(mean), where=mean != 0)
    believed: FloatArray = np.maximum(0.0, 1 - shares) * mean
    return believed
