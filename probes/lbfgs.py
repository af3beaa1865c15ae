"""Logistic regression at several sites and strengths of shrinkage at once, by L-BFGS. NumPy alone.

Source: Nocedal, "Updating quasi-Newton matrices with limited storage", 1980. There is no line search: the first step
is the one along which the loss' curvature is known to be at most a quarter of the activations' (Böhning, "Multinomial
logistic regression algorithm", 1992), later ones are halved where they overshoot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MEMORY = 6
HALVINGS = 8
LEAST_DOUBT = 1e-4
"""Mean of p (1 - p) to reckon with at least: where all problems are sure, steps would be boundless."""
TINY = 1e-30
BUSY = 0.75
"""Share of the sites still searching, at which the others are dropped: that copies activations."""
NEAR_BYTES = 1_000_000
"""Of activations, which a processor core keeps near."""

Array = NDArray[np.float32]


@dataclass
class Memory:
    """The last steps, and how the gradient changed along them: what is known of curvature. (sites, d, alphas) each."""

    steps: list[Array] = field(default_factory=list)
    changes: list[Array] = field(default_factory=list)

    def add(self, step: Array, change: Array) -> None:
        self.steps = [*self.steps, step][-MEMORY:]
        self.changes = [*self.changes, change][-MEMORY:]

    def of(self, sites: NDArray[np.bool_], alphas: int) -> "Memory":
        """Of some sites, and of the first so many alphas."""
        return Memory(
            [step[sites, :, :alphas] for step in self.steps], [change[sites, :, :alphas] for change in self.changes]
        )

    def direction(self, gradient: Array, diagonal: Array) -> Array:
        """The inverse curvature's estimate times the gradient, by the two loops."""
        found = gradient.copy()
        inverses, shares = [], []
        for step, change in zip(self.steps[::-1], self.changes[::-1], strict=True):
            curvature = _dot(step, change)
            inverse = np.where(curvature > TINY, 1 / np.maximum(curvature, TINY), 0.0).astype(gradient.dtype)
            share = inverse * _dot(step, found)
            found -= share[:, None] * change
            inverses.append(inverse)
            shares.append(share)
        found /= diagonal
        for step, change, inverse, share in zip(self.steps, self.changes, inverses[::-1], shares[::-1], strict=True):
            found += (share - inverse * _dot(change, found))[:, None] * step
        return found


