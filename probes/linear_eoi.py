"""`linear_eoi`: a linear readout, without intercept, of the activation at one layer and one end-of-instruction token.

Agrees with the research code (KabakaWilliam/llms_know_difficulty): ridge on success rates, or logistic regression on
whether the majority vote is correct; layer, position and alpha are those that rank the validation split best. What it
does differently is speed: one eigendecomposition of each site's Gram matrix serves all alphas and all arms.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.base import Activations, Examples, Fit, FloatArray, Inputs, Probe, ProbeError
from probes.card import ProbeCard, Site, Task
from probes.logistic import fit_logistic
from probes.selection import choose

ALPHAS = (1.0, 10.0, 100.0, 1000.0, 10000.0)


class LinearEoi(Probe):
    kind: ClassVar[str] = "linear_eoi"
    site: Site

    def __init__(self, weight: NDArray[np.float32], site: Site) -> None:
        self.weight = weight  # (d_model,)
        self.site = site

    def raw(self, inputs: Inputs) -> FloatArray:
        return self.raw_all([self], inputs)[:, 0]

    @classmethod
    def raw_all(cls, probes: Sequence[Self], inputs: Inputs) -> FloatArray:
        weights = np.stack([probe.weight for probe in probes], axis=1)  # (d_model, probes)
        # In double precision a probe's output does not depend on which others share the product.
        return inputs.activations[probes[0].site].astype(np.float64) @ weights.astype(np.float64)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {"weight": self.weight}

    @classmethod
    def from_artifact(
        cls, card: ProbeCard, tensors: Mapping[str, NDArray[np.float32]], files: Mapping[str, bytes]
    ) -> Self:
        if set(tensors) != {"weight"}:
            raise ProbeError(f"a linear_eoi probe has one tensor, weight; found {', '.join(sorted(tensors)) or 'none'}")
        if card.site is None or card.site.position is None:
            raise ProbeError("a linear_eoi probe needs a site with layer and position")
        weight = tensors["weight"]
        if weight.shape != (card.d_model,):
            raise ProbeError(f"weight has shape {weight.shape}, d_model = {card.d_model} asks for ({card.d_model},)")
        return cls(weight, card.site)

    @classmethod
    def fit(
        cls,
        train: Examples,
        validation: Examples,
        task: Task = "regression",
        *,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
        alphas: Sequence[float] = ALPHAS,
    ) -> list[Fit]:
        """See `Probe.fit`. Among equal scores the first wins, in the order of the inputs' sites, then of `alphas`."""
        weights_of = _ridge if task == "regression" else _logistic
        sites = list(train.inputs.activations)
        weights = np.empty((len(sites), len(alphas), *_shape(train)))  # (sites, alphas, d, arms)
        raw = np.empty((len(sites), len(alphas), *validation.labels.shape))  # (sites, alphas, n, arms)
        for i, site in enumerate(sites):
            activations = train.inputs.activations[site]
            (weights[i],) = weights_of(activations[:, None], train.labels, alphas)
            raw[i] = validation.inputs.activations[site].astype(np.float64) @ weights[i]
            on_step(1 / len(sites))
        fits = []
        for arm, labels in enumerate(validation.labels.T):
            choice = choose(raw[..., arm].reshape(-1, len(labels)), labels, task, seed)
            i, a = divmod(choice.best, len(alphas))
            probe = cls(weights[i, a, :, arm].astype(np.float32), sites[i])
            fits.append(Fit(probe, choice.score, choice.held_out, alpha=float(alphas[a])))
        return fits


def _shape(train: Examples) -> tuple[int, int]:
    return next(iter(train.inputs.activations.values())).shape[1], train.labels.shape[1]


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
