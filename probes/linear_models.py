"""Linear models at many sites, for all arms and strengths of shrinkage: what `linear_eoi` chooses among. NumPy alone.

One decomposition of a site serves all its alphas and arms: the Gram matrix X'X = Q diag(e) Q' gives ridge's weights
(X'X + alpha)^-1 X'y, and with Z = XQ the coordinates in which logistic regression's curvature is all but diagonal. Wide
activations that are well conditioned need less: see `probes.lanczos`, and a search in the coordinates that they have.

Arms do not touch: an arm's weights are the same bits whichever others are fitted beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from probes import lanczos, lbfgs
from probes.base import Activations, FloatArray, ProbeError

WIDE = 512
"""Dimensions from which on a decomposition is dear."""
DISTANCE = 1.4e-2
"""Of the logits from the optimum (root mean square) at which logistic regression is near enough to be compared:
what `probes.linear_sweep.MARGIN` leaves in the running is then solved to the end."""
DISTANCE_WIDE = 1e-2
"""The same for `WIDE` activations: there the largest of the logits' errors lies further from their mean."""
STEPS = 60


@dataclass(frozen=True)
class Basis:
    """Orthonormal directions of each site, and the activations' sum of squares along them."""

    spread: FloatArray
    """(sites, r), r = min(n, d)"""
    directions: FloatArray
    """(sites, d, r); zero where there is no spread."""


def decompose(x: FloatArray) -> Basis:
    """(sites, n, d) in double precision."""
    transposed = x.transpose(0, 2, 1)
    n, d = x.shape[1:]
    if d <= n:
        spread, directions = np.linalg.eigh(transposed @ x)
        return Basis(np.maximum(spread, 0.0), directions)
    spread, directions = np.linalg.eigh(x @ transposed)
    seen = spread > n * np.finfo(np.float64).eps * spread.max(axis=1, keepdims=True)
    scale = np.where(seen, 1 / np.sqrt(np.where(seen, spread, 1.0)), 0.0)
    return Basis(np.where(seen, spread, 0.0), transposed @ (directions * scale[:, None]))


def ridge(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray:
    """Ridge weights without intercept: (sites, n, d), (n, arms) -> (arms, sites, alphas, d).

    Raises:
        ProbeError: an activation is not finite.
    """

    def solve() -> FloatArray:
        quick = _quick_ridge(x, labels, alphas)
        return _ridge(x, labels, alphas) if quick is None else quick

    return _solved(solve)


def logistic(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray:
    """Logistic regression's weights without intercept, near the optimum (see `DISTANCE`), as `ridge` returns its own.

    Labels may be anything in [0, 1].

    Raises:
        ProbeError: an activation is not finite.
    """

    def solve() -> FloatArray:
        quick = _quick_logistic(x, labels, alphas)
        return _logistic(x, labels, alphas) if quick is None else quick

    return _solved(solve)


def _ridge(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray:
    double = x.astype(np.float64)
    basis = decompose(double)
    across = basis.directions.transpose(0, 2, 1)  # (sites, r, d)
    weights = np.empty((labels.shape[1], len(x), len(alphas), x.shape[2]))
    for arm, y in enumerate(labels.T):
        rotated = (across @ (double.transpose(0, 2, 1) @ y)[..., None])[..., 0]  # (sites, r)
        shrunk = rotated[:, None] / (basis.spread[:, None] + np.asarray(alphas)[:, None])  # (sites, alphas, r)
        weights[arm] = shrunk @ across
    return weights


def _logistic(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray:
    basis = decompose(x.astype(np.float64))
    # Each column's rounding is in proportion to its own size, so single precision is enough in these coordinates.
    turned = x @ basis.directions.astype(np.float32)  # (sites, n, r)
    spread = basis.spread.astype(np.float32)
    order = np.argsort(alphas, kind="stable")
    distance = DISTANCE_WIDE if x.shape[2] > WIDE else DISTANCE
    across = basis.directions.transpose(0, 2, 1)  # (sites, r, d)
    weights = np.empty((labels.shape[1], len(x), len(alphas), x.shape[2]))
    for arm, y in enumerate(labels.T):
        found = lbfgs.minimise(lbfgs.Loss(turned, y, spread), [alphas[a] for a in order], distance, STEPS)
        weights[arm][:, order] = found.weights.transpose(0, 2, 1).astype(np.float64) @ across
    return weights


def _quick_ridge(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray | None:
    sites, n, d = x.shape
    if not WIDE < d <= n:
        return None
    weights = np.empty((labels.shape[1], sites, len(alphas), d))
    for i, at in enumerate(x):
        gram = at.T @ at
        for arm, y in enumerate(labels.T):
            found = lanczos.ridge(gram, (y.astype(np.float32) @ at).astype(np.float64), alphas)
            if found is None:
                return None
            weights[arm, i] = found
    return weights


def _quick_logistic(x: Activations, labels: FloatArray, alphas: Sequence[float]) -> FloatArray | None:
    sites, n, d = x.shape
    if not WIDE < d <= n:
        return None
    spread = np.einsum("snd,snd->sd", x, x)
    weights = np.empty((labels.shape[1], sites, len(alphas), d))
    order = np.argsort(alphas, kind="stable")
    for arm, y in enumerate(labels.T):
        found = lbfgs.minimise_in_turn(lbfgs.Loss(x, y, spread), [alphas[a] for a in order], DISTANCE_WIDE, STEPS)
        if not found.converged.all():
            return None
        weights[arm][:, order] = found.weights.transpose(0, 2, 1)
    return weights


def _solved(solve: Callable[[], FloatArray]) -> FloatArray:
    """Weights, which are not finite where an activation is not, if they can be found at all."""
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            weights = solve()
    except np.linalg.LinAlgError:
        weights = np.array(np.nan)
    if not np.isfinite(weights).all():
        raise ProbeError("some activations are not finite: harvest them anew, the probe model in float32")
    return weights