@dataclass(frozen=True)
class Loss:
    """sum_i cross_entropy(y_i, sigmoid(x_i w)) + alpha / 2 |w|^2 for each site and alpha."""

    x: Array
    """(sites, n, d)"""
    y: NDArray[np.floating]
    """(n,), in [0, 1]"""
    spread: NDArray[np.floating]
    """Sum of squares of each column of x, (sites, d)."""

    def of(self, sites: NDArray[np.bool_]) -> "Loss":
        return Loss(self.x[sites], self.y, self.spread[sites])

    def look(self, w: Array, alpha: Array) -> tuple[Array, Array]:
        """(sites, d, alphas) -> the gradient; and the diagonal of the curvature, were it equal for all problems."""
        sites, n, d = self.x.shape
        target = (2 * self.y - 1).astype(self.x.dtype)[:, None]
        half, gradient, squares = 0.5 * w, alpha * w, 0.0
        # Some problems after the other, so that their second product finds them near the processor.
        at_once = max(1, NEAR_BYTES // (sites * d * self.x.itemsize))
        for first in range(0, n, at_once):
            x = self.x[:, first : first + at_once]
            # By t = tanh(z / 2): p = (1 + t) / 2, and p (1 - p) = (1 - t^2) / 4.
            t = x @ half  # (sites, rows, alphas)
            np.tanh(t, out=t)
            squares = squares + np.einsum("sna,sna->sa", t, t)
            t -= target[first : first + at_once]
            t *= 0.5
            gradient += x.transpose(0, 2, 1) @ t
        doubt = np.maximum(0.25 - 0.25 / n * squares, LEAST_DOUBT)
        return gradient, self.spread[:, :, None] * doubt[:, None] + alpha


@dataclass(frozen=True)
class Solution:
    weights: Array
    """(sites, d, alphas)"""
    converged: NDArray[np.bool_]
    """(sites, alphas)"""


def minimise(loss: Loss, alphas: Sequence[float], tolerance: float, steps: int, start: Array | None = None) -> Solution:
    """The weights of least loss for each site and alpha, which take their steps together, in x's precision.

    Args:
        alphas: ascending, since the weakest shrinkage takes longest.
        tolerance: of the logits' expected distance from the optimum, root mean square.
        steps: at most so many.
        start: where the search begins, (sites, d, alphas); zero if not given.
    """
    sites, n, d = loss.x.shape
    alpha = np.asarray(alphas, dtype=loss.x.dtype)
    weights = np.zeros((sites, d, len(alpha)), dtype=loss.x.dtype) if start is None else start.copy()
    converged = np.zeros((sites, len(alpha)), dtype=bool)
    memory, w = Memory(), weights
    left, active = np.arange(sites), len(alpha)  # what is still in the products: some sites, the first alphas
    gradient, diagonal = loss.look(w, alpha)
    for _ in range(steps):
        distance = np.sqrt(_dot(gradient / diagonal, gradient) / n)  # (sites, alphas)
        done = distance < tolerance
        converged[left, :active] = done
        if done.all():
            break
        pending = int(np.flatnonzero(~done.all(axis=0))[-1]) + 1
        busy = ~done.all(axis=1)
        if pending < active or busy.mean() <= BUSY:
            # What has converged is left out of the products.
            weights[left, :, :active] = w
            left, active, done = left[busy], pending, done[busy, :pending]
            memory, loss, alpha = memory.of(busy, active), loss.of(busy), alpha[:active]
            w, gradient, diagonal = (array[busy, :, :active] for array in (w, gradient, diagonal))
        direction = memory.direction(gradient, diagonal)
        # Beyond the optimum rounding decides: what has converged stands still.
        direction *= ~done[:, None]
        new_w, new_gradient, diagonal = _step(loss, w, gradient, direction, alpha)
        memory.add(new_w - w, new_gradient - gradient)
        w, gradient = new_w, new_gradient
    weights[left, :, :active] = w
    return Solution(weights, converged)


def minimise_in_turn(loss: Loss, alphas: Sequence[float], tolerance: float, steps: int) -> Solution:
    """The same, one alpha after the other from the strongest shrinkage on, where each solution is near the next one.

    Quicker where x is wide: its products then gain little by company. Ends at the first alpha that does not converge.
    """
    sites, _, d = loss.x.shape
    weights = np.zeros((sites, d, len(alphas)), dtype=loss.x.dtype)
    converged = np.zeros((sites, len(alphas)), dtype=bool)
    start = None
    for a in range(len(alphas) - 1, -1, -1):
        found = minimise(loss, [alphas[a]], tolerance, steps, start)
        start = found.weights
        weights[..., a], converged[:, a] = start[..., 0], found.converged[:, 0]
        if not converged[:, a].all():
            break
    return Solution(weights, converged)


def _step(loss: Loss, w: Array, gradient: Array, direction: Array, alpha: Array) -> tuple[Array, Array, Array]:
    """Against the direction, half as far wherever that overshoots: new weights, gradient and diagonal."""
    slope = _dot(direction, gradient)
    for _ in range(HALVINGS):
        new_w = w - direction
        new_gradient, diagonal = loss.look(new_w, alpha)
        beyond = (-_dot(direction, new_gradient) > 0.9 * slope) & (slope > 0)
        if not beyond.any():
            break
        scale = np.where(beyond, 0.5, 1.0).astype(w.dtype)
        direction = direction * scale[:, None]
        slope = slope * scale
    return new_w, new_gradient, diagonal


def _dot(a: Array, b: Array) -> Array:
    """(sites, d, alphas), twice -> (sites, alphas)"""
    product: Array = np.einsum("sda,sda->sa", a, b)
    return product
