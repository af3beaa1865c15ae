"""`linear_eoi`: a linear readout, without intercept, of the activation at one layer and one end-of-instruction token.

Agrees with the research code (KabakaWilliam/llms_know_difficulty): ridge on success rates, or logistic regression on
whether the majority vote is correct; layer, position and alpha are those that rank the validation split best. What it
does differently is speed: one eigendecomposition of each site's Gram matrix serves all alphas and all arms.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from probes import calibration
from probes.base import Activations, FitResult, FloatArray, Probe, ProbeCard, ProbeError, Site
from probes.logistic import fit_logistic

ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)
Task = Literal["regression", "classification"]


@dataclass(frozen=True)
class Split:
    """Problems to fit or to choose on."""

    activations: Activations
    """(n, layers, positions, d_model)"""
    labels: FloatArray
    """(n, probes): success rates; to classification, shares of correct samples or 0 and 1."""


class LinearEoi(Probe):
    kind: ClassVar[str] = "linear_eoi"

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.weight = weight  # (d_model,)

    def raw(self, activations: Activations) -> FloatArray:
        return self.raw_all([self], activations)[:, 0]

    @classmethod
    def raw_all(cls, probes: Sequence[Self], activations: Activations) -> FloatArray:
        weights = np.stack([probe.weight for probe in probes], axis=1)  # (d_model, probes)
        # In double precision a probe's output does not depend on which others share the product.
        return activations.astype(np.float64) @ weights.astype(np.float64)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {"weight": self.weight}

    @classmethod
    def from_tensors(cls, tensors: dict[str, NDArray[np.float32]], card: ProbeCard) -> Self:
        if set(tensors) != {"weight"}:
            raise ProbeError(f"a linear_eoi probe has one tensor, weight; found {', '.join(sorted(tensors)) or 'none'}")
        weight = tensors["weight"]
        if weight.shape != (card.d_model,):
            raise ProbeError(f"weight has shape {weight.shape}, d_model = {card.d_model} asks for ({card.d_model},)")
        return cls(weight)

    @classmethod
    def fit(
        cls,
        train: Split,
        validation: Split,
        layers: Sequence[int],
        positions: Sequence[int],
        task: Task = "regression",
        alphas: Sequence[float] = ALPHAS,
        on_layer: Callable[[], None] = lambda: None,
    ) -> list[tuple[Self, FitResult]]:
        """One probe per column of the labels, each at the (layer, position, alpha) that ranks validation best.

        The score is Spearman's correlation (regression) or AUROC (classification). Among equal scores the first wins,
        in the order of `layers`, then `positions`, then `alphas`.

        Args:
            layers, positions: what the activations' axes 1 and 2 hold.
            on_layer: called after each layer, for progress bars.
        """
        score = calibration.spearman if task == "regression" else calibration.auroc
        weights_of = _ridge if task == "regression" else _logistic
        best: list[tuple[Self, FitResult] | None] = [None] * train.labels.shape[1]
        for i, layer in enumerate(layers):
            held_out = validation.activations[:, i].astype(np.float64)  # (n, positions, d_model)
            for j, weights in enumerate(weights_of(train.activations[:, i], train.labels, alphas)):
                predicted = held_out[:, j] @ weights  # (alphas, n, probes)
                for a, alpha in enumerate(alphas):
                    for column, chosen in enumerate(best):
                        value = score(predicted[a, :, column], validation.labels[:, column])
                        if np.isfinite(value) and (chosen is None or value > chosen[1].score):
                            site = Site(layer=layer, position=positions[j])
                            probe = cls(weights[a, :, column].astype(np.float32))
                            best[column] = probe, FitResult(site, float(alpha), value)
            on_layer()
        if None in best:
            raise ProbeError("no site ranks the validation split at all: its labels or the activations are constant")
        return [chosen for chosen in best if chosen is not None]


def _ridge(activations: Activations, labels: FloatArray, alphas: Sequence[float]) -> Iterator[FloatArray]:
    """Ridge weights of one layer, position by position: (n, positions, d), (n, probes) -> (alphas, d, probes) each.

    With X = activations at a site, the Gram matrix X'X = Q diag(e) Q' gives (X'X + alpha)^-1 X'y for every alpha from
    one decomposition; where there are fewer problems than dimensions, XX' does.
    """
    x = np.ascontiguousarray(activations.transpose(1, 0, 2), dtype=np.float64)  # (positions, n, d)
    _, n, d = x.shape
    transposed = x.transpose(0, 2, 1)  # (positions, d, n)
    values, vectors = np.linalg.eigh(transposed @ x if d <= n else x @ transposed)
    target = transposed @ labels if d <= n else np.broadcast_to(labels, (len(x), *labels.shape))
    rotated = vectors.transpose(0, 2, 1) @ target  # (positions, min(n, d), probes)
    shrunk = rotated[:, None] / (values[:, None, :, None] + np.asarray(alphas)[:, None, None])
    weights = vectors[:, None] @ shrunk  # (positions, alphas, min(n, d), probes)
    yield from weights if d <= n else transposed[:, None] @ weights


def _logistic(activations: Activations, labels: FloatArray, alphas: Sequence[float]) -> Iterator[FloatArray]:
    """Logistic regression's weights, in the same form as `_ridge`'s; labels may be shares."""
    _, positions, d = activations.shape
    for position in range(positions):
        x = activations[:, position].astype(np.float64)
        weights = np.zeros((len(alphas), d, labels.shape[1]))
        for column, y in enumerate(labels.T):
            w = np.zeros(d)
            # From the strongest shrinkage on: each solution is near the next one.
            for a in sorted(range(len(alphas)), key=lambda i: -alphas[i]):
                w = weights[a, :, column] = fit_logistic(x, y, alphas[a], start=w)
        yield weights
