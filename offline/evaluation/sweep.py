"""A policy at many values of its knob at once: which arms it chooses, and which values could make a difference."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from routing_policies.base import FloatArray, IndexArray, build

KNOBS = 500
"""Values of a knob that are tried."""
Knobs = Mapping[str, Any]
"""By the words of the API's `routing` object."""


def choices(
    policy: str, knobs: Sequence[Knobs], success: FloatArray, cost: FloatArray, tier_cost: tuple[float, ...]
) -> IndexArray:
    """The arms that a policy chooses at each setting of its knobs, (settings, n).

    Args:
        success: success probabilities, (n, k).
        cost: expected USD of one answer, (n, k).
        tier_cost: mean USD of one answer per arm, (k,).

    Raises:
        PolicyError: a knob is out of range, or a value is NaN.
    """
    arms = np.empty((len(knobs), len(success)), dtype=np.intp)
    for row, setting in zip(arms, knobs, strict=True):
        row[:] = build(policy, setting, tier_cost).choose(success, cost)
    return arms


def of_chosen(values: FloatArray, arms: IndexArray) -> FloatArray:
    """Each problem's value for its chosen arm: (n, k), (..., n) -> (..., n)."""
    n, k = values.shape
    chosen: FloatArray = values.ravel().take(arms + k * np.arange(n))
    return chosen


def multipliers(success: FloatArray, cost: FloatArray, count: int = KNOBS) -> FloatArray:
    """Cost weights between which choices change, rising from 0: quantiles of where two arms of a problem draw level.

    Args:
        success: (n, k).
        cost: (n, k), or (k,) where it is the same for all problems.
    """
    cost = np.broadcast_to(cost, success.shape)
    crossings = [np.zeros(0)]
    for i, j in combinations(range(success.shape[1]), 2):
        gain, price = success[:, i] - success[:, j], cost[:, i] - cost[:, j]
        crossings.append(gain[price != 0] / price[price != 0])
    weights = np.concatenate(crossings)
    weights = weights[np.isfinite(weights) & (weights > 0)]
    return grid(weights, 0.0, 2 * weights.max(), count) if len(weights) else np.zeros(1)


def grid(values: FloatArray, low: float, high: float, count: int = KNOBS) -> FloatArray:
    """Quantiles of values between two ends, to six digits: what is written is what was tried."""
    inner = np.quantile(values, np.linspace(0, 1, count))
    return np.unique([float(f"{value:.6g}") for value in (low, *inner, high)])
