"""Paired bootstrap over problems, as weights: every mean over problems, in every draw, is one matrix product."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from routing_policies.base import FloatArray

CHUNK = 4_000_000
"""Indices drawn at once, so that memory stays at some 50 MB beside the weights."""
ROUNDING = 1e-13
"""Differences this small are none."""


@dataclass(frozen=True)
class Interval:
    """A figure of the test problems and its 95% bootstrap interval over them. Percentile method."""

    value: float
    low: float
    high: float
    undefined: float = 0.0
    """Share of the draws in which the figure is not defined; the interval is of the others."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def resampled(n: int, draws: int, seed: int) -> FloatArray:
    """Weights of n problems in each of several sets drawn with replacement, (draws, n); each row adds up to 1.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6.
    """
    rng = np.random.default_rng(seed)
    weights = np.empty((draws, n))
    rows = max(1, CHUNK // n)
    for start in range(0, draws, rows):
        held = weights[start : start + rows]
        drawn: NDArray[np.int64] = rng.integers(n, size=held.shape) + n * np.arange(len(held))[:, None]
        held[:] = np.bincount(drawn.ravel(), minlength=held.size).reshape(held.shape) / n
    return weights


def weights(n: int, draws: int, seed: int) -> FloatArray:
    """The problems as they are, then resampled: (1 + draws, n). `interval` reads figures in this order."""
    return np.concatenate([np.full((1, n), 1 / n), resampled(n, draws, seed)])


def interval(figure: FloatArray) -> Interval | None:
    """Of a figure of the problems as they are and in each draw, (1 + draws,); None where it is not defined.

    Draws in which it is not defined are left out, and counted.
    """
    figure = np.where(np.abs(figure) < ROUNDING, 0.0, figure)
    value, defined = float(figure[0]), np.isfinite(figure[1:])
    drawn = figure[1:][defined]
    if not np.isfinite(value):
        return None
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist() if len(drawn) else (value, value)
    return Interval(value, low, high, float(1 - defined.mean()) if len(defined) else 0.0)
