"""The output-token head: how many tokens an arm's answer will take, read from the same activations. NumPy alone.

Lengths spread over orders of magnitude, so the head is ridge regression on their logarithm. A mean of logarithms is not
the logarithm of a mean: the smearing factor makes up for it. Source: Duan, "Smearing estimate: a nonparametric
retransformation method", 1983.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.base import Activations, FloatArray, ProbeError
from probes.card import OutputTokens, Site

ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
WEIGHT = "output_tokens.weight"
MARGIN = 2.0
"""Predictions stay within the training range, widened by this factor."""

MAX_LOG = 100.0

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Lengths:
    """Problems of one split."""

    activations: Activations
    """(n, d_model)"""
    tokens: FloatArray
    """Mean output tokens of the answers to each, (n,)."""

    @property
    def logs(self) -> FloatArray:
        logs: FloatArray = np.log(np.maximum(self.tokens, 1.0))
        return logs


def fit(
    train: Lengths, validation: Lengths, test: Lengths, site: Site, alphas: Sequence[float] = ALPHAS
) -> tuple[OutputTokens, dict[str, NDArray[np.float32]]] | None:
    """A head for the card, and its tensor: alpha chosen on validation, the error measured on test.

    None where it does not beat the mean on validation: then the mean is all that is known.
    """
    mean, center = train.activations.mean(axis=0, dtype=np.float64), float(train.logs.mean())
    centred = train.activations - mean
    values, vectors = np.linalg.eigh(centred.T @ centred)
    rotated = vectors.T @ (centred.T @ (train.logs - center))
    weights = [vectors @ (rotated / (np.maximum(values, 0.0) + alpha)) for alpha in alphas]
    errors = [_rmse((validation.activations - mean) @ weight + center, validation.logs) for weight in weights]
    if not min(errors) < _rmse(center, validation.logs):
        return None
    weight = weights[int(np.argmin(errors))]
    head = OutputTokens(
        site=site,
        bias=center - float(mean @ weight),
        smearing=float(np.maximum(train.tokens, 1.0).sum() / np.exp(centred @ weight + center).sum()),
        low=float(train.tokens.min()) / MARGIN,
        high=float(train.tokens.max()) * MARGIN,
        log_rmse=_rmse((test.activations - mean) @ weight + center, test.logs),
        log_rmse_of_mean=_rmse(center, test.logs),
    )
    return head, {WEIGHT: weight.astype(np.float32)}


def predict(heads: Sequence[tuple[OutputTokens, Tensors]], activations: Activations) -> FloatArray:
    """Expected output tokens, by one product of all heads of one site: (n, d_model) -> (n, heads)."""
    weights = np.stack([tensors[WEIGHT] for _, tensors in heads], axis=1)  # (d_model, heads)
    bias, smearing, low, high = np.array([(one.bias, one.smearing, one.low, one.high) for one, _ in heads]).T
    logs = activations.astype(np.float64) @ weights.astype(np.float64) + bias
    # Far from the training prompts an exponential soon overflows.
    tokens: FloatArray = np.clip(smearing * np.exp(np.minimum(logs, MAX_LOG)), low, high)
    return tokens


def check(head: OutputTokens, tensors: Tensors, d_model: int | None) -> None:
    """
    Raises:
        ProbeError: tensor and card do not fit together.
    """
    shape = tensors[WEIGHT].shape if WEIGHT in tensors else None
    if shape != (d_model,) or head.site.position is None or head.low > head.high:
        raise ProbeError(f"{WEIGHT} has shape {shape}, where d_model = {d_model} and a site with a position are needed")


def _rmse(predicted: FloatArray | float, actual: FloatArray) -> float:
    return float(np.sqrt(np.mean((predicted - actual) ** 2)))
