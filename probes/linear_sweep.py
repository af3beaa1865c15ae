"""The sweep of `linear_eoi`: candidates at every site and strength of shrinkage, and their outputs on validation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probes.base import Activations, Examples, FloatArray, ProbeError
from probes.card import Site, Task
from probes.linear_models import logistic, ridge
from probes.logistic import fit_logistic
from probes.selection import first_best, scores
from probes.workers import for_each

BLOCK_BYTES = 9_000_000
"""Activations that are worked on together: enough of them to be worth a call, few enough to stay near the processor."""
MARGIN = 0.001
"""Candidates whose score is so near the best one's are solved to the end before they are compared."""
FINALISTS = 16


@dataclass(frozen=True)
class Candidates:
    """One arm's linear models."""

    names: list[tuple[Site, float]]
    """Site and alpha; alphas run fastest."""
    weights: FloatArray
    """(candidates, d_model)"""
    raw: FloatArray
    """Outputs for the validation problems, (candidates, n)."""


@dataclass(frozen=True)
class Sweep:
    sites: list[Site]
    alphas: Sequence[float]
    weights: FloatArray
    """(arms, sites, alphas, d_model)"""
    raw: FloatArray
    """(arms, sites, alphas, n)"""

    def of(self, arm: int) -> Candidates:
        weights, raw = self.weights[arm], self.raw[arm]
        return Candidates(
            names=[(site, float(alpha)) for site in self.sites for alpha in self.alphas],
            weights=weights.reshape(-1, weights.shape[-1]),
            raw=raw.reshape(-1, raw.shape[-1]),
        )


def sweep(
    train: Examples,
    validation: Examples,
    task: Task,
    alphas: Sequence[float],
    threads: int = 1,
    on_step: Callable[[float], None] = lambda share: None,
) -> Sweep:
    """Ridge or logistic regression at every site of the inputs, for every alpha and arm.

    Raises:
        ProbeError: there is no activation to read, or one is not finite.
    """
    sites = list(train.inputs.activations)
    if not sites:
        raise ProbeError("linear_eoi reads activations, and the inputs hold none: name layers and positions")
    models = ridge if task == "regression" else logistic
    n, d = train.inputs.activations[sites[0]].shape
    found = Sweep(
        sites,
        alphas,
        weights=np.empty((train.labels.shape[1], len(sites), len(alphas), d)),
        raw=np.empty((train.labels.shape[1], len(sites), len(alphas), len(validation.labels))),
    )

    def fit(block: NDArray[np.int64]) -> None:
        weights = models(_stack(train, sites, block), train.labels, alphas)  # (arms, block, alphas, d)
        held = _stack(validation, sites, block).astype(np.float64).transpose(0, 2, 1)  # (block, d, n)
        for arm, of_arm in enumerate(weights):
            found.weights[arm, block], found.raw[arm, block] = of_arm, of_arm @ held

    blocks = min(len(sites), math.ceil(len(sites) * n * d * 4 / BLOCK_BYTES))
    for_each(fit, np.array_split(np.arange(len(sites)), blocks), threads, on_step)
    return found


def finish(candidates: Candidates, train: Examples, validation: Examples, arm: int) -> None:
    """Solve logistic regression to the end, in place, for the candidates that may be the best."""
    held = validation.labels[:, arm]
    found = scores(candidates.raw, held, "classification")
    finished: set[int] = set()
    while True:
        best = first_best(found)
        near = [i for i in np.argsort(-found, kind="stable") if found[i] >= found[best] - MARGIN and i not in finished]
        if best not in finished:
            near.insert(0, best)
        elif not near or len(finished) >= FINALISTS:
            return
        i = near[0]
        solve(candidates, i, train, validation, arm)
        found[i] = scores(candidates.raw[i : i + 1], held, "classification")[0]
        finished.add(int(i))


def solve(candidates: Candidates, i: int, train: Examples, validation: Examples, arm: int) -> None:
    """Solve one candidate's logistic regression to the end, in place."""
    site, alpha = candidates.names[i]
    x = train.inputs.activations[site].astype(np.float64)
    candidates.weights[i] = fit_logistic(x, train.labels[:, arm], alpha, start=candidates.weights[i])
    candidates.raw[i] = validation.inputs.activations[site].astype(np.float64) @ candidates.weights[i]


def _stack(examples: Examples, sites: Sequence[Site], block: NDArray[np.int64]) -> Activations:
    """(block, n, d_model)"""
    return np.stack([examples.inputs.activations[sites[i]] for i in block])
