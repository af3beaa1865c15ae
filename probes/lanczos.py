"""Ridge regression at all strengths of shrinkage from one short tridiagonalisation. NumPy alone.

Lanczos' method takes the Gram matrix G = X'X to tridiagonal form T = V'GV, beginning with X'y: (T + alpha)^-1 then
gives every alpha's weights. Where G is well conditioned a few dozen directions say all that there is to say about y,
and neither single precision nor so few directions costs anything that matters; where it is not, there is no answer.
Source: Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950; Frommer and Maass, "Fast
CG-based methods for Tikhonov-Phillips regularization", 1999.
"""

from collections.abc import Sequence

import numpy as np

from probes.base import Activations, FloatArray

DIRECTIONS = 64
CHECK_EVERY = 8
RESIDUAL = 1e-6
"""Of the normal equations, relative, at which the weights stand."""
CONDITION = 100.0
"""Of G + alpha, up to which single precision serves: beyond, its rounding shows in the weights' fifth digit."""


def ridge(gram: Activations, xty: FloatArray, alphas: Sequence[float]) -> FloatArray | None:
    """Weights for each alpha, (alphas, d), from G in single precision, (d, d), and X'y, (d,).

    None where G is too badly conditioned for it.
    """
    length = float(np.linalg.norm(xty))
    if length == 0:
        return np.zeros((len(alphas), len(xty)))
    basis = np.zeros((DIRECTIONS + 1, len(xty)))
    basis[0] = xty / length
    diagonal, beside = np.zeros(DIRECTIONS), np.zeros(DIRECTIONS)
    for k in range(DIRECTIONS):
        found = (gram @ basis[k].astype(np.float32)).astype(np.float64)
        diagonal[k] = basis[k] @ found
        for _ in range(2):  # rounding makes the directions forget each other; twice is enough
            found -= basis[: k + 1].T @ (basis[: k + 1] @ found)
        beside[k] = np.linalg.norm(found)
        done = beside[k] <= RESIDUAL * diagonal[: k + 1].max()
        if not done:
            basis[k + 1] = found / beside[k]
        if done or (k + 1) % CHECK_EVERY == 0:
            size = k + 1
            t = np.diag(diagonal[:size]) + np.diag(beside[:k], 1) + np.diag(beside[:k], -1)
            values, vectors = np.linalg.eigh(t)
            shrunk = vectors[0] / (values + np.asarray(alphas)[:, None])  # (alphas, size)
            inside = length * (shrunk @ vectors.T)
            if values[-1] + min(alphas) > CONDITION * (values[0] + min(alphas)):
                return None
            if done or (beside[k] * np.abs(inside[:, -1])).max() <= RESIDUAL * length:
                weights: FloatArray = inside @ basis[:size]
                return weights
    return None
