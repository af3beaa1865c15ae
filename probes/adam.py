"""Gradient descent for small heads: Adam with decoupled weight decay. NumPy alone, so equal seeds give equal bits."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


class Adam:
    """Changes parameters in place, at a rate that falls to nothing along half a cosine.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019.

    Args:
        parameters: arrays of any shape.
        steps: how many there will be.
        decays: per parameter, the share of itself that it loses per step, in units of the rate.
    """

    def __init__(
        self, parameters: Sequence[NDArray[np.float32]], steps: int, rate: float, decays: Sequence[float]
    ) -> None:
        self._parameters, self._steps, self._rate, self._decays = parameters, steps, rate, decays
        self._first = [np.zeros_like(parameter) for parameter in parameters]
        self._second = [np.zeros_like(parameter) for parameter in parameters]
        self._step = 0

    def step(self, gradients: Sequence[NDArray[np.float32]]) -> None:
        rate = self._rate * (1 + np.cos(np.pi * self._step / self._steps)) / 2
        self._step += 1
        size = np.float32(rate * np.sqrt(1 - BETA2**self._step) / (1 - BETA1**self._step))
        for i, (parameter, gradient) in enumerate(zip(self._parameters, gradients, strict=True)):
            first, second = self._first[i], self._second[i]
            first += np.float32(1 - BETA1) * (gradient - first)
            second += np.float32(1 - BETA2) * (gradient * gradient - second)
            parameter *= np.float32(1 - rate * self._decays[i])
            parameter -= size * first / (np.sqrt(second) + np.float32(EPSILON))


def batches(n: int, size: int, steps: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Rows of each step's batch: every row once before any comes again."""
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps):
        while len(order) < min(size, n):
            order = np.concatenate([order, rng.permutation(n)])
        yield order[:size]
        order = order[size:]
