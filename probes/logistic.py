"""Logistic regression without intercept on shares of correct samples, by Newton's method. NumPy alone."""

import numpy as np

from probes.base import FloatArray

MAX_STEPS = 100
TOLERANCE = 1e-9
"""Of the largest change of a logit, at which the weights stand."""


def fit_logistic(x: FloatArray, y: FloatArray, alpha: float, start: FloatArray) -> FloatArray:
    """Weights w that minimise sum_i cross_entropy(y_i, sigmoid(x_i w)) + alpha / 2 |w|^2: (n, d), (n,) -> (d,).

    Labels may be anything in [0, 1]; 0 and 1 give what scikit-learn's LogisticRegression with C = 1 / alpha gives.

    Args:
        start: where the search begins, (d,); a solution for another alpha saves steps.
    """
    w = start
    z = x @ w
    loss = _loss(z, y, w, alpha)
    for _ in range(MAX_STEPS):
        p = sigmoid(z)
        gradient = x.T @ (p - y) + alpha * w
        # By the root, so that BLAS sees a matrix times its own transpose, which is half the work.
        half = x * np.sqrt(p * (1 - p))[:, None]
        curvature = half.T @ half
        curvature[np.diag_indices(len(w))] += alpha
        step = np.linalg.solve(curvature, gradient)
        z_step = x @ step
        size = 1.0
        # Halve steps that overshoot: far from the optimum the curvature is nearly zero.
        while size > TOLERANCE and _loss(z - size * z_step, y, w - size * step, alpha) > loss:
            size /= 2
        w, z = w - size * step, z - size * z_step
        loss = _loss(z, y, w, alpha)
        if size * np.abs(z_step).max() < TOLERANCE:
            break
    return w


def sigmoid(logits: FloatArray) -> FloatArray:
    # Written by tanh, which neither overflows nor warns.
    p: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return p


def _loss(z: FloatArray, y: FloatArray, w: FloatArray, alpha: float) -> float:
    return float((np.logaddexp(0.0, z) - y * z).sum() + alpha / 2 * (w @ w))
