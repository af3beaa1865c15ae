"""`linear_eoi`: a linear readout, without intercept, of the activation at one layer and one end-of-instruction token.

Agrees with the research code (KabakaWilliam/llms_know_difficulty): ridge on success rates, or logistic regression on
whether the majority vote is correct; layer, position and alpha are those that rank the validation split best. What it
does differently is speed (`probes.linear_sweep`): one decomposition of each site serves all alphas and all arms.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError
from probes.card import ProbeCard, Site, Task
from probes.selection import LayerRule, choose

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
        layer_rule: LayerRule = "best",
    ) -> list[Fit]:
        """See `Probe.fit`. Among equal scores the first wins, in the order of the inputs' sites, then of `alphas`.

        Args:
            layer_rule: see `probes.selection.choose`.
        """
        # Offline alone: the gateway loads this module too.
        from probes.linear_sweep import finish, solve, sweep
        from probes.workers import for_each, one_thread_each

        fits: dict[int, Fit] = {}

        def choose_for(arm: int) -> None:
            candidates = swept.of(arm)
            if task == "classification":
                finish(candidates, train, validation, arm)
            layers = [site.layer for site, _ in candidates.names]
            labels = validation.labels[:, arm]
            choice = choose(candidates.raw, labels, task, seed, layers=layers, layer_rule=layer_rule)
            site, alpha = candidates.names[choice.best]
            if task == "classification" and layer_rule != "best":
                solve(candidates, choice.best, train, validation, arm)  # it need not be among the best
            probe = cls(candidates.weights[choice.best].astype(np.float32), site)
            fits[arm] = Fit(probe, choice.score, choice.held_out, alpha=alpha)

        with one_thread_each() as threads:
            swept = sweep(train, validation, task, alphas, threads, on_step)
            for_each(choose_for, range(train.labels.shape[1]), threads)
        return [fits[arm] for arm in sorted(fits)]
