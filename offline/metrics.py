"""How good a probe's probabilities are, with intervals."""

from collections.abc import Callable

import numpy as np

from probes.base import FloatArray
from probes.card import BrierParts, Estimate, Metrics, ReliabilityBin
from probes.measures import auroc, brier, brier_parts, reliability, spearman

Statistics = Callable[[FloatArray, FloatArray], FloatArray]
"""Several figures of one data set: probabilities (n,), success rates (n,) -> (figures,)."""
RESAMPLES = 1000
RANGES = [(0.0, 1.0), (-1.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.0, 0.25)]
"""What `_figures` can be, up to the bins' gaps, which lie in [-1, 1]. In the middle of a rank measure's range nothing
is known."""


def measure(p: FloatArray, success_rate: FloatArray, split: str, seed: int, resamples: int = RESAMPLES) -> Metrics:
    """Metrics of probabilities against success rates, both (n,), with 95% bootstrap intervals over problems."""
    curve = reliability(p, success_rate)
    ranges = RANGES + [(-1.0, 1.0)] * len(curve.weight)
    found = bootstrap(_figures, p, success_rate, ranges, seed, resamples)
    auroc_, spearman_, ece, brier_, gap, resolution, uncertainty, *gaps = found
    bins = zip(curve.predicted.clip(0, 1).tolist(), gaps, curve.weight.tolist(), strict=True)
    return Metrics(
        split=split,
        n=len(p),
        auroc=auroc_,
        spearman=spearman_,
        ece=ece,
        brier=brier_,
        brier_parts=BrierParts(reliability=gap, resolution=resolution, uncertainty=uncertainty),
        reliability=[
            ReliabilityBin(predicted=predicted, observed=_moved(gap, predicted), weight=weight)
            for predicted, gap, weight in bins
        ],
    )


def with_interval(estimate: Estimate) -> str:
    """As tables show it, which are narrow."""
    value, low, high = (f"{share:.3f}".replace("0.", ".", 1) for share in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def bootstrap(
    statistics: Statistics,
    p: FloatArray,
    success_rate: FloatArray,
    ranges: list[tuple[float, float]],
    seed: int,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Figures, each with its 95% interval over resampled problems, kept within its range.

    The percentiles are shifted to have the figure in their midst: resampling repeats a figure's bias (that of an
    absolute gap, say), which the interval should not contain twice. Where a figure is undefined, as a rank measure of
    constants is, nothing is known: the middle of its range, and all of it as interval.
    """
    # In order of probability, for what is nearly sorted is sorted quickly.
    order = np.argsort(p)
    p, success_rate = p[order], success_rate[order]
    rng = np.random.default_rng(seed)
    values = np.stack(
        [
            statistics(p[draw], success_rate[draw])
            for draw in (np.sort(rng.integers(len(p), size=len(p))) for _ in range(resamples))
        ]
    )  # (resamples, figures)
    whole = statistics(p, success_rate)
    return [_estimate(value, of, *range_) for value, of, range_ in zip(whole.tolist(), values.T, ranges, strict=True)]


def _estimate(value: float, resampled: FloatArray, bottom: float, top: float) -> Estimate:
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(resampled):
        return Estimate(value=value if np.isfinite(value) else (bottom + top) / 2, low=bottom, high=top)
    low, high = np.clip(np.quantile(resampled, [0.025, 0.975]) - resampled.mean() + value, bottom, top)
    return Estimate(value=value, low=float(low), high=float(high))


def _figures(p: FloatArray, success_rate: FloatArray) -> FloatArray:
    """In the order of `RANGES`; then each bin's gap, observed - predicted."""
    curve = reliability(p, success_rate)
    parts = brier_parts(p, success_rate, curve)
    return np.array(
        [
            auroc(p, success_rate),
            spearman(p, success_rate),
            curve.ece,
            brier(p, success_rate),
            parts.reliability,
            parts.resolution,
            parts.uncertainty,
            *(curve.observed - curve.predicted),
        ]
    )


def _moved(gap: Estimate, predicted: float) -> Estimate:
    """Success rate from its gap to the probability, which varies less from resample to resample."""
    low, value, high = (min(max(predicted + at, 0.0), 1.0) for at in (gap.low, gap.value, gap.high))
    return Estimate(value=value, low=low, high=high)
