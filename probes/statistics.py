"""How far a prompt's activation lies from those of the training prompts: Mahalanobis distance, as a percentile.

A low-rank sketch of the covariance: its largest principal directions, and one variance for all others. Source: Lee,
Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution samples", 2018; shrinkage by Ledoit and
Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004. NumPy alone.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from probes.base import Activations, FloatArray, ProbeError
from probes.card import Site, Statistics

TINY = 1e-30
"""A variance is at least this, so that constant activations divide by no zero in single precision."""
NAMES = ("statistics.mean", "statistics.components", "statistics.variances")
DEPTH = 0.25
"""Of the probe model, where activations are looked at. Early layers tell foreign text best: on the nano pool all of it
at layer 1 of 5, at layer 4 not even a tenth of random tokens."""
MAX_RANK = 64
PERCENTILES = (*map(float, range(100)), 99.5, 99.9)
LEAST_HELD_OUT = 100
"""Fewer held-out prompts do not tell where the 99th percentile is."""
FLOOR = 1e-12
"""Of a variance, in parts of the largest one."""

Tensors = Mapping[str, NDArray[np.float32]]


def site_of(layers: int) -> Site:
    """Where a probe model of so many layers is looked at: one site for all probes of a pass."""
    return Site(layer=max(1, round(DEPTH * layers)), position=-1)


def fit(train: Activations, held_out: Activations, site: Site) -> tuple[Statistics, dict[str, NDArray[np.float32]]]:
    """Mean and sketched covariance of training activations, (n, d_model), and how far held-out ones lie from them.

    Args:
        held_out: of in-distribution prompts that the statistics must not be fitted on, (m, d_model): distances of the
            training prompts themselves would be too small.

    Returns:
        What the card says, and the tensors beside the probe's own.

    Raises:
        ProbeError: there are fewer than `LEAST_HELD_OUT` held-out prompts.
    """
    if len(held_out) < LEAST_HELD_OUT:
        raise ProbeError(f"activation statistics need {LEAST_HELD_OUT} held-out prompts; there are {len(held_out)}")
    x = train.astype(np.float64)
    mean = x.mean(axis=0)
    values, vectors = np.linalg.eigh(_shrunken_covariance(x - mean))  # ascending
    rank = min(MAX_RANK, len(mean) - 1)
    variances, components = values[::-1][:rank], vectors.T[::-1][:rank]  # (rank,), (rank, d_model)
    floor = max(FLOOR * float(values[-1]), TINY)
    residual = max(float(values[: len(mean) - rank].mean()), floor)
    parts = (mean, components, np.maximum(variances, floor))
    tensors = {name: part.astype(np.float32) for name, part in zip(NAMES, parts, strict=True)}
    quantiles = _quantiles(_distance(residual, tensors, held_out))
    return Statistics(site=site, n=len(x), residual_variance=residual, quantiles=quantiles), tensors


def percentile(statistics: Statistics, tensors: Tensors, activations: Activations) -> FloatArray:
    """Share, in percent, of in-distribution prompts that lie nearer: (n, d_model) -> (n,).

    Beyond all of m held-out prompts it is m in m + 1, which is all that they can tell.
    """
    percents, distances = np.array(statistics.quantiles).T
    found: FloatArray = np.interp(_distance(statistics.residual_variance, tensors, activations), distances, percents)
    return found


def check(statistics: Statistics, tensors: Tensors, d_model: int | None) -> None:
    """
    Raises:
        ProbeError: tensors and card do not fit together.
    """
    shapes = [tensors[name].shape if name in tensors else None for name in NAMES]
    rank = 0 if shapes[2] is None else tensors[NAMES[2]].size
    if shapes != [(d_model,), (rank, d_model), (rank,)] or (tensors[NAMES[2]] <= 0).any():
        raise ProbeError(f"{', '.join(NAMES)} have shapes {shapes}, which do not fit d_model = {d_model}")
    ascending = np.diff(np.array(statistics.quantiles), axis=0)
    if statistics.site.position is None or (ascending < 0).any():
        raise ProbeError("statistics need a site with a position, and quantiles that rise")


def _distance(residual_variance: float, tensors: Tensors, activations: Activations) -> FloatArray:
    """Mahalanobis distances, (n, d_model) -> (n,)."""
    mean, components, variances = (tensors[name].astype(np.float64) for name in NAMES)
    centred = activations - mean
    projected = centred @ components.T  # (n, rank)
    inside = (projected**2 / variances).sum(axis=1)
    # Components are orthonormal up to rounding, so the remainder may come out a little below zero.
    outside = np.maximum((centred**2).sum(axis=1) - (projected**2).sum(axis=1), 0.0)
    distance: FloatArray = np.sqrt(inside + outside / residual_variance)
    return distance


def _quantiles(distances: FloatArray) -> list[tuple[float, float]]:
    """(percentile, distance) pairs, of which a like prompt exceeds the q-th with a probability of at most 1 - q.

    That holds for the distance at rank ceil((m + 1) q) of m, whatever their distribution; percentiles whose rank would
    be beyond the last have none. Source: Vovk, Gammerman, Shafer, Algorithmic learning in a random world, 2005.
    """
    m = len(distances)
    at_rank = np.sort(distances).tolist()
    last = 100 * m / (m + 1)
    # Rounded first: 1000 x 99.9% must not become 999.0000000001.
    ranks = {q: max(1, math.ceil(round((m + 1) * q / 100, 9))) for q in PERCENTILES if q < last}
    return [*((q, at_rank[rank - 1]) for q, rank in ranks.items()), (last, at_rank[-1])]


def _shrunken_covariance(centred: FloatArray) -> FloatArray:
    """Ledoit and Wolf's mix of the sample covariance and a multiple of the identity: (n, d) -> (d, d)."""
    n, d = centred.shape
    sample = centred.T @ centred / n
    mean_variance = np.trace(sample) / d
    target = mean_variance * np.eye(d)
    dispersion = ((sample - target) ** 2).sum()
    noise = ((centred**2).sum(axis=1) ** 2).sum() / n**2 - (sample**2).sum() / n
    weight = 0.0 if dispersion <= 0 else float(np.clip(noise / dispersion, 0.0, 1.0))
    shrunken: FloatArray = weight * target + (1 - weight) * sample
    return shrunken
